"""What the trained teacher answers: words, greedily, or the boxes that it points at."""
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from scenes.questions.metrics import select_boxes
from scenes.questions.question import Question
from teacher.language.dataset import Batch, QuestionDataset
from teacher.language.encode import GROUNDED
from teacher.language.grounding import TEMPERATURE, masked
from teacher.language.model import LanguageTeacher

# tokens of an answer
MAX_NEW_TOKENS = {"vsi_number": 8, "vsi_choice": 2, "situated": 8, "caption": 48, "qa": 16}


@dataclass(frozen=True)
class Prediction:
    """The answer to question `question` of room `room` (indices into QuestionDataset)."""
    room: int
    question: int
    text: str | None             # None where a box was asked for
    # chosen candidates, as in Question.boxes, best first; none: "there is no such thing"
    boxes: tuple[int, ...] = ()
    best: int = -1  # the likeliest candidate, whatever the zero target says (ScanRefer)

    def output(self, question: Question) -> str | np.ndarray:
        """As scenes.scoring takes it: the text, or the boxes."""
        if self.text is not None:
            return self.text
        return question.boxes[[self.best] if question.task == "ground" else list(self.boxes)]


@torch.inference_mode()
def predict(model: LanguageTeacher, dataset: QuestionDataset, name: str, clips: int = 8,
            each: int = 8) -> list[Prediction]:
    """Every question of one family (teacher.dataset.FAMILIES)."""
    model.eval()
    out = []
    for batch in dataset.eval_batches(name, clips, each, room_for=MAX_NEW_TOKENS.get(name, 1)):
        if name in GROUNDED:
            logits = model(batch.visual, batch.questions).ground
            assert logits is not None
            real = batch.questions.candidates >= 0
            scores = masked(logits, real).flatten(0, 1).cpu()  # [C*Q,K+1]
            for (i, j), row in zip(batch.rows, scores, strict=True):
                out.append(
                    Prediction(i, j, None, tuple(select_boxes(row.numpy() * TEMPERATURE)),
                          int(row[:-1].argmax())))
            continue
        for (i, j), ids in zip(batch.rows, _greedy(model, batch, MAX_NEW_TOKENS[name], dataset.encoder.end),
                               strict=True):
            out.append(Prediction(i, j, dataset.encoder.read(ids)))
    return out


def _greedy(model: LanguageTeacher, batch: Batch, longest: int, end: int) -> list[list[int]]:
    """The likeliest next token, over and over; one list a question. The clip is read again for
    each: answers are short, and the questions about a clip are many."""
    asked = batch.questions
    ids, start = asked.ids.clone(), asked.length  # [C,Q,L], [C,Q]
    done = torch.zeros_like(start, dtype=torch.bool)
    for n in range(longest):
        asked.ids = ids
        hidden = model(batch.visual, asked).hidden  # [C,Q,L,W]
        last = (start + n - 1)[..., None, None].expand(-1, -1, 1, hidden.shape[-1])
        best = model.logits(hidden.gather(2, last).squeeze(2)).argmax(-1)  # [C,Q]
        best = torch.where(done, end, best)
        ids = ids.scatter(2, (start + n)[..., None], best[..., None])
        done |= best == end
        if bool(done.all()):
            break
    return [
        _cut(row, int(at), longest)
        for row, at in zip(ids.flatten(0, 1).cpu(), start.flatten(), strict=True)
    ]


def _cut(row: Tensor, start: int, longest: int) -> list[int]:
    return row[start:start + longest].tolist()
