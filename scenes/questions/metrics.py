"""Scores as the benchmarks define them; an output that cannot be parsed scores 0.

VSI-Bench (arXiv 2412.14171 and its lmms-eval task), ScanRefer (1912.08830), Multi3DRefer
(2309.05251), SQA3D (2210.07474) and ScanQA (2112.10482), as in Video-3D LLM (2412.00493).
"""
import re
from collections.abc import Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment

from scenes.boxes import iou, upright

THRESHOLDS = (0.25, 0.5)
_CONFIDENCES = np.linspace(0.5, 0.95, 10)


def first_word(output: str) -> str:
    """What VSI-Bench reads: up to the first space (nothing, if that leads), without a full stop."""
    return output.split(" ")[0].rstrip(".").strip()


def number_in(output: str) -> float | None:
    """The first word as a number; None if it is none, or not finite."""
    try:
        value = float(first_word(output))
    except ValueError:
        return None
    return value if np.isfinite(value) else None


def mra(predicted: float | None, truth: float) -> float:
    """Mean relative accuracy: share of the confidences c = 0.50, 0.55 ... 0.95 with error <= 1 - c;
    0 for None."""
    if not truth > 0:
        raise ValueError(f"mra: got a true value of {truth}, expected above 0; remove the question")
    if predicted is None:
        return 0.0
    return float((abs(predicted - truth) / truth <= 1 - _CONFIDENCES).mean())


def same_letter(output: str, answer: str) -> float:
    """1 if the first word is the right option's letter, in either case."""
    return float(first_word(output).lower() == answer.lower())


def hit(predicted: np.ndarray, truth: np.ndarray, threshold: float) -> float:
    """1 if the IoU of the first predicted box [1,6|7] and the true one [1,6|7] is the threshold."""
    return float(len(predicted) > 0 and iou(predicted[:1], truth[:1])[0, 0] >= threshold)


def f1(predicted: np.ndarray, truth: np.ndarray, threshold: float) -> float:
    """F1 of boxes [P,6|7] and targets [G,6|7], matched for the largest total IoU; both empty: 1."""
    if not len(predicted) or not len(truth):
        return float(len(predicted) == len(truth))
    overlaps = iou(predicted, truth)                                                         # [P,G]
    matched = overlaps[linear_sum_assignment(-overlaps)]
    return float(2 * (matched >= threshold).sum() / (len(predicted) + len(truth)))


def select_boxes(scores: np.ndarray, total: float = 0.4, temperature: float = 0.07) -> list[int]:
    """The candidates that cosines [K+1] (the last is "none") select, best first (Video-3D LLM).

    None if "none" scores highest; else the best until their softmax adds up to `total`.
    """
    if int(np.argmax(scores)) == len(scores) - 1:
        return []
    weights = np.exp((scores - scores.max()) / temperature)
    weights = (weights / weights.sum())[:-1]                                                 # [K]
    order = np.argsort(-weights, kind="stable")
    return [int(i) for i in order[:int(np.searchsorted(weights[order].cumsum(), total)) + 1]]


def has_volume(boxes: np.ndarray) -> np.ndarray:
    """[K] bool: whether each box has a finite extent above 0 along every axis."""
    extent = np.diff(upright(boxes), axis=1)[:, 0]
    return np.asarray((np.isfinite(extent) & (extent > 0)).all(1))


def exact_match(output: str, answers: Sequence[str], clean: bool = True) -> float:
    """1 if the output is one of the answers: cleaned for SQA3D, letter by letter for ScanQA."""
    prepared = clean_answer if clean else str
    return float(prepared(output) in [prepared(a) for a in answers])


def refined_match(output: str, answers: Sequence[str]) -> float:
    """LEO's refined match (arXiv 2311.12871): 1 also if one contains the other without spaces."""
    text = "".join(clean_answer(output).split())
    references = ["".join(clean_answer(a).split()) for a in answers]
    return float(bool(text) and any(text in r or r in text for r in references))


_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
          "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen",
          "nineteen", "twenty")
_SPELT = {
    "letf": "left", "let": "left", "tehre": "there", "rigth": "right", "rght": "right",
    "behine": "behind", "tv": "TV", "chai": "chair", "wasing": "washing", "waslked": "walked",
    "oclock": "o'clock", **{str(i): word for i, word in enumerate(_WORDS)},
    "23": "twenty-three", "none": "zero"}
_PATTERNS = {
    **{rf"\b{wrong}\b": right for wrong, right in _SPELT.items()}, r"\bo'[ ]+clock\b": "o'clock",
    r"\b([a-zA-Z]+)([0-9])\b": r"\1", r"\ba\b ([a-zA-Z]+)": r"\1", r"\ban\b ([a-zA-Z]+)": r"\1",
    r"\bthe\b ([a-zA-Z]+)": r"\1", r"\bbackwards\b": "backward"}
_STEPS = tuple((re.compile(pattern), into) for pattern, into in _PATTERNS.items())


def clean_answer(text: str) -> str:
    """An SQA3D answer as its evaluation compares it: lower case, typing errors, digits as words."""
    text = re.sub(r" {2,}", " ", text.lower().strip(" "))
    text = re.sub(r"[^a-zA-Z0-9,'\s\-:]+", "", text)
    for pattern, into in _STEPS:
        text = pattern.sub(into, text)
    return text
