"""What can be timed and scored: a run's student and exported files, or one file by path."""
import importlib.util
import math
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote
from typing import Any, Literal

import onnx

from distill.config import load_run_config
from export.artefact import damage, sidecar_path
from export.graph.files import data_files, file_digest, read_onnx
from export.openvino import weights_fault
from records.files import must_exist, read_object, sha256
from records.results import Row
from records.runtime import MAX_VALUES
from student.vit import load_student

ONNX_TARGETS = ("cpu", "openvino", "cuda", "tensorrt")
# a run's file: its row of the accuracy table, its precision, and the targets it is made for
FILES = {
    "model.onnx": ("student_onnx_fp32", "fp32", ONNX_TARGETS),
    "model.fp16.onnx": ("student_fp16", "fp16", ("cuda", "tensorrt")),  # CPUs emulate it
    "model.int8.onnx": ("student_int8", "int8", ("tensorrt",)),
    "model.int8.cpu.onnx": ("student_int8_cpu", "int8", ("cpu", "openvino")),
    "model.int8.openvino.xml": ("student_int8_openvino", "int8", ("openvino",)),
}


@dataclass(frozen=True)
class Artefact:
    path: Path
    features: str          # its name in the accuracy table
    precision: str
    sha256: str
    facts: dict[str, Any] = field(default_factory=dict)  # its sidecar: interface, parity, recipe
    kind: Literal["student", "onnx", "ir", "engine"] = "onnx"
    targets: tuple[str, ...] = ONNX_TARGETS  # bench.latency.backends.Backend.target
    data: tuple[Path, ...] = ()  # files with weights of an ONNX graph; `sha256` covers them

    @property
    def size_mb(self) -> float:
        return sum(file.stat().st_size for file in (self.path, *self.data)) / 1e6

    @property
    def batch(self) -> int | str:
        """Frames a call, or "dynamic"."""
        if self.kind == "student":
            return "dynamic"
        return self.facts.get("input", {}).get("shape", [1])[0]


def find(path: Path) -> tuple[list[Artefact], list[Row]]:
    """What `path` holds: of a run its student, exported files and engines, with `absent` rows for
    missing ones; else the file itself. Raises ValueError if there is nothing to time."""
    if (path / "config.yaml").is_file():
        files, missing = exported(path)
        for engine in sorted((path / "export").glob("*.engine")):
            try:
                files.append(_engine(engine))
            except ValueError as error:
                why = str(error).removeprefix(f"{engine}: ")
                fix = f"vega3d export trt --run {quote(str(path))}"
                missing.append(absent(engine.name, why, fix))
        return [_student(path / "student"), *files], missing
    if (path / "student.safetensors").is_file():
        return [_student(path)], []
    read = {".onnx": _onnx, ".engine": _engine, ".xml": _ir}.get(path.suffix)
    if read and path.is_file():
        return [read(path)], []
    remedy = "give runs/NAME, a folder with student.safetensors, or an exported file"
    must_exist(path, remedy)
    raise ValueError(f"{path}: neither a run, a student, an .onnx, an .xml nor an .engine; "
                     + remedy)


def exported(run: Path) -> tuple[list[Artefact], list[Row]]:
    """The run's usable ONNX files, and an `absent` row for each of the others."""
    student = sha256(run / "student" / "student.safetensors")
    usable, missing = [], []
    for name, (features, precision, targets) in FILES.items():
        path = run / "export" / name
        if fault := _fault(path, student):
            fix = ("vega3d export openvino" if path.suffix == ".xml" else
                   f"vega3d export onnx --precision {precision}") + f" --run {quote(str(run))}"
            missing.append(absent(name, fault, fix))
        else:
            facts = read_object(sidecar_path(path))
            data = (path.with_suffix(".bin"),) if path.suffix == ".xml" else ()
            usable.append(Artefact(path, features, precision, facts["sha256"], facts,
                                   "ir" if data else "onnx", targets, data))
    return usable, missing


def absent(what: str, why: str, fix: str) -> Row:
    """A row for something that was not measured."""
    return {"kind": "absent", "what": what, "why": why, "fix": fix}


