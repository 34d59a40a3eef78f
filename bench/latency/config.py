"""How latency is measured; apart from the code so that `vega3d bench --help` need not import
torch."""
import re
from dataclasses import dataclass, field
from typing import Literal

from bench.latency.timing import Plan


@dataclass(frozen=True)
class LatencyConfig:
    plan: Plan = field(default_factory=Plan)
    # compile too, if you have the minutes
    backends: str = "torch,ort-cpu,ort-cuda,ort-trt,trt,rtx,openvino"
    threads: int = 1                # of the CPU, for every backend alike
    batch: tuple[int, ...] = (1,)   # frames a call of the student
    device: Literal["auto", "cpu", "cuda"] = "auto"  # the teacher's; auto: a GPU where there is one
    teacher: bool = True            # of a run: time its teacher's stages too
    memory: bool = True  # start each file once more, in a process of its own, for its peak memory
    energy: bool = True  # of GPU rows: let each run for a second more beside the power meter
    # time the same files with trtexec and polygraphy too, where they are installed
    crosscheck: bool = False
    # such as 10m: then let the fastest student run so long, and watch clocks and heat
    soak: str = ""

    def __post_init__(self) -> None:
        if self.threads < 1 or not self.batch or min(self.batch) < 1:
            raise ValueError(
                f"bench: got threads {self.threads}, batch {self.batch}; expected at least 1 of "
                "each"
            )
        if self.soak and not re.fullmatch(r"\d+(\.\d+)?[smh]", self.soak):
            raise ValueError(
                f"bench: got soak {self.soak!r}, expected a time such as 90s, 10m or 1h")

    @property
    def names(self) -> list[str]:
        """The backends asked for."""
        return [name.strip() for name in self.backends.split(",") if name.strip()]

    @property
    def soak_seconds(self) -> float:
        return float(self.soak[:-1]) * {"s": 1, "m": 60, "h": 3600
                                        }[self.soak[-1]] if self.soak else 0.0
