"""Where and how the generator is read, and the key of everything made from that."""
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch  # at run time only where it is used: `--help` reads this module

PAPER_SIZES = {720: (720, 1280), 480: (480, 832)}  # short side -> H, W of the released scripts


@dataclass(frozen=True)
class Tap:
    """Where and how the generator is read. The defaults are what the shipped student was distilled
    at."""
    block: int = 5                                # 0-based
    k: int = 500  # noise level, 0 (clean) .. 1000 (pure noise); t = k/1000
    # each frame its own one-frame video, or the clip together
    frames: Literal["image", "video"] = "image"
    seeds: int = 4                                # noise draws that are averaged
    seed: int = 0
    # the whole frame; or the released squash, crop and clock
    geometry: Literal["registered", "paper"] = "registered"
    side: int | None = None  # px of the short side the generator sees; None: as it is (paper: 720)
    # video mode, not 4n+1 frames: refuse, or repeat the last and drop it
    tail: Literal["refuse", "pad"] = "refuse"
    precision: Literal["auto", "fp32", "bf16"] = "auto"      # auto: bf16 from 100 M parameters on

    def __post_init__(self) -> None:
        if not 0 <= self.k <= 1000:
            raise ValueError(f"tap.k is {self.k}, expected 0 (clean) to 1000 (pure noise)")
        if self.seeds < 1:
            raise ValueError(f"tap.seeds is {self.seeds}, expected at least 1")
        if self.geometry == "paper" and self.side not in (None, *PAPER_SIZES):
            raise ValueError(
                f"tap.side is {self.side}, expected 720 or 480: the sizes of tap.geometry paper")
        if self.side is not None and self.side < 1:
            raise ValueError(f"tap.side is {self.side}, expected pixels, at least 1")

    @property
    def time(self) -> tuple[float, float]:
        """(timestep as the transformer is told it, share of noise): k and k/1000, or the released
        scheduler's pair."""
        return paper_time(self.k) if self.geometry == "paper" else (float(self.k), self.k / 1000)

    def spec(self, precision: "torch.dtype") -> dict:
        """What of the tap changes the numbers. Knobs at their default are left out where they came
        later than the first stores and students, so that those keep their key."""
        late = {"geometry", "side", "tail"}
        known = {
            f.name: getattr(self, f.name)
            for f in fields(self)
            if f.name != "precision" and not (f.name in late and getattr(self, f.name) == f.default)
        }
        return known | ({} if str(precision) == "torch.float32" else
                        {"precision": str(precision).removeprefix("torch.")})


def paper_time(k: int) -> tuple[float, float]:
    """(timestep, sigma) of the released code: the nearest to k among FlowUniPC's 1000 steps with
    shift 5, truncated to an integer. 300 -> (299, 0.2999), 0 -> (4, 0.005), 1000 -> (999,
    0.9998)."""
    import torch

    even = torch.linspace(0.999, 0, 1001, dtype=torch.float64)[:-1]
    sigmas = 5 * even / (1 + 4 * even)
    steps = (1000 * sigmas).long()
    nearest = (steps - k).abs().argmin()
    return float(steps[nearest]), float(sigmas[nearest])