def run_summary(folder: Path) -> Row:
    """The row of kind `run`. Raises ValueError if the folder is no run or has no student."""
    folder = folder.resolve()  # runs/latest is a link: the result is of the run it names now
    config, student = load_run_config(folder), load_student(folder / "student")
    scenes, tap = config.scenes, config.teacher.tap
    clips = scenes.path or f"{scenes.train} rooms x {scenes.clips_per_room} clips"
    return {
        "kind": "run", "run": str(folder), "student": f"ViT-{student.config.size.title()}",
        "student_sha256": sha256(folder / "student" / "student.safetensors"),
        "depth": student.config.depth,
        "parameters_m": sum(p.numel() for p in student.parameters()) / 1e6,
        "feature_width": student.config.out_dim, "generator": Path(config.teacher.generator).name,
        "block": tap.block, "t": tap.k / 1000, "mode": tap.frames, "noise_draws": tap.seeds,
        "trained_on": str(clips), "frames_per_clip": scenes.frames, "seeds": len(config.seeds)
    }


def _student(folder: Path) -> Artefact:
    path = folder / "student.safetensors"
    if not path.is_file():
        raise ValueError(f"{path}: not there, so the run is unfinished; "
                         "finish it with: vega3d distill run")
    return Artefact(path, "student_fp32", "fp32", sha256(path), kind="student", targets=("torch",))


def _onnx(path: Path) -> Artefact:
    """Any ONNX file; without a sidecar its graph tells precision and input shape."""
    if found := damage(path):
        raise ValueError(f"{found}; export it again, or remove the JSON file of another model")
    model = read_onnx(path)
    stored = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in stored]
    if len(inputs) != 1 or len(inputs[0].type.tensor_type.shape.dim) != 4:
        raise ValueError(f"{path}: expected one input, frames [B,3,H,W]; "
                         "this is another kind of model")
    input_type = inputs[0].type.tensor_type
    shape = [dim.dim_value if dim.HasField("dim_value") else "dynamic"
             for dim in input_type.shape.dim]
    numbers = [side for side in shape if isinstance(side, int)]
    camera = input_type.elem_type == onnx.TensorProto.UINT8 and shape[3] == 3
    if (((input_type.elem_type != onnx.TensorProto.FLOAT or shape[1] not in (3, "dynamic"))
            and not camera) or min(numbers, default=1) < 1 or math.prod(numbers) > MAX_VALUES):
        dtype = onnx.TensorProto.DataType.Name(input_type.elem_type).lower()
        raise ValueError(f"{path}: takes {dtype} {shape}, expected float frames [B,3,H,W] (or "
                         "uint8 ones [B,H,W,3]): this is another kind of model")
    data = tuple(data_files(model, path))
    return Artefact(path, path.stem, _precision(model), file_digest(path, data),
                    {"input": {"shape": shape}}, data=data)


def _engine(path: Path) -> Artefact:
    if found := damage(path):
        raise ValueError(f"{found}; build it again with: vega3d export trt")
    facts = read_object(sidecar_path(path))
    if missing := {"builder", "precision"} - facts.keys():
        raise ValueError(f"{path}: no engine with a sidecar (no {', '.join(sorted(missing))}); "
                         "build one with: vega3d export trt")
    target = "rtx" if "rtx" in str(facts["builder"]).lower() else "trt"
    return Artefact(path, path.stem, str(facts["precision"]), sha256(path), facts, "engine",
                    (target,))


def _ir(path: Path) -> Artefact:
    if found := damage(path):
        raise ValueError(f"{found}; export it again with: vega3d export openvino")
    facts = read_object(sidecar_path(path))
    found = weights_fault(path, facts) if facts else "no OpenVINO model with a sidecar"
    if found:
        raise ValueError(f"{path}: {found}; make one with: vega3d export openvino")
    return Artefact(path, path.stem, str(facts.get("precision")), sha256(path), facts, "ir",
                    ("openvino",), (path.with_suffix(".bin"),))


def _precision(model: onnx.ModelProto) -> str:
    if any(node.op_type in ("DequantizeLinear", "MatMulInteger") for node in model.graph.node):
        return "int8"
    half = any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in model.graph.initializer)
    return "fp16" if half else "fp32"


def _fault(path: Path, student: str) -> str | None:
    """Why an exported file is not usable; None if it is."""
    if not path.is_file():
        return "not exported yet"
    if found := damage(path):
        return found
    facts = read_object(sidecar_path(path))
    source = facts.get("student")
    if "sha256" not in facts or not isinstance(source, dict):
        return "has no sidecar: its export did not finish"
    is_ir = path.suffix == ".xml"
    if is_ir and (found := weights_fault(path, facts)):
        return found
    if is_ir and importlib.util.find_spec("openvino") is None:
        return "OpenVINO is not installed"
    if source.get("sha256") != student:
        return "was exported from another student than the run's"
    return None
