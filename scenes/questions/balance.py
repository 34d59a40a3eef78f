"""Evening out the answers of a set of questions, so that the commonest one is no good guess.

Within a task (and a situated question's kind) few answers are kept equally often; of many, none
keeps more questions than an even spread would give it. Numbers count as one answer where they lie
within a quarter of each other. What the words of a question give away stays: that is for
scenes.baselines to measure.
"""
from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from scenes.clip import Clip
from scenes.questions.question import TASKS, Question, questions
from scenes.questions.visibility import SceneView
from scenes.questions.vsi import LETTERS

_RATIO = 1.25
_FEW = 6       # of up to so many answers, those that are a tenth or more are kept equally often


def question_set(clips: Iterable[Clip], tasks: Sequence[str] = TASKS,
                 seed: int = 0) -> list[Question]:
    """The balanced questions of these tasks about these clips, in the order of the clips."""
    return balanced(
        [q for view in map(SceneView, clips) for task in tasks for q in questions(view, task, seed)],
        seed)


def balanced(asked: Sequence[Question], seed: int = 0) -> list[Question]:
    """Those of the questions that are kept, in their order; which of too many are dropped is up to
    the seed."""
    groups: dict[str, dict[str | int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for i, question in enumerate(asked):
        group, answer = _answer_class(question)
        groups[group][answer].append(i)
    rng = np.random.default_rng(seed)
    kept: list[int] = []
    for _, by_answer in sorted(groups.items()):
        counts = [len(found) for found in by_answer.values()]
        common = [n for n in counts if n >= sum(counts) / 10]
        even = min(common) if len(counts) <= _FEW else -(-sum(counts) // len(counts))
        for _, found in sorted(by_answer.items(), key=lambda item: str(item[0])):
            kept += [found[k] for k in rng.permutation(len(found))[:even]]
    return _unguessable([asked[i] for i in sorted(kept)])


def _unguessable(asked: list[Question]) -> list[Question]:
    """Without those relative distances that give a thing away which is mostly the right one where
    it is offered.

    Drops the most guessable ones until a guess by such rates is right for no more than chance, or
    half are left.
    """
    mine = [i for i, q in enumerate(asked) if q.task == "vsi:object_rel_distance"]
    names: dict[str, int] = {}
    options = np.full((len(mine), len(LETTERS)), -1)  # [Q,4], -1 = none
    for row, i in zip(options, mine, strict=True):
        row[:len(asked[i].options)] = [
            names.setdefault(o[3:], len(names)) for o in asked[i].options
        ]
    answer = np.array([LETTERS.index(asked[i].answer or "") for i in mine], int)
    kept, every = np.ones(len(mine), bool), np.arange(len(mine))
    offered = np.bincount(options[options >= 0], minlength=len(names))  # [names]
    right = np.bincount(options[every, answer], minlength=len(names))
    while 2 * kept.sum() > len(mine):
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
    dropped = {i for i, stays in zip(mine, kept, strict=True) if not stays}
    return [q for i, q in enumerate(asked) if i not in dropped]


def _answer_class(question: Question) -> tuple[str, str | int]:
    """Among which questions its answers are evened out, and which answer it has."""
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
