"""Scores of a model's outputs, per question and per task as each benchmark reports them.

An output is text, or for "ground" and "multi_ground" the chosen boxes [P,6|7].
"""
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from scenes.boxes import iou
from scenes.questions import metrics
from scenes.questions.captions import caption_scores, scan2cap_words
from scenes.questions.question import VSI_TYPES, Question

Output = str | np.ndarray
_DIRECTIONS = tuple(t for t in VSI_TYPES if t.startswith("object_rel_direction"))


def values(question: Question, output: Output) -> dict[str, float]:
    """The scores of one output, each in [0,1]; empty for captions, which are scored together.
    "unparsable" is 1 for a text without number or letter, or boxes without volume."""
    if isinstance(output, str) == (question.task in ("ground", "multi_ground")):
        raise ValueError(
            f"score: {question.task} on {question.clip_id}: got {type(output).__name__}, expected "
            f"{'boxes' if isinstance(output, str) else 'text'}")
    if not isinstance(output, str):
        return _boxes(question, output)
    if question.number is not None:
        number = metrics.number_in(output)
        return {"mra": metrics.mra(number, question.number), "unparsable": float(number is None)}
    if question.options:
        letters = [option[0].lower() for option in question.options]
        return {"accuracy": metrics.same_letter(output, question.answer or ""),
                "unparsable": float(metrics.first_word(output).lower() not in letters)}
    if question.task == "caption":
        return {}
    answers = question.answers or (question.answer or "",)
    return {"em": metrics.exact_match(output, answers, clean=question.task != "qa"),
            "em_refined": metrics.refined_match(output, answers),
            "unparsable": float(not output.strip())}


def summary(questions: Sequence[Question], outputs: Sequence[Output],
            overlaps: Sequence[float] | None = None,
            scores: Iterable[Mapping[str, float]] | None = None) -> dict[str, dict[str, float]]:
    """Task -> metric -> value; metrics of a kind are named "metric/kind", and "n" counts questions.

    "vsi" is the mean over VSI-Bench's types, where the three directions count as one. overlaps: for
    caption questions, IoU of the described box with the target; below 0.5 the caption counts as
    empty (Scan2Cap's "@0.5"). scores: `values` of each. Raises ValueError if the lengths differ.
    """
    lengths = {len(questions), len(outputs), len(questions if overlaps is None else overlaps)}
    if not questions or len(lengths) > 1:
        raise ValueError(f"score: got {len(outputs)} outputs for {len(questions)} questions, "
                         "expected as many, and at least one")
    piles: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    counts: dict[str, int] = defaultdict(int)
    scores = map(values, questions, outputs) if scores is None else scores
    for question, found in zip(questions, scores, strict=True):
        counts[question.task] += 1
        for metric, value in found.items():
            piles[question.task][metric].append(value)
            if question.kind and metric != "unparsable":
                piles[question.task][f"{metric}/{question.kind}"].append(value)
    out: dict[str, dict[str, float]] = {}
    for task, count in counts.items():
        out[task] = {"n": float(count)}
        for metric, pile in piles[task].items():
            out[task][metric] = float(np.sum(pile) if metric == "unparsable" else np.mean(pile))
    if "caption" in out:
        out["caption"] |= _captions(questions, outputs, overlaps)
    if "qa" in out:
        chosen = [(str(o).rstrip("."), q.answers) for q, o in zip(questions, outputs, strict=True)
                  if q.task == "qa"]
        out["qa"] |= caption_scores(*zip(*chosen, strict=True))
    return out | _vsi_mean(out)


def described_box(question: Question) -> tuple[np.ndarray, float]:
    """The offered box [6|7] nearest to a caption's target, and their IoU; else the target's, 0."""
    if not len(question.offered):
        return question.boxes[question.targets[0]], 0.0
    overlaps = iou(question.offered, question.boxes[list(question.targets)])[:, 0]           # [K]
    best = int(overlaps.argmax())
    return question.offered[best], float(overlaps[best])


def _boxes(question: Question, predicted: np.ndarray) -> dict[str, float]:
    truth = question.boxes[list(question.targets)]
    predicted = predicted if len(predicted) else np.zeros((0, 6))
    usable = metrics.has_volume(truth).all() and metrics.has_volume(predicted).all()
    name, score = ("acc", metrics.hit) if question.task == "ground" else ("f1", metrics.f1)
    if question.task == "ground" and len(truth) != 1:
        raise ValueError(f"score: ground on {question.clip_id} has {len(truth)} targets, not 1")
    scores = {f"{name}@{t}": score(predicted, truth, t) for t in metrics.THRESHOLDS}
    return scores | {"unparsable": float(not usable)}


def _captions(questions: Sequence[Question], outputs: Sequence[Output],
              overlaps: Sequence[float] | None) -> dict[str, float]:
    captions, references = [], []
    for i, (question, output) in enumerate(zip(questions, outputs, strict=True)):
        if question.task == "caption":
            counts = overlaps is None or overlaps[i] >= 0.5
            captions.append(scan2cap_words(str(output) if counts else ""))
            references.append([scan2cap_words(a) for a in question.answers])
    suffix = "" if overlaps is None else "@0.5"
    return {f"{name}{suffix}": v for name, v in caption_scores(captions, references).items()}


def _vsi_mean(tasks: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    by_type = {t: tasks[f"vsi:{t}"].get("mra", tasks[f"vsi:{t}"].get("accuracy", 0.0))
               for t in VSI_TYPES if f"vsi:{t}" in tasks}
    directions = [by_type.pop(t) for t in _DIRECTIONS if t in by_type]
    parts = [*by_type.values(), *([float(np.mean(directions))] if directions else [])]
    if not parts:
        return {}
    return {"vsi": {"mean": float(np.mean(parts)), "types": float(len(parts))}}
