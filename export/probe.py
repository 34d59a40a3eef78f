"""A linear question put to features: how far is the surface in this patch? Ridge regression to log-depth."""
from dataclasses import dataclass

import numpy as np

RIDGE = 1e-2  # of the mean feature variance: enough to keep collinear channels from trading huge weights
WITHIN = 1.25  # delta1: the share of patches whose depth is right within 25 %


@dataclass(frozen=True)
class DepthProbe:
    """log depth (metres) = features @ weights + bias. weights [D]."""
    weights: np.ndarray
    bias: float

    @staticmethod
    def fit(features: np.ndarray, depth: np.ndarray) -> "DepthProbe":
        """features [N,D,h,w], depth [N,h,w] in metres (0 = unknown). Raises ValueError if no depth is known."""
        x, log_depth = _known(features, depth)
        if not len(x):
            raise ValueError("DepthProbe.fit: got no patch with a known depth, expected some; leave depth out instead")
        centre, level = x.mean(0), log_depth.mean()
        x = x - centre
        gram = x.T @ x / len(x)  # [D,D]
        gram[np.diag_indices_from(gram)] += RIDGE * np.trace(gram) / len(gram) + 1e-12
        weights = np.linalg.solve(gram, x.T @ (log_depth - level) / len(x))
        return DepthProbe(weights, float(level - centre @ weights))

    def delta1(self, features: np.ndarray, depth: np.ndarray) -> float | None:
        """Percent of known patches whose predicted depth is within a factor 1.25; None if none is known."""
        x, log_depth = _known(features, depth)
        if not len(x):
            return None
        off = np.abs(x @ self.weights + self.bias - log_depth)
        return float((off < np.log(WITHIN)).mean() * 100)


def _known(features: np.ndarray, depth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Tokens [M,D] and log-depths [M] of the patches with a finite depth above zero."""
    if features.shape[0] != depth.shape[0] or features.shape[2:] != depth.shape[1:]:
        raise ValueError(f"DepthProbe: got features {list(features.shape)} and depth {list(depth.shape)}, "
                         "expected one depth a token")
    tokens = np.moveaxis(features, 1, -1).reshape(-1, features.shape[1]).astype(np.float64)
    metres = depth.reshape(-1)
    known = np.isfinite(metres) & (metres > 0)
    return tokens[known], np.log(metres[known].astype(np.float64))
