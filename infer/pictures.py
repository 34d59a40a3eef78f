"""What the numbers look like: in the colours of the web page (export/web/page/colours.js), so both
can be compared."""
import numpy as np

# fixed, on a log scale: colours that follow each frame's own range flicker
NEAR_M, FAR_M = 0.5, 8.0
# near to far; lightness falls steadily, so that it reads in grey as well
DEPTH_STOPS = np.array([[255, 244, 214], [255, 201, 120], [246, 138, 89], [214, 81, 99],
                        [156, 50, 118], [93, 34, 116], [38, 20, 78]], np.float64)


def depth_colours(depth: np.ndarray) -> np.ndarray:
    """Metres [h,w] -> uint8 [h,w,3]."""
    along = np.log(np.maximum(depth, 1e-3) / NEAR_M) / np.log(FAR_M / NEAR_M)
    at = np.clip(along, 0, 1) * (len(DEPTH_STOPS) - 1)
    low = np.minimum(at.astype(int), len(DEPTH_STOPS) - 2)
    share = (at - low)[..., None]
    return np.floor(DEPTH_STOPS[low] * (1 - share) + DEPTH_STOPS[low + 1] * share + 0.5).astype(
        np.uint8)


def normal_colours(normals: np.ndarray) -> np.ndarray:
    """Unit vectors [3,h,w] in camera axes -> uint8 [h,w,3]: red right, green up, blue towards the
    camera."""
    return to_bytes((normals * np.array([1, -1, -1]).reshape(3, 1, 1) + 1) / 2)


def to_bytes(colours: np.ndarray) -> np.ndarray:
    """[3,h,w] in [0,1] -> uint8 [h,w,3]."""
    return np.floor(np.clip(colours, 0, 1).transpose(1, 2, 0) * 255 + 0.5).astype(np.uint8)


def own_colours(features: np.ndarray) -> np.ndarray:
    """Features [D,h,w] -> uint8 [h,w,3] by this frame's own three main directions, for models
    without `colours`."""
    d, h, w = features.shape
    flat = features.reshape(d, -1).T.astype(np.float64)               # [h*w,D]
    centred = flat - flat.mean(0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    along = centred @ axes[:3].T                                      # [h*w,3]
    low, high = np.percentile(along, [1, 99], axis=0)
    return to_bytes(((along - low) / np.maximum(high - low, 1e-9)).T.reshape(3, h, w))


def match(descriptors: np.ndarray, other: np.ndarray, x: float,
          y: float) -> tuple[float, float, np.ndarray]:
    """Where the other view shows the point (x, y), both in [0,1] of the picture: (x, y, likeness
    [h,w] in [-1,1]).

    descriptors, other: unit vectors [C,h,w]. The point's own is read between cells; the answer is
    the best cell, refined by the likeness of its neighbours.
    """
    _, h, w = descriptors.shape
    column, row = np.clip(x * w - 0.5, 0, w - 1), np.clip(y * h - 0.5, 0, h - 1)
    c, r = min(int(column), w - 2), min(int(row), h - 2)
    u, v = column - c, row - r
    asked = (descriptors[:, r, c] * (1 - u) * (1 - v) + descriptors[:, r, c + 1] * u * (1 - v)
             + descriptors[:, r + 1, c] * (1 - u) * v + descriptors[:, r + 1, c + 1] * u * v)
    likeness = np.tensordot(asked / np.linalg.norm(asked), other, 1)  # [h,w]
    best_row, best_column = divmod(int(likeness.argmax()), w)
    rows = np.arange(max(best_row - 1, 0), min(best_row + 2, h))
    columns = np.arange(max(best_column - 1, 0), min(best_column + 2, w))
    weight = np.exp((likeness[np.ix_(rows, columns)] - likeness.max()) * 30)
    weight /= weight.sum()
    across, down = (weight.sum(0) * (columns + 0.5)).sum() / w, (weight.sum(1) *
                                                                 (rows + 0.5)).sum() / h
    return float(across), float(down), likeness
