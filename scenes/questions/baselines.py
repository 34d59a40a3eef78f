"""How far guessing gets: answers made from training questions alone, without a look at the clip.

`Majority` always gives the commonest answer of a type, or its median. `TextOnly` reads the question
too and answers as the training questions most like it were answered: what it scores above
`Majority` is language bias. For boxes both know where the candidates are and how large, as the
candidates are given, but not what they are.
"""
from collections import Counter
from collections.abc import Sequence

import numpy as np

from scenes.questions.metrics import mra
from scenes.questions.question import Question
from scenes.questions.scoring import Output

_NEIGHBOURS = 25


class Majority:
    """Fitted to training questions of any tasks. Raises ValueError where a task was not among
    them."""

    def __init__(self, training: Sequence[Question]):
        self.by_task: dict[str, list[Question]] = {}
        for question in training:
            self.by_task.setdefault(question.task, []).append(question)

    def output(self, question: Question) -> Output:
        return _common(self._known(question), question)

    def _known(self, question: Question) -> list[Question]:
        if question.task not in self.by_task:
            raise ValueError(f"baseline: no training question of task {question.task}; there are "
                             f"{', '.join(sorted(self.by_task)) or 'none'}")
        return self.by_task[question.task]


class TextOnly(Majority):
    """By the 25 training questions that share the rarest words with the one asked, and their
    options' words."""

    def __init__(self, training: Sequence[Question]):
        super().__init__(training)
        self._words: dict[str, tuple[dict[str, int], np.ndarray]] = {}
        for task, known in self.by_task.items():
            index = {w: i for i, w in enumerate(sorted({w for q in known for w in _words(q)}))}
            counts = np.zeros((len(known), len(index)), np.float32)                          # [Q,W]
            for row, question in enumerate(known):
                counts[row, [index[w] for w in _words(question)]] = 1
            rarity = np.log(len(known) / counts.sum(0))
            self._words[task] = index, _unit(counts * rarity)

    def output(self, question: Question) -> Output:
        known = self._known(question)
        index, matrix = self._words[question.task]
        asked = np.zeros(len(index), np.float32)
        asked[[index[w] for w in _words(question) if w in index]] = 1
        alike = matrix @ asked
        nearest = np.argsort(-alike, kind="stable")[:_NEIGHBOURS]
        return _common([known[i] for i in nearest], question)


def best_constant(numbers: Sequence[float]) -> float:
    """The single number with the highest mean relative accuracy on these: what a median only comes
    near to."""
    candidates = sorted(set(numbers))
    return max(candidates, key=lambda c: float(np.mean([mra(c, n) for n in numbers])))


def _common(known: Sequence[Question], question: Question) -> Output:
    """The answer these questions suggest for this one."""
    if question.number is not None:
        return f"{best_constant([q.number for q in known if q.number is not None]):g}"
    if question.options:
        return _common_option(known, question)
    if question.task in ("ground", "multi_ground"):
        return _likely_boxes(known, question)
    return Counter(q.answer or "" for q in known).most_common(1)[0][0]


def _common_option(known: Sequence[Question], question: Question) -> str:
    """The option whose words were right most often when offered; between equals the commonest
    letter."""
    offered = Counter(o[3:] for q in known for o in q.options)
    right = Counter(o[3:] for q in known for o in q.options if o[0] == q.answer)
    letters = Counter(q.answer for q in known)

    def promise(option: str) -> tuple[float, int]:
        return (right[option[3:]] + 0.5) / (offered[option[3:]] +
                                            0.5 * len(question.options)), letters[option[0]]

    return max(question.options, key=promise)[0]


def _likely_boxes(known: Sequence[Question], question: Question) -> np.ndarray:
    """The candidate most like the targets in size and height; none if most of these questions have
    none."""
    targets = np.concatenate([q.boxes[list(q.targets)][:, :6] for q in known])               # [N,6]
    offered = question.offered
    if not len(offered) or len(targets) == 0 or np.mean([not q.targets for q in known]) > 0.5:
        return offered[:0]
    shape = _shape(offered)                                                                  # [K,4]
    distance = np.abs(shape[:, None] - _shape(targets)[None]).sum(-1)                        # [K,N]
    return offered[[int(np.median(distance, 1).argmin())]]


def _shape(boxes: np.ndarray) -> np.ndarray:
    """[K,4]: logarithms of the three sides, sorted on the floor plan, and the height of the middle
    in metres."""
    sides = np.log(np.maximum(np.c_[np.sort(boxes[:, 3:5], 1), boxes[:, 5]], 0.01))
    return np.c_[sides, boxes[:, 2]]


def _words(question: Question) -> set[str]:
    said = " ".join((question.text, *(o[3:] for o in question.options))).lower()
    return set("".join(c if c.isalnum() else " " for c in said).split())


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)
