"""Configurations of the teacher's trainings. Imports no torch: `--help` reads this module."""
from dataclasses import dataclass


@dataclass(frozen=True)
class DenseTraining:
    epochs: int = 14
    batch: int = 32     # frames
    lr: float = 2e-3
    width: int = 128
