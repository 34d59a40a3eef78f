"""The parity gate: an artefact is written only if its features match FP32 on held-out frames.

Three measures, because each misses what another finds: token cosine (direction), relative error
(size), and the depth accuracy of a linear probe fitted on FP32 features (what a user would lose).
"""
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from export.source import HELDOUT_FRAMES, Frames, to_input

Precision = Literal["fp32", "fp16", "int8", "fp8"]
Model = Callable[[np.ndarray], np.ndarray]  # frames [N,3,H,W] float in [0,1] -> features [N,D,h,w]


@dataclass(frozen=True)
class Thresholds:
    cosine_mean: float     # mean over tokens, at least
    cosine_p1: float       # 1st percentile over tokens, at least
    relative_error: float  # |candidate - reference| / |reference|, at most: finds a wrong scale
    delta1_drop: float     # points of depth delta1 lost, at most


# fp32 allows for another order of summation, fp16 for 11 bits of mantissa in every layer.
# int8: the shipped ViT-Ti measures .9998, p1 .9994, error .017; stale calibration (.96), Q/DQ on
# the residual stream and a wrong axis fail.
# fp8: 3 bits of mantissa in every operand: .9989, p1 .995, error .042.
THRESHOLDS: dict[Precision, Thresholds] = {
    "fp32": Thresholds(0.99999, 0.9999, 0.005, 0.1),
    "fp16": Thresholds(0.999, 0.99, 0.05, 0.5),
    "int8": Thresholds(0.999, 0.99, 0.05, 0.5),
    "fp8": Thresholds(0.997, 0.98, 0.08, 0.5),
}
RIDGE = 1e-2   # of the mean feature variance: keeps collinear channels from trading huge weights
WITHIN = 1.25  # delta1: the share of patches whose depth is right within a factor of 1.25


class GateError(ValueError):
    """An artefact failed its parity gate."""
    exit_code = 3


@dataclass(frozen=True)
class Parity:
    """A candidate against the FP32 student; delta1 in percent, None without depth."""
    frames: int
    cosine_mean: float
    cosine_p1: float
    relative_error: float
    delta1_reference: float | None
    delta1_candidate: float | None
    delta1_drop: float | None
    worst_frames: tuple[tuple[int, float], ...]  # (index, mean token cosine), worst first

    def facts(self) -> dict[str, object]:
        """For JSON, rounded to what 6,000 tokens can resolve."""
        return {key: round(value, 6) if isinstance(value, float) else value
                for key, value in asdict(self).items()}


class Gate:
    """Measures candidates against one student. Its reference runs once, each candidate once a call.

    heldout: at least 32 frames to measure on; calibration: the frames the depth probe is fitted on.
    """

    def __init__(self, reference: Model, heldout: Frames, calibration: Frames | None = None):
        if len(heldout) < HELDOUT_FRAMES:
            raise ValueError(f"Gate: got {len(heldout)} held-out frames, expected >= "
                             f"{HELDOUT_FRAMES}; fewer give no meaningful 1st percentile")
        self.heldout = heldout
        self.reference = reference(to_input(heldout.frames))  # [N,D,h,w]
        self.probe = None
        if calibration is not None and calibration.depth is not None and heldout.depth is not None:
            self.probe = DepthProbe.fit(reference(to_input(calibration.frames)), calibration.depth)

    def __call__(self, candidate: Model, precision: Precision, name: str,
                 limits: Thresholds | None = None) -> Parity:
        """Raises GateError with every missed threshold and the worst frames."""
        parity = self.measure(candidate)
        if missed := misses(parity, limits or THRESHOLDS[precision]):
            worst = ", ".join(f"frame {i} ({cosine:.4f})" for i, cosine in parity.worst_frames)
            raise GateError(f"{name}: failed the {precision} parity gate, and is not written: "
                            f"{'; '.join(missed)}; worst {worst}")
        return parity

    def measure(self, candidate: Model) -> Parity:
        """Raises GateError if the candidate's features have another shape or are not finite."""
        features = candidate(to_input(self.heldout.frames))
        _check_comparable(self.reference, features)
        cosine = token_cosine(self.reference, features)  # [N,h*w]
        per_frame = cosine.mean(1)
        worst = tuple((int(i), round(float(per_frame[i]), 6)) for i in per_frame.argsort()[:5])
        before, after = self._delta1(self.reference), self._delta1(features)
        drop = None if before is None or after is None else before - after
        return Parity(len(features), float(cosine.mean()), float(np.percentile(cosine, 1)),
                      relative_error(self.reference, features), before, after, drop, worst)

    def _delta1(self, features: np.ndarray) -> float | None:
        if self.probe is None or self.heldout.depth is None:
            return None
        return self.probe.delta1(features, self.heldout.depth)


