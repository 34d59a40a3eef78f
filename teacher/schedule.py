"""The one learning-rate schedule: linear warm-up, then a cosine to 1 % of the peak."""
from math import cos, pi

from torch.optim import Optimizer


def set_lr(optimizer: Optimizer, peak: float, step: int, total: int, warm: int) -> None:
    """Sets every group's rate for `step` (0-based) of `total`; the first `warm` steps rise linearly to `peak`."""
    if step < warm:
        share = (step + 1) / warm
    else:
        share = 0.01 + 0.99 * 0.5 * (1 + cos(pi * (step - warm) / max(1, total - warm)))
    for group in optimizer.param_groups:
        group["lr"] = peak * share
