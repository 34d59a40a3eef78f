"""A small run folder of the real `distill run`, from drawn rooms and a tiny random generator."""
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from safetensors.torch import save_file

from distill.config import RunConfig, ScenesConfig, StudentTraining, TeacherConfig
from scenes.clip import Clip, SceneObject, Source
from scenes.furniture.pack import CLASSES
from student.config import StudentConfig
from teacher.config import DenseTraining
from teacher.towers.tap import Tap

PX, FRAMES = 224, 5
COUNTS = {"train": 6, "val": 1, "test": 4}


class DrawnRooms:
    """A floor, a back wall and one box, seen by a camera that slides sideways."""

    def __init__(self, labelled: bool = True):
        self.labelled = labelled

    def ids(self, split: str) -> list[str]:
        return [f"{split}/{i}" for i in range(COUNTS[split])]

    def clip(self, clip_id: str) -> Clip:
        split, number = clip_id.split("/")
        rng = np.random.default_rng([int(number), len(split)])
        box = rng.uniform(0.1, 0.5, 2), rng.uniform(0.8, 2.0)
        colours, wall = rng.uniform(60, 255, (3, 3)), rng.uniform(3, 6)
        views = [_draw(box, colours, wall, 0.04 * t) for t in range(FRAMES)]
        frames, depth, normals, instances = (np.stack(v) for v in zip(*views, strict=True))
        if not self.labelled:
            return Clip(clip_id, frames)
        objects = [
            SceneObject(i + 1, CLASSES[i], CLASSES[i], (0, 0, 0), (1, 1, 1)) for i in range(3)
        ]
        return Clip(clip_id, frames, depth, normals, instances, objects=objects)


def _draw(box: tuple, colours: np.ndarray, wall: float, shift: float) -> tuple[np.ndarray, ...]:
    v, u = np.mgrid[0:PX, 0:PX] / PX
    floor = 1.2 / np.maximum(v - 0.45, 1e-3)  # [H,W] metres
    (x, y), near = box
    inside = (abs(u - x - shift - 0.15) < 0.15) & (abs(v - y - 0.2) < 0.2)
    kind = np.where(inside, 2, np.where(floor < wall, 1, 0))
    depth = np.choose(kind, [wall, floor, near]).astype(np.float32)
    facing = np.array([[0, 0, -1], [0, -1, 0], [0, 0, -1]])  # wall, floor, box
    image = colours[kind] * np.exp(-depth / 7)[..., None]                              # [H,W,3]
    return (image.transpose(2, 0, 1).astype(np.uint8), depth,
            (127 * facing[kind]).transpose(2, 0, 1).astype(np.int8), (kind + 1).astype(np.int32))


def tiny_generator(folder: Path) -> Path:
    """Random Wan weights in the diffusers layout, 4 blocks of width 64."""
    torch.manual_seed(0)
    AutoencoderKLWan(base_dim=8, z_dim=16, dim_mult=[1, 2, 2, 2], num_res_blocks=1,
                     temperal_downsample=[False, True, True]).save_pretrained(folder / "vae")
    WanTransformer3DModel(num_attention_heads=2, attention_head_dim=32, text_dim=32, freq_dim=32,
                          ffn_dim=128, num_layers=4,
                          rope_max_seq_len=64).save_pretrained(folder / "transformer")
    save_file({"prompt": torch.zeros(1, 1, 32)}, folder / "prompt.safetensors")
    return folder


def use(source: Source, patch: pytest.MonkeyPatch) -> None:
    """Makes every run find its clips in `source`."""
    patch.setattr("distill.clips.open_source", lambda config, cache, render: (source, "drawn"))


def make_run(root: Path, labelled: bool = True, depth: int = 2) -> Path:
    """Trains teacher heads and a student for an epoch and exports FP32, FP16 and a CPU INT8
    ONNX."""
    from distill.stages import run_distillation

    config = RunConfig(
        name="drawn", runs=root, scenes=ScenesConfig(frames=FRAMES), seeds=(0,), device="cpu",
        teacher=TeacherConfig(str(tiny_generator(root / "generator")), Tap(block=2, seeds=2),
                              DenseTraining(epochs=4, batch=8, width=32)),
        student=StudentTraining(StudentConfig(depth=depth, stem="patch"), "scratch", epochs=1,
                                batch=8))
    with pytest.MonkeyPatch.context() as patch:
        use(DrawnRooms(labelled), patch)
        return run_distillation(config)


def export(folder: Path) -> None:
    """The files of `vega3d export onnx`, by its own FP32 and FP16 passes and a quick dynamic INT8
    in NNCF's place."""
    from onnxruntime.quantization import quantize_dynamic

    from export.artefact import save_onnx
    from export.graph.export_onnx import export_onnx
    from export.graph.fp16 import to_half
    from records.files import sha256
    from student.vit import load_student

    model, out = export_onnx(load_student(folder / "student")), folder / "export"
    facts = {"student": {"sha256": sha256(folder / "student" / "student.safetensors")},
             "parity": {"cosine_mean": 0.9995, "cosine_p1": 0.996, "delta1_drop": 0.02}}
    save_onnx(model, out / "model.onnx", {**facts, "precision": "fp32"})
    save_onnx(to_half(model), out / "model.fp16.onnx", {**facts, "precision": "fp16"})
    quantize_dynamic(out / "model.onnx", out / "int8.onnx", op_types_to_quantize=["MatMul"])
    import onnx

    save_onnx(onnx.load(out / "int8.onnx"), out / "model.int8.cpu.onnx",
              {**facts, "precision": "int8"})
    (out / "int8.onnx").unlink()


@cache
def drawn_run() -> Path:
    """One exported run folder a test session."""
    torch.set_num_threads(1)
    folder = make_run(Path(mkdtemp(prefix="vega3d_bench_")))
    export(folder)
    return folder