def misses(found: Any, limits: Any) -> list[str]:
    """A phrase for every field of the dataclass `limits` that `found` is beyond; empty is a pass.

    Cosines and shares are lower limits. NaN misses, None does not.
    """
    missed = []
    for name, limit in asdict(limits).items():
        value, at_least = getattr(found, name), "cosine" in name or name == "depth_delta1"
        if value is not None and not (value >= limit if at_least else value <= limit):
            missed.append(f"{name} {value:.5f} {'<' if at_least else '>'} {limit}")
    return missed


def token_cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosine of each token of two feature maps [N,D,h,w] -> [N,h*w], in float64."""
    a, b = (x.reshape(*x.shape[:2], -1).astype(np.float64) for x in (a, b))  # [N,D,h*w]
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return (a * b).sum(1) / np.maximum(norms, 1e-12)


def relative_error(reference: np.ndarray, candidate: np.ndarray) -> float:
    """|candidate - reference| / |reference|, Frobenius norms over everything."""
    reference = reference.astype(np.float64)
    norm = max(float(np.linalg.norm(reference)), 1e-12)
    return float(np.linalg.norm(candidate - reference)) / norm


@dataclass(frozen=True)
class DepthProbe:
    """log depth (metres) = features @ weights + bias. weights [D]."""
    weights: np.ndarray
    bias: float

    @staticmethod
    def fit(features: np.ndarray, depth: np.ndarray) -> "DepthProbe":
        """Ridge; features [N,D,h,w], depth [N,h,w] m (0 = unknown). ValueError if all unknown."""
        x, log_depth = _tokens_with_depth(features, depth)
        if not len(x):
            raise ValueError("DepthProbe.fit: got no patch with a known depth, expected some; "
                             "leave depth out instead")
        centre, level = x.mean(0), log_depth.mean()
        x = x - centre
        gram = x.T @ x / len(x)  # [D,D]
        gram[np.diag_indices_from(gram)] += RIDGE * np.trace(gram) / len(gram) + 1e-12
        weights = np.linalg.solve(gram, x.T @ (log_depth - level) / len(x))
        return DepthProbe(weights, float(level - centre @ weights))

    def delta1(self, features: np.ndarray, depth: np.ndarray) -> float | None:
        """Percent of patches with depth predicted within a factor 1.25; None if none has depth."""
        x, log_depth = _tokens_with_depth(features, depth)
        if not len(x):
            return None
        off = np.abs(x @ self.weights + self.bias - log_depth)
        return float((off < np.log(WITHIN)).mean() * 100)


def _check_comparable(reference: np.ndarray, candidate: np.ndarray) -> None:
    if candidate.shape != reference.shape:
        raise GateError(f"gate: got features {list(candidate.shape)}, expected "
                        f"{list(reference.shape)}; the artefact is not of this student")
    broken = ~np.isfinite(candidate).all((1, 2, 3))  # [N]
    if broken.any():
        raise GateError(
            f"gate: got NaN or infinite features in {broken.sum()} of {len(broken)} frames "
            f"(first: {int(broken.argmax())}), expected finite ones; half precision overflowed?")


def _tokens_with_depth(features: np.ndarray, depth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Tokens [M,D] and log-depths [M] of the patches with a finite depth above zero."""
    if features.shape[0] != depth.shape[0] or features.shape[2:] != depth.shape[1:]:
        raise ValueError(f"DepthProbe: got features {list(features.shape)} and depth "
                         f"{list(depth.shape)}, expected one depth a token")
    tokens = np.moveaxis(features, 1, -1).reshape(-1, features.shape[1]).astype(np.float64)
    metres = depth.reshape(-1)
    valid = np.isfinite(metres) & (metres > 0)
    return tokens[valid], np.log(metres[valid].astype(np.float64))
