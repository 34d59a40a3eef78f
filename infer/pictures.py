"""Outputs as colours, by the same formulas as the web page (export/web/static/colours.js)."""
import numpy as np
from PIL import Image

PICTURE_PX, GAP = 448, 8  # side of the written pictures; between two of them
NEAR_M, FAR_M = 0.5, 8.0  # fixed, on a log scale: a range fitted to each frame flickers
# near to far, ever darker, so that it reads in grey as well
DEPTH_STOPS = np.array([[255, 244, 214], [255, 201, 120], [246, 138, 89], [214, 81, 99],
                        [156, 50, 118], [93, 34, 116], [38, 20, 78]], np.float64)


def depth_colours(depth: np.ndarray) -> np.ndarray:
    """Metres [h,w] -> uint8 [h,w,3]."""
    relative = np.log(np.maximum(depth, 1e-3) / NEAR_M) / np.log(FAR_M / NEAR_M)
    stop = np.clip(relative, 0, 1) * (len(DEPTH_STOPS) - 1)
    low = np.minimum(stop.astype(int), len(DEPTH_STOPS) - 2)
    share = (stop - low)[..., None]
    colours = DEPTH_STOPS[low] * (1 - share) + DEPTH_STOPS[low + 1] * share
    return np.floor(colours + 0.5).astype(np.uint8)


def grey(share: np.ndarray) -> np.ndarray:
    """[h,w] in [0,1] -> uint8 [h,w,3]."""
    return to_bytes(np.broadcast_to(share, (3, *share.shape)))


def resized(picture: np.ndarray) -> np.ndarray:
    """uint8 [h,w,3] at the size that is written."""
    size = (PICTURE_PX, PICTURE_PX)
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR))


def normal_colours(normals: np.ndarray) -> np.ndarray:
    """Unit vectors [3,h,w] in camera axes -> uint8 [h,w,3]: red right, green up, blue towards the
    camera."""
    return to_bytes((normals * np.array([1, -1, -1]).reshape(3, 1, 1) + 1) / 2)


def to_bytes(colours: np.ndarray) -> np.ndarray:
    """[3,h,w] in [0,1] -> uint8 [h,w,3]."""
    return np.floor(np.clip(colours, 0, 1).transpose(1, 2, 0) * 255 + 0.5).astype(np.uint8)


def frame_pca_colours(features: np.ndarray) -> np.ndarray:
    """Features [D,h,w] -> uint8 [h,w,3] by this frame's principal components, for models without
    `colours`."""
    d, h, w = features.shape
    flat = features.reshape(d, -1).T.astype(np.float64)               # [h*w,D]
    centred = flat - flat.mean(0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    projected = centred @ axes[:3].T                                  # [h*w,3]
    low, high = np.percentile(projected, [1, 99], axis=0)
    return to_bytes(((projected - low) / np.maximum(high - low, 1e-9)).T.reshape(3, h, w))
