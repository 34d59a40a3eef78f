"""The least time a student can take on a Jetson, from public figures: computed, never measured.

time >= max(operations / peak rate, bytes / memory bandwidth). A small model at batch 1 reaches a
fraction of either: the table ranks devices and shows which limit is nearer; it promises nothing.
"""
from dataclasses import dataclass
from typing import Literal

from student.config import StudentConfig

Rate = Literal["int8", "fp16"]
# dense INT8 operations of an Ampere tensor core on Orin: 64 x 1024 x 1.3 GHz = 85 TOPS
_OPS_PER_CLOCK = 1024


@dataclass(frozen=True)
class Device:
    """Dense peaks in 10^12 operations a second (NVIDIA's headlines count sparsity, which is twice
    that), GB/s."""
    name: str
    int8_tops: float
    fp16_tflops: float
    bandwidth_gbs: float


def _orin(name: str, tensor_cores: int, ghz: float, bandwidth_gbs: float) -> Device:
    """GPU alone, without DLA: e.g. 170 TOPS sparse of AGX Orin 64 GB is 85 dense."""
    dense = tensor_cores * _OPS_PER_CLOCK * ghz / 1000
    return Device(name, dense, dense / 2, bandwidth_gbs)


DEVICES = (
    _orin("Orin Nano 8 GB", 32, 0.625, 68), _orin("Orin Nano Super", 32, 1.020, 102),
    _orin("Orin NX 16 GB", 32, 0.918, 102.4), _orin("AGX Orin 64 GB", 64, 1.300, 204.8),
    # its FP8 dense rate, taken for INT8 (none is published), and half of it
    Device("Thor T5000", 517, 259, 273),
)


def operations(config: StudentConfig) -> float:
    """Multiplications and additions of one frame: Linears, patch embedding, attention products,
    head."""
    n, c = config.grid**2, config.width
    block = n * 12 * c * c + 2 * n * n * c  # qkv 3, proj 1, fc1 4, fc2 4; q k^T and softmax v
    return 2.0 * (config.depth * block + n * 3 * config.patch**2 * c + n * c * config.out_dim)


def traffic(config: StudentConfig, rate: Rate) -> float:
    """Bytes to and from memory for one frame if every fused layer reads and writes its tensors
    once."""
    n, c = config.grid**2, config.width
    weights = config.depth * 12 * c * c * (1 if rate == "int8" else 2)
    ends = 2 * (3 * config.patch**2 * c + n * c + c * config.out_dim)  # stay in half
    # LayerNorms and residuals 8, qkv 4, attention 4, proj 2, MLP 10 widths of tokens, in half
    activations = config.depth * 28 * n * c * 2
    return float(weights + ends + activations)


def least_ms(device: Device, config: StudentConfig, rate: Rate) -> tuple[float, str]:
    """(milliseconds of one frame, which limit it is: "compute" or "memory")."""
    peak = device.int8_tops if rate == "int8" else device.fp16_tflops
    compute, memory = operations(config) / peak / 1e9, traffic(config,
                                                               rate) / device.bandwidth_gbs / 1e6
    return max(compute, memory), "compute" if compute > memory else "memory"


def table() -> str:
    """Markdown: a row a device, least milliseconds of one frame of ViT-Ti, S and B."""
    sizes: tuple[Literal["ti", "s", "b"], ...] = ("ti", "s", "b")
    lines = ["| computed, not measured | INT8 TOPS | FP16 TFLOPS | GB/s | " +
             " | ".join(f"ViT-{size.title()} INT8 / FP16, ms >=" for size in sizes) + " |",
             "|---|" + "---|" * 6]
    for device in DEVICES:
        cells = []
        for size in sizes:
            config = StudentConfig(size=size)
            (int8, limit), (fp16, half_limit) = (least_ms(device, config, rate)
                                                 for rate in ("int8", "fp16"))
            cells.append(f"{int8:.2f} ({limit}) / {fp16:.2f} ({half_limit})")
        lines.append(f"| {device.name} | {device.int8_tops:.0f} | {device.fp16_tflops:.0f} | "
                     f"{device.bandwidth_gbs:g} | {' | '.join(cells)} |")
    return "\n".join(lines)
