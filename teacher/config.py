"""Configurations of the teacher's trainings and probes. Imports no torch: `--help` reads this."""
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from records.files import read_json
from records.options import (
    Batch,
    Count,
    CountOrNone,
    Depth,
    DepthUnit,
    Draws,
    Frames,
    Level,
    Pixels,
    Processes,
    Range,
    Rate,
    Seconds,
    Seed,
    Share,
    Weight,
    Width,
    check_ranges,
)

Mode = Literal["image", "video"]  # each frame its own one-frame video, or the clip as one
Pair = Annotated[int, Range(2, 1_000_000)]
LEVELS = (20, 100, 200, 300, 500, 700, 999)
CRITERIA = ("depth_r2_ridge", "xyz_r2_ridge", "corr_std_auc")
MLP_CRITERIA = ("depth_r2_mlp", "normal_cos", "delta1")
SEARCH_COLUMNS = (*CRITERIA, *MLP_CRITERIA, "corr_x100", "corr_random_x100", "corr_std_x100",
                  "corr_auc", "corr_pck", "snr")


@dataclass(frozen=True)
class DenseTraining:
    epochs: Count = 14
    batch: Batch = 32   # frames
    lr: Rate = 2e-3
    width: Width = 128

    def __post_init__(self) -> None:
        check_ranges(self, "teacher.heads")


@dataclass(frozen=True)
class PretrainConfig:
    out: Path = Path("runs/wan-nano")
    # an earlier wan-nano to continue from, or its VAE alone; with vae_steps 0 that is not trained
    init: Path | None = None
    clips: Count = 2000        # training clips
    held_out: Pair = 64        # clips of unseen rooms and furniture, for PSNR and the sample sheet
    frames: Frames = 9         # per clip, 4n+1
    vae_steps: CountOrNone = 4000
    vae_batch: Batch = 32      # clips a step and process
    vae_crop: Pixels = 112     # px, multiple of 16
    vae_lr: Rate = 1e-3
    # > 0: as many steps as fit, fixed (and logged) once the speed is known
    vae_seconds: Seconds = 0.0
    flow_steps: Count = 20000  # of the transformer
    flow_batch: Batch = 96     # clips a step and process
    flow_lr: Rate = 1e-3
    flow_seconds: Seconds = 0.0  # as vae_seconds
    width: Width = 256         # channels of the transformer, a multiple of 64; ignored with init
    depth: Depth = 10          # its blocks; ignored with init
    # frozen encoder whose features the tokens of block align_block are trained to predict
    align: Literal["none", "efficientnet-lite0"] = "none"
    align_block: CountOrNone = 5  # 0-based
    align_weight: Weight = 0.5
    align_t: tuple[Share, Share] = (0.0, 1.0)  # noise levels that are aligned
    t_focus: Share = 0.0       # share of noise levels drawn uniformly from t_range
    t_range: tuple[Share, Share] = (0.3, 0.7)
    validate_every: Count = 500  # steps between held-out flow losses, a multiple of 100
    ema: Share = 0.9995
    save_every: Count = 1000   # steps between resumable checkpoints
    workers: Processes = 2     # rendering processes
    seed: Seed = 0

    def __post_init__(self) -> None:
        check_ranges(self, "pretrain")
        if self.vae_steps < 1 and self.init is None:
            raise ValueError(
                "pretrain.vae_steps is 0, which needs an earlier generator: give --init FOLDER")
        if self.init is not None and not (self.init / "vae" / "config.json").is_file():
            raise ValueError(
                f"pretrain.init: {self.init} holds no generator (no vae/config.json)")
        if self.width < 64 or self.width % 64:
            raise ValueError(f"pretrain.width is {self.width}, expected a multiple of 64")
        if self.align != "none" and self.align_block >= (blocks := self.blocks()):
            raise ValueError(f"pretrain.align_block is {self.align_block}, expected 0 to "
                             f"{blocks - 1}")
        for name in ("align_t", "t_range"):
            low, high = getattr(self, name)
            if low >= high:
                raise ValueError(f"pretrain.{name} is {low} {high}, expected 0 <= low < high <= 1")
        if self.frames % 4 != 1:
            raise ValueError(f"pretrain.frames is {self.frames}, expected 4n+1 (5, 9, 17): "
                             "Wan's VAE silently drops the rest")

    def blocks(self) -> int:
        """Of the transformer that is trained: init's, if that has one."""
        earlier = self.init and self.init / "transformer" / "config.json"
        if earlier is None or not earlier.is_file():
            return self.depth
        return read_json(earlier, "leave --init out", kind=dict).get("num_layers", self.depth)

    def blocks_before(self) -> int:
        """That init's transformer was trained with: more than `blocks`, if it holds the first ones
        only, up to its tap, as the one that ships."""
        before = self.init and self.init / "pretrain.json"
        if before is None or not (before.is_file() and (before.parent / "transformer").is_dir()):
            return self.blocks()
        depth = read_json(before, "leave --init out", kind=dict).get("depth")
        return max(self.blocks(), depth if isinstance(depth, int) else 0)


