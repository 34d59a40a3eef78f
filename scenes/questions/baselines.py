"""Baselines that see no frames: answers from training questions and the candidates' boxes alone."""
from collections import Counter
from collections.abc import Sequence

import numpy as np

from scenes.questions.metrics import mra
from scenes.questions.question import Question
from scenes.questions.scoring import Output

_NEIGHBOURS = 25


class Majority:
    """The commonest answer of a task, or its best constant; ValueError for a task not trained."""

    def __init__(self, training: Sequence[Question]):
        self.by_task: dict[str, list[Question]] = {}
        for question in training:
            self.by_task.setdefault(question.task, []).append(question)

    def output(self, question: Question) -> Output:
        return _common_answer(self._training(question), question)

    def _training(self, question: Question) -> list[Question]:
        if question.task not in self.by_task:
            raise ValueError(f"baseline: no training question of task {question.task}; there are "
                             f"{', '.join(sorted(self.by_task)) or 'none'}")
        return self.by_task[question.task]


class TextOnly(Majority):
    """As the 25 training questions that share the rarest words of text and options."""

    def __init__(self, training: Sequence[Question]):
        super().__init__(training)
        self._words: dict[str, tuple[list[str], np.ndarray]] = {}
        for task, group in self.by_task.items():
            vocabulary = sorted(set[str]().union(*map(_words, group)))
            counts = np.stack([_bag(question, vocabulary) for question in group])            # [Q,W]
            rarity = np.log(len(group) / counts.sum(0))
            self._words[task] = vocabulary, _unit(counts * rarity)

    def output(self, question: Question) -> Output:
        group = self._training(question)
        vocabulary, matrix = self._words[question.task]
        similarity = matrix @ _bag(question, vocabulary)
        nearest = np.argsort(-similarity, kind="stable")[:_NEIGHBOURS]
        return _common_answer([group[i] for i in nearest], question)


def best_constant(numbers: Sequence[float]) -> float:
    """The single number with the highest mean relative accuracy on these."""
    candidates = sorted(set(numbers))
    return max(candidates, key=lambda c: float(np.mean([mra(c, n) for n in numbers])))


def _common_answer(group: Sequence[Question], question: Question) -> Output:
    if question.number is not None:
        return f"{best_constant([q.number for q in group if q.number is not None]):g}"
    if question.options:
        return _common_option(group, question)
    if question.task in ("ground", "multi_ground"):
        return _likely_boxes(group, question)
    return Counter(q.answer or "" for q in group).most_common(1)[0][0]


def _common_option(group: Sequence[Question], question: Question) -> str:
    """The option whose words were right most often when offered; of equals the commonest letter."""
    offered = Counter(o[3:] for q in group for o in q.options)
    right = Counter(o[3:] for q in group for o in q.options if o[0] == q.answer)
    letters = Counter(q.answer for q in group)

    def rate(option: str) -> tuple[float, int]:
        words, smoothing = option[3:], 0.5 * len(question.options)
        return (right[words] + 0.5) / (offered[words] + smoothing), letters[option[0]]

    return max(question.options, key=rate)[0]


def _likely_boxes(group: Sequence[Question], question: Question) -> np.ndarray:
    """The candidate most like the group's targets in size and height; none if most have none."""
    targets = np.concatenate([q.boxes[list(q.targets)][:, :6] for q in group])               # [N,6]
    offered = question.offered
    if not len(offered) or not len(targets) or np.mean([not q.targets for q in group]) > 0.5:
        return offered[:0]
    distance = np.abs(_shape(offered)[:, None] - _shape(targets)[None]).sum(-1)              # [K,N]
    return offered[[int(np.median(distance, 1).argmin())]]


def _shape(boxes: np.ndarray) -> np.ndarray:
    """[K,4]: logarithms of the sides (width and depth sorted), and the middle's height in m."""
    sides = np.log(np.maximum(np.c_[np.sort(boxes[:, 3:5], 1), boxes[:, 5]], 0.01))
    return np.c_[sides, boxes[:, 2]]


def _words(question: Question) -> set[str]:
    text = " ".join((question.text, *(o[3:] for o in question.options))).lower()
    return set("".join(c if c.isalnum() else " " for c in text).split())


def _bag(question: Question, vocabulary: Sequence[str]) -> np.ndarray:
    """[W] float32: 1 for each word of the vocabulary that the question has."""
    words = _words(question)
    return np.array([word in words for word in vocabulary], np.float32)


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)
