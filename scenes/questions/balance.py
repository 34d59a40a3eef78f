"""Balances the answers of a set of questions, so that the commonest one is no good guess.

Within a task the questions of each answer are cut to one number: for few answers that of the rarest
common one, for many the mean. Numbers within a factor of 1.25 count as one answer.
"""
from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from scenes.clip import Clip
from scenes.questions.question import TASKS, Question, questions
from scenes.questions.visibility import SceneView
from scenes.questions.vsi import LETTERS

_RATIO = 1.25  # between numbers that count as different answers
_FEW = 6       # answers or fewer: those with a tenth of the questions or more get equal numbers


def question_set(clips: Iterable[Clip], tasks: Sequence[str] = TASKS,
                 seed: int = 0) -> list[Question]:
    """The balanced questions of these tasks about these clips, in the order of the clips."""
    views = map(SceneView, clips)
    found = (q for view in views for task in tasks for q in questions(view, task, seed))
    return balanced(list(found), seed)


def balanced(candidates: Sequence[Question], seed: int = 0) -> list[Question]:
    """The balanced subset, in order; the seed decides which of too many are dropped."""
    groups: dict[str, dict[str | int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for i, question in enumerate(candidates):
        group, answer = _answer_class(question)
        groups[group][answer].append(i)
    rng = np.random.default_rng(seed)
    chosen: list[int] = []
    for _, by_answer in sorted(groups.items()):
        counts = [len(found) for found in by_answer.values()]
        common = [n for n in counts if n >= sum(counts) / 10]
        even = min(common) if len(counts) <= _FEW else -(-sum(counts) // len(counts))
        for _, found in sorted(by_answer.items(), key=lambda item: str(item[0])):
            chosen += [found[k] for k in rng.permutation(len(found))[:even]]
    return _without_guessable([candidates[i] for i in sorted(chosen)])


def _without_guessable(candidates: list[Question]) -> list[Question]:
    """Drops relative distances whose right option is usually right, the most guessable first, until
    such guesses are no better than chance, or half are left."""
    rows = [i for i, q in enumerate(candidates) if q.task == "vsi:object_rel_distance"]
    names: dict[str, int] = {}
    options = np.full((len(rows), len(LETTERS)), -1)  # [Q,4], -1 = none
    for row, i in zip(options, rows, strict=True):
        nouns = [option[3:] for option in candidates[i].options]
        row[:len(nouns)] = [names.setdefault(noun, len(names)) for noun in nouns]
    answer = np.array([LETTERS.index(candidates[i].answer or "") for i in rows], int)
    kept = np.ones(len(rows), bool)
    offered = np.bincount(options[options >= 0], minlength=len(names))  # [names]
    right = np.bincount(options[np.arange(len(rows)), answer], minlength=len(names))
    while 2 * kept.sum() > len(rows):
        rates = np.where(options < 0, -1.0, (right / np.maximum(offered, 1))[options])       # [Q,4]
        guess = len(LETTERS) - 1 - rates[:, ::-1].argmax(1)  # of equals the last
        guessed = kept & (guess == answer)
        if guessed.sum() <= kept.sum() / 4:
            break
        second, first = np.partition(rates, -2, 1)[:, -2:].T
        most = np.where(guessed, first - second, -1.0).argmax()
        kept[most] = False
        offered[options[most][options[most] >= 0]] -= 1
        right[options[most, answer[most]]] -= 1
    dropped = {rows[k] for k in np.flatnonzero(~kept)}
    return [q for i, q in enumerate(candidates) if i not in dropped]


def _answer_class(question: Question) -> tuple[str, str | int]:
    if question.task == "vsi:object_counting":
        return question.task, round(question.number or 0)
    if question.number is not None:
        return question.task, round(np.log(max(question.number, 1e-3)) / np.log(_RATIO))
    if question.task == "multi_ground":
        return question.task, question.kind[:2]
    if question.task.startswith(("vsi:object_rel_direction", "vsi:route")):
        right = next(o for o in question.options if o[0] == question.answer)
        return f"{question.task}/{right.count(',')}", right[3:]
    if question.task == "situated":
        return f"{question.task}/{question.kind}", question.answer or ""
    return question.task, "any"
