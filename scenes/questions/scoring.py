"""Outputs of a model scored question by question, and summed up by task the way each benchmark
reports it.

An output is what the model wrote, or for "ground" and "multi_ground" the boxes [P,6|7] it chose.
"""
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from scenes.boxes import iou
from scenes.questions import metrics
from scenes.questions.captions import caption_scores, scan2cap_words
from scenes.questions.question import VSI_TYPES, Question

Output = str | np.ndarray
_DIRECTIONS = tuple(t for t in VSI_TYPES if t.startswith("object_rel_direction"))


def values(question: Question, output: Output) -> dict[str, float]:
    """The scores of one output, each in [0,1]; empty for captions, which are scored together.

    "unparsable" is 1 where a text holds no number or letter, or boxes no volume. Raises ValueError
    for boxes where a text is due, or the other way round.
    """
    if isinstance(output, str) == (question.task in ("ground", "multi_ground")):
        raise ValueError(
            f"score: {question.task} on {question.clip_id}: got {type(output).__name__}, expected "
            f"{'boxes' if isinstance(output, str) else 'text'}")
    if not isinstance(output, str):
        return _boxes(question, output)
    if question.number is not None:
        said = metrics.number_in(output)
        return {"mra": metrics.mra(said, question.number), "unparsable": float(said is None)}
    if question.options:
        letters = [option[0].lower() for option in question.options]
        return {"accuracy": metrics.same_letter(output, question.answer or ""),
                "unparsable": float(metrics.first_word(output).lower() not in letters)}
    if question.task == "caption":
        return {}
    answers = question.answers or (question.answer or "",)
    return {
        "em": metrics.exact_match(output, answers, clean=question.task
                                  != "qa"), "em_refined": metrics.refined_match(output, answers),
        "unparsable": float(not output.strip())
    }


def summary(questions: Sequence[Question], outputs: Sequence[Output],
            overlaps: Sequence[float] | None = None) -> dict[str, dict[str, float]]:
    """Task -> metric -> value; metrics of a kind are named "metric/kind", and "n" counts questions.

    Tasks of VSI-Bench have a mean of their own under "vsi", where the three directions count as one
    type. overlaps: for caption questions, IoU of the box that was described with the one meant;
    below 0.5 the caption counts as empty (Scan2Cap's "@0.5"); without it every caption counts.
    Raises ValueError if the lengths differ.
    """
    if not questions or len(questions) != len(outputs) or (overlaps is not None
                                                           and len(overlaps) != len(questions)):
        raise ValueError(
            f"score: got {len(outputs)} outputs for {len(questions)} questions, expected as many, "
            "and at least one")
    piles: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    counts: dict[str, int] = defaultdict(int)
    for question, output in zip(questions, outputs, strict=True):
        counts[question.task] += 1
        for metric, value in values(question, output).items():
            piles[question.task][metric].append(value)
            if question.kind and metric != "unparsable":
                piles[question.task][f"{metric}/{question.kind}"].append(value)
    out = {
        task: {
            "n": float(counts[task]), **{
                m: float(np.mean(v)) if m != "unparsable" else float(np.sum(v))
                for m, v in piles[task].items()
            }
        }
        for task in counts
    }
    if "caption" in out:
        out["caption"] |= _captions(questions, outputs, overlaps)
    if "qa" in out:
        chosen = [(str(o).rstrip("."), q.answers) for q, o in zip(questions, outputs, strict=True)
                  if q.task == "qa"]
        out["qa"] |= caption_scores(*zip(*chosen, strict=True))
    return out | _vsi_mean(out)


def described_box(question: Question) -> tuple[np.ndarray, float]:
    """The offered box [6|7] that lies most over a caption question's target, and their IoU:
    Scan2Cap's choice.

    Below 0.5 that benchmark takes the caption as empty. Where no box is offered: the target's, with
    0.
    """
    if not len(question.offered):
        return question.boxes[question.targets[0]], 0.0
    overlaps = iou(question.offered, question.boxes[list(question.targets)])[:, 0]           # [K]
    best = int(overlaps.argmax())
    return question.offered[best], float(overlaps[best])


def _boxes(question: Question, predicted: np.ndarray) -> dict[str, float]:
    truth = question.boxes[list(question.targets)]
    unusable = not metrics.has_volume(truth).all() or not (len(predicted) == 0
                                                           or metrics.has_volume(predicted).all())
    predicted = predicted if len(predicted) else np.zeros((0, 6))
    name, score = ("acc", metrics.hit) if question.task == "ground" else ("f1", metrics.f1)
    if question.task == "ground" and len(truth) != 1:
        raise ValueError(
            f"score: ground on {question.clip_id} has {len(truth)} targets, expected 1")
    return {
        **{f"{name}@{t}": score(predicted, truth, t)
           for t in metrics.THRESHOLDS}, "unparsable": float(unusable)
    }


def _captions(questions: Sequence[Question], outputs: Sequence[Output],
              overlaps: Sequence[float] | None) -> dict[str, float]:
    said, meant = [], []
    for i, (question, output) in enumerate(zip(questions, outputs, strict=True)):
        if question.task == "caption":
            said.append(
                scan2cap_words(str(output) if overlaps is None or overlaps[i] >= 0.5 else ""))
            meant.append([scan2cap_words(a) for a in question.answers])
    return {
        f"{name}@0.5" if overlaps is not None else name: v
        for name, v in caption_scores(said, meant).items()
    }


def _vsi_mean(tasks: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """The mean over the types there are, as VSI-Bench takes it."""
    by_type = {
        t: tasks[f"vsi:{t}"].get("mra", tasks[f"vsi:{t}"].get("accuracy", 0.0))
        for t in VSI_TYPES if f"vsi:{t}" in tasks
    }
    if not by_type:
        return {}
    directions = [by_type.pop(t) for t in _DIRECTIONS if t in by_type]
    parts = [*by_type.values(), *([float(np.mean(directions))] if directions else [])]
    return {"vsi": {"mean": float(np.mean(parts)), "types": float(len(parts))}}
