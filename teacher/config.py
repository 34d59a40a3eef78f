"""Configurations of the teacher's trainings. Imports no torch: `--help` reads this module."""
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class DenseTraining:
    epochs: int = 14
    batch: int = 32     # frames
    lr: float = 2e-3
    width: int = 128


@dataclass(frozen=True)
class PretrainConfig:
    out: Path = Path("runs/wan-nano")
    # an earlier wan-nano to continue from; with vae_steps 0 its VAE stays as it is
    init: Path | None = None
    clips: int = 2000          # training clips
    held_out: int = 64         # clips of unseen rooms and furniture, for PSNR and the sample sheet
    frames: int = 9            # per clip, 4n+1
    vae_steps: int = 4000
    vae_batch: int = 32        # clips a step and process
    vae_crop: int = 112        # px, multiple of 16
    vae_lr: float = 1e-3
    # > 0: as many steps as fit, fixed (and logged) once the speed is measured
    vae_seconds: float = 0.0
    flow_steps: int = 20000
    flow_batch: int = 96       # clips a step and process
    flow_lr: float = 1e-3
    flow_seconds: float = 0.0  # as vae_seconds
    ema: float = 0.9995
    save_every: int = 1000     # steps between resumable checkpoints
    workers: int = 2           # rendering processes
    seed: int = 0

    def __post_init__(self) -> None:
        if self.vae_steps < 1 and self.init is None:
            raise ValueError(
                "pretrain.vae_steps is 0, which needs an earlier generator: give --init FOLDER")
        for part in ("vae", "transformer"):
            if self.init is not None and not (self.init / part / "config.json").is_file():
                raise ValueError(
                    f"pretrain.init: {self.init} holds no generator (no {part}/config.json)")
        if self.frames % 4 != 1:
            raise ValueError(f"pretrain.frames is {self.frames}, expected 4n+1 (5, 9, 17): "
                             "Wan's VAE silently drops the rest")
