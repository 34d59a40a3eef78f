"""Statistics and pictures of the fusion gate: where semantic and where generative tokens count."""
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from records.files import atomic_write
from scenes.clip import Clip
from scenes.dense import NO_CLASS, dense_targets
from scenes.furniture.pack import CLASSES

NEAR = (1.5, 3.0)  # m: nearer, between, farther


def gate_rows(clips: Sequence[Clip], gates: np.ndarray) -> Iterator[dict]:
    """Mean and standard deviation of the semantic share by `group` and `name`.

    Groups are class (of most of a token's pixels), distance, row of the frame, and border. gates
    [N,T,14,14] in [0,1], of labelled clips.
    """
    labels = [_labels(clip) for clip in clips]
    for group in labels[0]:
        names = np.stack([label[group] for label in labels])  # [N,T,14,14] text
        for name in np.unique(names[names != ""]):
            values = gates[names == name].astype(float)
            yield {
                "group": group, "name": str(name), "tokens": len(values),
                "gate_mean": float(values.mean()), "gate_std": float(values.std())
            }


def draw_gates(clips: Sequence[Clip], gates: np.ndarray, path: Path) -> None:
    """PNG of each clip's first frame and its gate: blue generative, red semantic, white mean."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.colors import TwoSlopeNorm

    figure, axes = plt.subplots(2, len(clips), figsize=(2.4 * len(clips), 5.2), squeeze=False,
                                constrained_layout=True)
    middle = float(gates.mean())
    scale = TwoSlopeNorm(middle, min(float(gates.min()), middle - 1e-3),
                         max(float(gates.max()), middle + 1e-3))
    for column, (clip, gate) in zip(axes.T, zip(clips, gates, strict=True), strict=True):
        frame = clip.frames[0].transpose(1, 2, 0)
        column[0].imshow(frame)
        column[1].imshow(frame.mean(2), cmap="gray", extent=(0, 14, 14, 0))
        shown = column[1].imshow(gate[0].astype(float), cmap="coolwarm", norm=scale, alpha=0.65,
                                 extent=(0, 14, 14, 0))
        for axis in column:
            axis.axis("off")
    figure.colorbar(shown, ax=axes[1].tolist(), location="bottom", shrink=0.5,
                    label="gate: semantic share")
    with atomic_write(path) as scratch:
        figure.savefig(scratch, dpi=110)
    plt.close(figure)


def _labels(clip: Clip) -> dict[str, np.ndarray]:
    """The label of each token by group, [T,14,14] text; "" = unknown."""
    targets = dense_targets(clip)  # [T,56,56]
    t = len(targets.depth)
    cells = targets.classes.reshape(t, 14, 4, 14, 4).swapaxes(2, 3).reshape(t, 14, 14, 16)
    votes = np.stack([(cells == c).sum(-1) for c in range(len(CLASSES))], -1)  # [T,14,14,classes]
    named = np.array(CLASSES)[votes.argmax(-1)]
    classes = np.where(votes.max(-1) > 0, named, "")
    depth = np.where(targets.depth > 0, targets.depth, np.nan).reshape(t, 14, 4, 14, 4)
    far = _median(depth.swapaxes(2, 3).reshape(t, 14, 14, 16))
    distance = np.select([np.isnan(far), far < NEAR[0], far < NEAR[1]],
                         ["", f"under {NEAR[0]} m", f"{NEAR[0]} to {NEAR[1]} m"],
                         f"over {NEAR[1]} m")
    rows = np.repeat(["upper third", "middle third", "lower third"], [5, 4, 5])
    border = np.where((cells != cells[..., :1]).any(-1) & (cells != NO_CLASS).all(-1),
                      "two classes", "one class")
    return {
        "class": classes, "distance": distance,
        "frame": np.broadcast_to(rows[:, None], (t, 14, 14)), "border": border
    }


def _median(values: np.ndarray) -> np.ndarray:
    """np.nanmedian over the last axis, without a warning for rows of NaN."""
    out = np.full(values.shape[:-1], np.nan)
    some = np.isfinite(values).any(-1)
    out[some] = np.nanmedian(values[some], -1)
    return out
