"""Lower bounds on a student's latency on a Jetson, from published figures, not measured.

time >= max(operations / peak rate, bytes / memory bandwidth)
"""
from dataclasses import dataclass
from typing import Literal

from student.config import StudentConfig
from teacher.towers.efficientnet import SEMANTIC_DIM

Rate = Literal["int8", "fp16"]
SIZES: tuple[Literal["ti", "s", "b"], ...] = ("ti", "s", "b")
_OPS_PER_CLOCK = 1024  # dense INT8, of an Ampere tensor core: 64 x 1024 x 1.3 GHz = 85 TOPS


@dataclass(frozen=True)
class JetsonSpec:
    """Dense peaks in 10^12 operations a second (NVIDIA's sparse headlines are twice that), GB/s."""
    name: str
    int8_tops: float
    fp16_tflops: float
    bandwidth_gbs: float


def _orin(name: str, tensor_cores: int, ghz: float, bandwidth_gbs: float) -> JetsonSpec:
    """The GPU alone, without DLA: e.g. 170 TOPS sparse of AGX Orin 64 GB are 85 dense."""
    dense = tensor_cores * _OPS_PER_CLOCK * ghz / 1000
    return JetsonSpec(name, dense, dense / 2, bandwidth_gbs)


DEVICES = (
    _orin("Orin Nano 8 GB", 32, 0.625, 68), _orin("Orin Nano Super", 32, 1.020, 102),
    _orin("Orin NX 16 GB", 32, 0.918, 102.4), _orin("AGX Orin 64 GB", 64, 1.300, 204.8),
    # INT8: its dense FP8 rate, as none is published; FP16: half of it
    JetsonSpec("Thor T5000", 517, 259, 273),
)


# of the stem lite0 for one frame of 224 px: multiply-adds, weights, values read and written
_STEM_OPERATIONS, _STEM_WEIGHTS, _STEM_VALUES = 243.3e6, 0.70e6, 12.1e6


def _embedded(config: StudentConfig) -> int:
    """Values that the embedding makes a token of."""
    return 3 * config.patch**2 if config.stem == "patch" else SEMANTIC_DIM


def operations(config: StudentConfig) -> float:
    """Multiplications and additions of one frame: stem, embedding, Linears, attention, head."""
    n, c = config.grid**2, config.width
    block = n * 12 * c * c + 2 * n * n * c  # qkv 3, proj 1, fc1 4, fc2 4; q k^T and softmax v
    ends = n * c * (_embedded(config) + config.out_dim)
    return 2.0 * (config.depth * block + ends + _STEM_OPERATIONS * (config.stem == "lite0"))


def traffic(config: StudentConfig, rate: Rate) -> float:
    """Bytes to and from memory for one frame, each fused layer reading and writing tensors once."""
    n, c = config.grid**2, config.width
    weights = config.depth * 12 * c * c * (1 if rate == "int8" else 2)
    ends: float = 2 * (_embedded(config) * c + n * c + c * config.out_dim)  # stay in half
    if config.stem == "lite0":
        ends += 2 * (_STEM_WEIGHTS + _STEM_VALUES)
    # LayerNorms and residuals 8, qkv 4, attention 4, proj 2, MLP 10 widths of tokens, in half
    activations = config.depth * 28 * n * c * 2
    return float(weights + ends + activations)


def lower_bound_ms(device: JetsonSpec, config: StudentConfig, rate: Rate) -> tuple[float, str]:
    """(milliseconds of one frame, the limit that gives it: "compute" or "memory")."""
    peak = device.int8_tops if rate == "int8" else device.fp16_tflops
    compute = operations(config) / peak / 1e9
    memory = traffic(config, rate) / device.bandwidth_gbs / 1e6
    return max(compute, memory), "compute" if compute > memory else "memory"


def lower_bounds_table() -> str:
    """Markdown: a row a device, the lower bound of one frame of ViT-Ti, S and B."""
    columns = [f"ViT-{size.title()} INT8 / FP16, ms >=" for size in SIZES]
    lines = [f"| computed, not measured | INT8 TOPS | FP16 TFLOPS | GB/s | {' | '.join(columns)} |",
             "|---" * 7 + "|"]
    for device in DEVICES:
        cells = []
        for size in SIZES:
            int8, int8_limit = lower_bound_ms(device, StudentConfig(size=size), "int8")
            fp16, fp16_limit = lower_bound_ms(device, StudentConfig(size=size), "fp16")
            cells.append(f"{int8:.2f} ({int8_limit}) / {fp16:.2f} ({fp16_limit})")
        lines.append(f"| {device.name} | {device.int8_tops:.0f} | {device.fp16_tflops:.0f} | "
                     f"{device.bandwidth_gbs:g} | {' | '.join(cells)} |")
    return "\n".join(lines)
