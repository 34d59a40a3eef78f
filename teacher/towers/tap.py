"""Where and how a generator is read. Imports no torch: `--help` reads this module."""
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from records.options import Draws, Level, Pixels, Seed, check_ranges

if TYPE_CHECKING:
    import torch

PAPER_SIZES = {720: (720, 1280), 480: (480, 832)}  # short side -> H, W of the released scripts
TINY_VAES = ("taew2_1", "lighttaew2_1")  # names on the hub, and of local files
# fields newer than the first stores, and their values then: left out of a spec that has these, so
# that its key stays
_FIRST = {"geometry": "registered", "side": None, "tail": "refuse", "noise": "fresh",
          "vae": "wan"}


@dataclass(frozen=True)
class Tap:
    """Where and how a generator is read. Defaults: as the shipped student was distilled."""
    block: Level = 6         # 0-based
    k: Level = 300           # noise level, 0 (clean) .. 1000 (pure noise); t = k/1000
    # each frame as a one-frame video, or the clip together
    frames: Literal["image", "video"] = "image"
    seeds: Draws = 4         # noise draws that are averaged
    seed: Seed = 0
    # image mode: the same draws for every frame, or, as released, new ones for each frame of a clip
    noise: Literal["shared", "fresh"] = "shared"
    # complete frames, or the released code's squash, crop and noise schedule
    geometry: Literal["registered", "paper"] = "registered"
    # px of the short side the generator sees; None: as it is (paper: 720)
    side: Pixels | None = None
    # video mode, not 4n+1 frames: refuse, or repeat the last and drop its features
    tail: Literal["refuse", "pad"] = "refuse"
    # auto: bf16 from 100 M parameters on; fp8: bf16 with the blocks' products in FP8
    precision: Literal["auto", "fp32", "bf16", "fp8"] = "auto"
    # wan: the generator's; image mode: taew2_1 or lighttaew2_1, or a file NAME.safetensors
    vae: str = "wan"

    def __post_init__(self) -> None:
        check_ranges(self, "tap")
        if self.vae not in ("wan", *TINY_VAES) and (
                Path(self.vae).name not in [f"{name}.safetensors" for name in TINY_VAES]):
            raise ValueError(f"tap.vae is {self.vae}, expected wan, {', '.join(TINY_VAES)}, or a "
                             "local file NAME.safetensors of these (a .pth is a pickle)")
        if self.vae != "wan" and self.frames == "video":
            raise ValueError(f"tap.vae {self.vae} reads single frames; set tap.frames to image, "
                             "or tap.vae to wan")
        if self.geometry == "paper" and self.side not in (None, *PAPER_SIZES):
            raise ValueError(
                f"tap.side is {self.side}, expected 720 or 480: the sizes of tap.geometry paper")

    @property
    def time(self) -> tuple[float, float]:
        """(timestep, share of noise): k and k/1000, or in paper geometry `paper_time`."""
        return paper_time(self.k) if self.geometry == "paper" else (float(self.k), self.k / 1000)

    def spec(self, precision: "torch.dtype") -> dict:
        """The fields that change the features; `precision` only where it is not float32."""
        spec = {field.name: getattr(self, field.name) for field in fields(self)
                if field.name != "precision"}
        if self.frames == "video":
            spec["noise"] = "fresh"  # a clip has one draw either way
        spec = {name: value for name, value in spec.items()
                if name not in _FIRST or value != _FIRST[name]}
        dtype = "fp8" if self.precision == "fp8" else str(precision).removeprefix("torch.")
        return spec if dtype == "float32" else spec | {"precision": dtype}


def stored_tap(stored: dict) -> Tap:
    """The tap of a file that may be older than some fields."""
    return Tap(**_FIRST | stored)


def paper_time(k: int) -> tuple[float, float]:
    """(timestep, sigma) of the released code, the nearest to k of FlowUniPC's 1000 steps, shift 5:
    300 -> (299, 0.2999), 0 -> (4, 0.005)."""
    import torch

    even = torch.linspace(0.999, 0, 1001, dtype=torch.float64)[:-1]
    sigmas = 5 * even / (1 + 4 * even)
    steps = (1000 * sigmas).long()
    nearest = (steps - k).abs().argmin()
    return float(steps[nearest]), float(sigmas[nearest])