@dataclass(frozen=True)
class ProbeConfig:
    # None: the wan-nano that ships; else a name, hub id or diffusers folder
    generator: Path | None = None
    clips: Pair = 120                    # of each split: val trains the probes, test scores them
    modes: tuple[Mode, ...] = ("image", "video")
    levels: tuple[Level, ...] = LEVELS   # k, in thousandths of pure noise
    averaged: Count = 8                  # noise draws of the second measurement of the best taps
    # other towers as rows, KIND:FOLDER (dinov2, dinov3, vjepa2, unet, cogvideox)
    also: tuple[str, ...] = ()
    seed: Seed = 0                       # of noise draws and probes
    device: str = "auto"                 # or a name of torch's, such as cpu

    def __post_init__(self) -> None:
        check_ranges(self, "probe")
        if not self.modes or not self.levels:
            raise ValueError("probe: needs at least one mode and one level")


@dataclass(frozen=True)
class AlignmentConfig:
    # what they add to the semantic encoder: names, folders, or other towers as KIND:FOLDER
    generators: tuple[str, ...] = ()
    # clips as `vega3d scenes render` writes them; None: rendered on the way
    rooms: Path | None = None
    rgbd: Path | None = None  # RGB-D frames beside, in a layout of vega3d bench real
    depth_unit: DepthUnit | None = None  # values of depth pictures a metre; None: their layout's
    shipped: str | None = None  # of the generators, the one that ships; also at its own tap
    fit_clips: Pair = 2000      # clips of train, which fit the probes
    val_clips: Pair = 300       # clips of val, which choose penalties and taps
    test_clips: Pair = 600      # clips of test, which are scored
    noise_levels: tuple[Level, ...] = (300, 500)  # to choose from, in thousandths of pure noise
    draws: Draws = 4            # noise draws that are averaged
    redraws: Count = 3          # seeds of random weights and of the MLP

    def __post_init__(self) -> None:
        check_ranges(self, "probe")
        if not self.noise_levels:
            raise ValueError("probe.noise_levels: needs at least one")
        if self.shipped is not None and self.shipped not in self.generators:
            raise ValueError(f"probe.shipped: {self.shipped} is not one of --generators")


@dataclass(frozen=True)
class SearchConfig:
    generator: str = "wan-nano"  # or a name, a hub id, a local folder in the diffusers layout
    clips: Pair = 100  # of each split: train fits the probes, val ranks, test scores the first
    modes: tuple[Mode, ...] = ("image", "video")
    levels: tuple[Level, ...] = (50, 100, 200, 300, 500, 700)  # k, in thousandths of pure noise
    mlp: bool = True  # also the MLP probes of depth and normals, which take most of the time
    # columns that decide, higher is better; empty: the default five, or three without the MLP
    by: tuple[str, ...] = ()
    resamples: Annotated[int, Range(1, 100_000)] = 1000  # of the clips, for intervals
    seed: Seed = 0        # of noise draws, probes and resamples
    device: str = "auto"  # or a name of torch's, such as cpu

    def __post_init__(self) -> None:
        check_ranges(self, "search")
        if not self.modes or not self.levels:
            raise ValueError("search: needs at least one mode and one level")
        columns = [c for c in SEARCH_COLUMNS if self.mlp or c not in MLP_CRITERIA]
        if unknown := [name for name in self.by if name not in columns]:
            raise ValueError(f"search: no column {', '.join(unknown)}; "
                             f"expected some of: {', '.join(columns)}")

    @property
    def criteria(self) -> tuple[str, ...]:
        return self.by or (*CRITERIA, *(MLP_CRITERIA[:2] if self.mlp else ()))
