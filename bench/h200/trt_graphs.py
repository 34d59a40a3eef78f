"""Students and their ONNX spellings for trt.py, made on the machine that measures:

    trt_graphs.py WORK SIZE BATCH [FOLDER]

SIZE ti takes the shipped weights, s and b random ones (seed 0) unless FOLDER holds a trained student. INT8 numbers by
the export's own smoothing and min-max ranges on WORK/frames.npz. Writes WORK/SIZE/: reference.npy, and every ONNX of
the plan at that batch, in the plan's order.
"""
import json
import sys
import traceback
from pathlib import Path

import numpy as np
import onnx
import torch

from bench.h200.trt_plan import BUILDS, JOBS, VARIANTS, Variant
from bench.h200.trt_vit import HEAD_WIDTH, LINEARS, Arrays, Quantised, to_onnx
from export.half import to_half
from export.qat import smoothed
from records.files import beside
from student.vit import SHIPPED, Student, StudentConfig, load_student

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def student_of(size: str, folder: str | None) -> Student:
    if folder:
        return load_student(folder).to(DEVICE)
    if size == "ti":
        return load_student(SHIPPED).to(DEVICE)
    torch.manual_seed(0)
    return Student(StudentConfig(size=size)).eval().to(DEVICE)  # type: ignore[arg-type]


def arrays_of(student: Student) -> Arrays:
    """Parameters as the exporter names them: Linear weights transposed to [in,out]."""
    state = {name: value.detach().cpu().numpy() for name, value in student.state_dict().items()}
    names = {name: name.replace(".weight", ".weight_t") for name, module in student.named_modules()
             if isinstance(module, torch.nn.Linear) for name in [f"{name}.weight"]}
    return {names.get(name, name): np.ascontiguousarray(value.T) if name in names else value
            for name, value in state.items() if not name.startswith("target_")}


@torch.no_grad()
def quantised_of(student: Student, frames: torch.Tensor) -> Quantised:
    """The smoothed student rounded to int8 steps, and the ranges of Linears' inputs and outputs. frames in [0,1]."""
    layers = [f"blocks.{i}.{name}" for i in range(len(student.blocks)) for name in LINEARS]
    smooth, factors = smoothed(student, frames, layers)
    ranges = _ranges(smooth, layers, frames)
    arrays, scales = arrays_of(smooth), {}
    for layer in layers:
        weight = arrays[f"{layer}.weight_t"]
        scales[layer] = np.maximum(np.abs(weight).max(0) / 127, 1e-9).astype(np.float32)  # [out]
        arrays[f"{layer}.weight_t"] = np.rint(weight / scales[layer]).astype(np.float32) * scales[layer]
    for layer, factor in factors.items():
        arrays[f"{layer}.factor"] = factor.cpu().numpy()
    return Quantised(arrays, scales, ranges)


def _ranges(student: Student, layers: list[str], frames: torch.Tensor) -> dict[str, float]:
    seen: dict[str, float] = {}

    def note(name: str, value: torch.Tensor) -> None:
        seen[name] = max(seen.get(name, 0.0), float(value.abs().max()))

    def watch(layer: str):
        def hook(module, inputs, output):
            note(layer, inputs[0])
            note(f"{layer}.out", output)
            if layer.endswith("attn.qkv"):
                q, k, v = output.chunk(3, -1)
                for name, part in (("q", q * HEAD_WIDTH**-0.5), ("k", k), ("v", v), ("softmax", torch.ones(1))):
                    note(f"{layer.removesuffix('.qkv')}.{name}", part)
        return hook

    hooks = [student.get_submodule(layer).register_forward_hook(watch(layer)) for layer in layers]
    for chunk in frames.split(8):
        student(chunk)
    for held in hooks:
        held.remove()
    return seen


def write(variant: Variant, arrays: Arrays, numbers: Quantised, batch: int, path: Path) -> None:
    wants = variant.spelling.quantised or variant.implicit
    model, ranges = to_onnx(arrays, batch, variant.spelling, numbers if wants else None)
    if variant.half:
        model = to_half(model)
    if variant.implicit:
        path.with_suffix(".ranges.json").write_text(json.dumps(ranges))
    with beside(path) as scratch:  # a job starts when its files are there
        onnx.save(model, scratch)


def main(work: Path, size: str, batch: int, folder: str | None = None) -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    frames = torch.from_numpy(np.load(work / "frames.npz")["heldout"]).to(DEVICE).float() / 255        # [32,3,H,W]
    seen = torch.from_numpy(np.load(work / "frames.npz")["calibration"]).to(DEVICE).float() / 255      # [32,3,H,W]
    student, out = student_of(size, folder), work / size
    out.mkdir(exist_ok=True)
    with torch.inference_mode():
        reference = (torch.cat([student(chunk) for chunk in frames.split(8)]).cpu().numpy())
    with beside(out / "reference.npy") as scratch:
        np.save(scratch, reference)
    arrays, numbers = arrays_of(student), quantised_of(student, seen)
    names = [name for job in (*BUILDS, *JOBS) if (job.size, job.batch) == (size, batch) for name in job.graphs]
    for name in names:
        try:
            write(VARIANTS[name], arrays, numbers, batch, out / f"{name}.b{batch}.onnx")
        except Exception:  # one spelling that cannot be written must not cost the others
            traceback.print_exc()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), *sys.argv[4:])
