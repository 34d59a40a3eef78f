"""The files a run exported: which are whole and of its student, so that they may be timed and scored."""
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.artefact import sidecar_path
from records.files import sha256
from records.results import Row

FILES = {  # file: the row of the accuracy table it fills, and its precision
    "model.onnx": ("student_onnx_fp32", "fp32"),
    "model.fp16.onnx": ("student_fp16", "fp16"),
    "model.int8.onnx": ("student_int8", "int8"),
    "model.int8.cpu.onnx": ("student_int8_cpu", "int8"),
}


@dataclass(frozen=True)
class Artefact:
    path: Path
    features: str          # its name in the accuracy table
    precision: str
    sha256: str
    facts: dict[str, Any]  # its sidecar: interface, parity, recipe

    @property
    def size_mb(self) -> float:
        return self.path.stat().st_size / 1e6

    @property
    def batch(self) -> int | str:
        """Frames a call, or "dynamic"."""
        return self.facts.get("input", {}).get("shape", [1])[0]


def exported(run: Path) -> tuple[list[Artefact], list[Row]]:
    """The run's usable ONNX files, and an `absent` row for each of the others: what, why, which command makes it."""
    student = sha256(run / "student" / "student.safetensors")
    usable, missing = [], []
    for name, (features, precision) in FILES.items():
        path = run / "export" / name
        why = _fault(path, student)
        if why is None:
            facts = json.loads(sidecar_path(path).read_text())
            usable.append(Artefact(path, features, precision, facts["sha256"], facts))
        else:
            missing.append(absent(name, why, f"vega3d export onnx --run {run} --precision {precision}"))
    return usable, missing


def absent(what: str, why: str, fix: str) -> Row:
    """Something that was not measured, said plainly."""
    return {"kind": "absent", "what": what, "why": why, "fix": fix}


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
