"""Predictions of a trained teacher: greedy decoding, or the chosen boxes."""
from dataclasses import dataclass

import numpy as np
import torch

from scenes.questions.metrics import select_boxes
from scenes.questions.question import Question
from teacher.language.dataset import CHOICE, NUMBER, Batch, QuestionDataset
from teacher.language.encode import GROUNDED
from teacher.language.grounding import TEMPERATURE, mask_padding
from teacher.language.model import LanguageTeacher

MAX_NEW_TOKENS = {NUMBER: 8, "vsi_choice": 2, "situated": 8, "caption": 48, "qa": 16}


@dataclass(frozen=True)
class Prediction:
    """The prediction for question `question` of room `room`, indices into QuestionDataset.rooms."""
    room: int
    question: int
    text: str | None             # None for a grounding question
    # chosen candidates, indices into Question.boxes, best first; empty: "none of them"
    boxes: tuple[int, ...] = ()
    best: int = -1  # the most probable candidate, even if "none" is more probable (ScanRefer)

    def output(self, question: Question) -> str | np.ndarray:
        """The text, or the boxes, as scenes.questions.scoring takes them."""
        if self.text is not None:
            return self.text
        return question.boxes[[self.best] if question.task == "ground" else list(self.boxes)]


@torch.inference_mode()
def predict(model: LanguageTeacher, dataset: QuestionDataset, family: str, clips: int = 8,
            questions: int = 8) -> list[Prediction]:
    """Predictions for every question of one family (dataset.FAMILIES)."""
    model.eval()
    if model.shape.fusion == "context_gated":  # visual tokens depend on the question
        questions = 1
    max_new_tokens = MAX_NEW_TOKENS.get(family, 1)
    out = []
    for batch in dataset.eval_batches(family, clips, questions, max_new_tokens):
        if family in GROUNDED:
            out += _ground(model, batch)
            continue
        if family == NUMBER and model.number_head is not None:
            out += _numbers(model, batch, dataset)
            continue
        if family == CHOICE and model.choice_head is not None:
            out += _choices(model, batch, dataset)
            continue
        answers = _greedy(model, batch, max_new_tokens, dataset.encoder.end)
        for (i, j), ids in zip(batch.rows, answers, strict=True):
            out.append(Prediction(i, j, dataset.encoder.decode(ids)))
    return out


def _ground(model: LanguageTeacher, batch: Batch) -> list[Prediction]:
    logits = model(batch.visual, batch.questions).ground
    assert logits is not None
    valid = batch.questions.candidates >= 0
    scores = mask_padding(logits, valid).flatten(0, 1).cpu()  # [C*Q,K+1]
    out = []
    for (i, j), row in zip(batch.rows, scores, strict=True):
        boxes = tuple(select_boxes(row.numpy() * TEMPERATURE))
        out.append(Prediction(i, j, None, boxes, int(row[:-1].argmax())))
    return out


def _numbers(model: LanguageTeacher, batch: Batch, dataset: QuestionDataset) -> list[Prediction]:
    """Numbers of the numeric head, in the question's unit; counts are whole."""
    predicted = model(batch.visual, batch.questions).number
    assert predicted is not None
    out = []
    for (i, j), log in zip(batch.rows, predicted.flatten().tolist(), strict=True):
        question = dataset.rooms[i].questions[j]
        value = np.exp(log) / question.unit
        counts = question.task == "vsi:object_counting"
        out.append(Prediction(i, j, f"{value:.0f}" if counts else f"{value:.4g}"))
    return out


def _choices(model: LanguageTeacher, batch: Batch, dataset: QuestionDataset) -> list[Prediction]:
    """The letter of the most probable option."""
    logits = model(batch.visual, batch.questions).choice
    assert logits is not None
    best = logits.argmax(-1).flatten().tolist()
    return [Prediction(i, j, dataset.rooms[i].questions[j].options[option][0])
            for (i, j), option in zip(batch.rows, best, strict=True)]


def _greedy(model: LanguageTeacher, batch: Batch, max_new_tokens: int, end: int) -> list[list[int]]:
    """Token ids of each greedy answer. No key-value cache: answers are short, questions many."""
    questions = batch.questions
    ids, start = questions.ids.clone(), questions.length  # [C,Q,L], [C,Q]
    done = torch.zeros_like(start, dtype=torch.bool)
    for n in range(max_new_tokens):
        questions.ids = ids
        hidden = model(batch.visual, questions).hidden    # [C,Q,L,W]
        last = (start + n - 1)[..., None, None].expand(-1, -1, 1, hidden.shape[-1])
        best = model.logits(hidden.gather(2, last).squeeze(2)).argmax(-1)  # [C,Q]
        best = torch.where(done, end, best)
        ids = ids.scatter(2, (start + n)[..., None], best[..., None])
        done |= best == end
        if bool(done.all()):
            break
    rows = zip(ids.flatten(0, 1).cpu(), start.flatten().tolist(), strict=True)
    return [row[at:at + max_new_tokens].tolist() for row, at in rows]
