"""Other towers by name, KIND:FOLDER, as `vega3d teacher probe --also` takes them."""
from pathlib import Path

from teacher.diffusion import TOWERS, load_diffusion
from teacher.encoders import ENCODERS, ImageTower, load_encoder
from teacher.noised import DiffusionTower


def open_other(name: str) -> ImageTower | DiffusionTower:
    """dinov2:FOLDER, dinov3:, vjepa2:, unet:, svd:, cogvideox: or ltx:, with that tower's defaults. ValueError else."""
    kind, _, folder = name.partition(":")
    if kind in ENCODERS and folder:
        return load_encoder(kind, Path(folder))
    if kind in TOWERS and folder:
        return load_diffusion(kind, Path(folder))
    raise ValueError(f"{name}: not a tower; expected KIND:FOLDER with KIND one of {', '.join([*ENCODERS, *TOWERS])}")
