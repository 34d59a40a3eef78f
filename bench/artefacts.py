"""What can be timed and scored: a run's student and the files it exported, or a student, an ONNX,
an engine by path."""
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import onnx
from google.protobuf.message import DecodeError

from distill.config import load_config
from export.artefact import sidecar_path
from records.files import sha256
from records.results import Row
from student.vit import load_student

Kind = Literal["student", "onnx", "engine"]
ONNX_BACKENDS = ("ort-cpu", "ort-cuda", "ort-trt", "openvino")
# a run's file: the row of the accuracy table it fills, its precision, and what it is meant to run
# on
FILES = {
    "model.onnx": ("student_onnx_fp32", "fp32", ONNX_BACKENDS),
    "model.fp16.onnx": ("student_fp16", "fp16", ("ort-cuda", "ort-trt")),  # on a CPU it is emulated
    "model.int8.onnx": ("student_int8", "int8", ("ort-trt",)),
    "model.int8.cpu.onnx": ("student_int8_cpu", "int8", ("ort-cpu", "openvino")),
}


@dataclass(frozen=True)
class Artefact:
    path: Path
    features: str          # its name in the accuracy table
    precision: str
    sha256: str
    facts: dict[str, Any] = field(default_factory=dict)  # its sidecar: interface, parity, recipe
    kind: Kind = "onnx"
    backends: tuple[str, ...] = ONNX_BACKENDS

    @property
    def size_mb(self) -> float:
        return self.path.stat().st_size / 1e6

    @property
    def batch(self) -> int | str:
        """Frames a call, or "dynamic"."""
        return "dynamic" if self.kind == "student" else self.facts.get("input", {}).get(
            "shape", [1])[0]


def exported(run: Path) -> tuple[list[Artefact], list[Row]]:
    """The run's usable ONNX files, and an `absent` row for each of the others: what, why, which
    command makes it."""
    student = sha256(run / "student" / "student.safetensors")
    usable, missing = [], []
    for name, (features, precision, backends) in FILES.items():
        path = run / "export" / name
        why = _fault(path, student)
        if why is None:
            facts = json.loads(sidecar_path(path).read_text())
            usable.append(
                Artefact(path, features, precision, facts["sha256"], facts, backends=backends))
        else:
            missing.append(
                absent(name, why, f"vega3d export onnx --run {run} --precision {precision}"))
    return usable, missing


def find(path: Path) -> tuple[list[Artefact], list[Row]]:
    """What `path` holds that can be timed. A run: its student, exported files and engines; else the
    one thing it is.

    Raises ValueError for anything else.
    """
    if (path / "config.yaml").is_file():
        files, missing = exported(path)
        engines = [_engine(engine) for engine in sorted((path / "export").glob("*.engine"))]
        return [_student(path / "student"), *files, *engines], missing
    if (path / "student.safetensors").is_file():
        return [_student(path)], []
    if path.is_file() and path.suffix in (".onnx", ".engine"):
        return [_onnx(path) if path.suffix == ".onnx" else _engine(path)], []
    what = "no such file or folder" if not path.exists(
    ) else "neither a run, a student, an .onnx nor an .engine"
    raise ValueError(
        f"{path}: {what}; give runs/NAME, a folder with student.safetensors, or an exported file")


def absent(what: str, why: str, fix: str) -> Row:
    """Something that was not measured, said plainly."""
    return {"kind": "absent", "what": what, "why": why, "fix": fix}


def _student(folder: Path) -> Artefact:
    path = folder / "student.safetensors"
    if not path.is_file():
        raise ValueError(
            f"{path}: not there, so the run is unfinished; finish it with: vega3d distill run")
    return Artefact(path, "student_fp32", "fp32", sha256(path), kind="student",
                    backends=("torch", "compile"))


def _onnx(path: Path) -> Artefact:
    """Any ONNX file: named by its graph where it has no sidecar of ours."""
    try:
        model = onnx.load(path, load_external_data=False)
    except DecodeError as error:
        raise ValueError(f"{path}: not an ONNX file ({error}); export it again") from error
    if len(model.graph.input) != 1 or len(model.graph.input[0].type.tensor_type.shape.dim) != 4:
        raise ValueError(
            f"{path}: expected one input, frames [B,3,H,W]; this is another kind of model")
    taken = model.graph.input[0].type.tensor_type
    shape = [dim.dim_value or "dynamic" for dim in taken.shape.dim]
    if taken.elem_type != onnx.TensorProto.FLOAT or shape[1] not in (3, "dynamic"):
        kind = onnx.TensorProto.DataType.Name(taken.elem_type).lower()
        raise ValueError(
            f"{path}: takes {kind} {shape}, expected float frames [B,3,H,W]: this is another kind "
            "of model")
    return Artefact(path, path.stem, _precision(model), sha256(path), {"input": {"shape": shape}})


def _engine(path: Path) -> Artefact:
    try:
        facts = json.loads(sidecar_path(path).read_text())
        builder, precision = str(facts["builder"]), str(facts["precision"])
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"{path}: no engine with a sidecar ({error}); build one with: vega3d export trt"
        ) from error
    backend = "rtx" if "rtx" in builder.lower() else "trt"
    return Artefact(path, path.stem, precision, sha256(path), facts, "engine", (backend,))


def _precision(model: onnx.ModelProto) -> str:
    if any(node.op_type in ("DequantizeLinear", "MatMulInteger") for node in model.graph.node):
        return "int8"
    half = any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in model.graph.initializer)
    return "fp16" if half else "fp32"


def _fault(path: Path, student: str) -> str | None:
    if not path.is_file():
        return "not exported yet"
    try:
        facts = json.loads(sidecar_path(path).read_text())
        whole, of = facts["sha256"] == sha256(path), facts["student"]["sha256"]
    except (OSError, json.JSONDecodeError, KeyError, TypeError):
        return "has no sidecar: its export did not finish"
    if not whole:
        return "differs from its sidecar: the file was changed after export"
    return None if of == student else "was exported from another student than the run's"


def about_run(folder: Path) -> Row:
    """The row of kind `run`. Raises ValueError if the folder is no run or has no student."""
    if not (folder / "config.yaml").is_file():
        raise ValueError(
            f"{folder}: no run here (no config.yaml); make one with: vega3d distill run")
    folder = folder.resolve()  # runs/latest is a link: the result is of the run it names now
    config, student = load_config(folder / "config.yaml"), load_student(folder / "student")
    tap = config.teacher.tap
    clips = config.scenes.path or f"{config.scenes.train} rooms x {config.scenes.clips_per_room} clips"
    return {
        "kind": "run", "run": str(folder), "student": f"ViT-{student.config.size.title()}",
        "student_sha256": sha256(folder / "student" / "student.safetensors"),
        "depth": student.config.depth, "parameters_m": sum(p.numel()
                                                           for p in student.parameters()) / 1e6,
        "feature_width": student.config.out_dim, "generator": Path(config.teacher.generator).name,
        "block": tap.block, "t": tap.k / 1000, "mode": tap.frames, "noise_draws": tap.seeds,
        "trained_on": str(clips), "frames_per_clip": config.scenes.frames, "seeds": len(config.seeds
                                                                                        )
    }
