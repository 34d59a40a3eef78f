"""How latency is measured; apart from the code so that `vega3d bench --help` need not import torch."""
from dataclasses import dataclass, field
from typing import Literal

from bench.timing import Plan


@dataclass(frozen=True)
class LatencyConfig:
    plan: Plan = field(default_factory=Plan)
    threads: int = 1                # of the CPU, for torch and onnxruntime alike
    batch: tuple[int, ...] = (1,)   # frames a call of the student
    device: Literal["auto", "cpu", "cuda"] = "auto"  # the teacher's; auto: a GPU where there is one
    teacher: bool = True            # time the teacher's stages too
    memory: bool = True             # start each file once more, in a process of its own, for its peak memory

    def __post_init__(self) -> None:
        if self.threads < 1 or not self.batch or min(self.batch) < 1:
            raise ValueError(f"bench: got threads {self.threads}, batch {self.batch}; expected at least 1 of each")
