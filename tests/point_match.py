"""The match of one point, as the web page computes it: the reference for its JavaScript."""
import numpy as np


def match(descriptors: np.ndarray, other: np.ndarray, x: float,
          y: float) -> tuple[float, float, np.ndarray]:
    """Where the other view shows the point (x, y): (x, y, similarity [h,w] in [-1,1]).

    descriptors, other: unit vectors [C,h,w]; points are fractions of the picture, 0 to 1. The query
    is interpolated between cells; the result is the best cell, refined by its neighbours.
    """
    _, h, w = descriptors.shape
    query = _interpolate(descriptors, x * w - 0.5, y * h - 0.5)
    similarity = np.tensordot(query / np.linalg.norm(query), other, 1)  # [h,w]
    best_row, best_column = divmod(int(similarity.argmax()), w)
    rows = np.arange(max(best_row - 1, 0), min(best_row + 2, h))
    columns = np.arange(max(best_column - 1, 0), min(best_column + 2, w))
    weight = np.exp((similarity[np.ix_(rows, columns)] - similarity.max()) * 30)
    weight /= weight.sum()
    column = (weight.sum(0) * (columns + 0.5)).sum()
    row = (weight.sum(1) * (rows + 0.5)).sum()
    return float(column / w), float(row / h), similarity


def _interpolate(descriptors: np.ndarray, column: float, row: float) -> np.ndarray:
    """Bilinear, [C]; 0 is the middle of the first cell."""
    _, h, w = descriptors.shape
    column, row = np.clip(column, 0, w - 1), np.clip(row, 0, h - 1)
    c, r = min(int(column), w - 2), min(int(row), h - 2)
    u, v = column - c, row - r
    return (descriptors[:, r, c] * (1 - u) * (1 - v) + descriptors[:, r, c + 1] * u * (1 - v)
            + descriptors[:, r + 1, c] * (1 - u) * v + descriptors[:, r + 1, c + 1] * u * v)
