"""The live page's folder: static files, the clip, the web preset's models and onnxruntime-web."""
import json
import shutil
from pathlib import Path
from string import Template
from tempfile import TemporaryDirectory
from typing import Any

from export.pipeline import ExportedFile, Exporter
from export.presets import export_preset
from export.web.vendor import BACKENDS, STORED, VERSION, unpacked_sha256
from records.files import digest, prepare_folder
from records.outputs import OutputFolder

STATIC = Path(__file__).parent / "static"
CLIP = STATIC / "clip.json"
# Not float32: its file is twice as large, and WASM computes the half-precision file in float32 too.
MODELS = {"model_fp16.onnx": ("fp16", "half-precision weights", ["webgpu"]),
          "model_quantized.onnx": ("int8", "8-bit weights and activations", ["wasm"])}
LABELS = {"fp16": "FP16", "int8": "INT8"}


def write_page(exporter: Exporter, runtime: Path, out: Path | None = None) -> tuple[Path, float]:
    """Writes RUN/export/page (or `out`), replacing an earlier page. Returns (folder, its MB).

    Raises ValueError if `out` is a folder of something else, or a file of the page was changed.
    """
    folder = out or exporter.run.out / "page"
    page = OutputFolder(folder)
    if folder.exists() and any(folder.iterdir()) and not page.written:
        raise ValueError(f"{folder}: is not empty and not a page of ours; choose another --out")
    prepare_folder(folder.parent)
    models = [file for file in export_preset(exporter, "web") if file.path.name in MODELS]
    with TemporaryDirectory() as scratch:
        _assemble(Path(scratch), runtime, models, exporter)
        page.replace_with(Path(scratch), "--out")
        files = [path for path in Path(scratch).rglob("*") if path.is_file()]
        return folder, sum(path.stat().st_size for path in files) / 1e6


def _assemble(folder: Path, runtime: Path, models: list[ExportedFile], exporter: Exporter) -> None:
    for path in STATIC.iterdir():
        if path.name not in ("sw.js", CLIP.name):
            shutil.copyfile(path, folder / path.name)
    shutil.copyfile(Path(__file__).with_name("serve.py"), folder / "serve.py")
    (folder / "ort").mkdir()
    for name in STORED:
        shutil.copyfile(runtime / name, folder / "ort" / name)
    (folder / "model" / "onnx").mkdir(parents=True)
    for name in ("config.json", "preprocessor_config.json"):
        shutil.copyfile(models[0].path.parent.parent / name, folder / "model" / name)
    for file in models:
        shutil.copyfile(file.path, folder / "model" / "onnx" / file.path.name)
    settings = _settings(models, exporter)
    (folder / "page.json").write_text(json.dumps(settings, indent=1) + "\n")
    _write_service_worker(folder)


def _settings(models: list[ExportedFile], exporter: Exporter) -> dict[str, Any]:
    listed = []
    for file in models:
        name, what, backends = MODELS[file.path.name]
        listed.append({
            "name": name, "label": LABELS[name], "file": f"model/onnx/{file.path.name}",
            "for": backends, "what": what, "size_mb": file.facts["size_mb"],
            "sha256": file.facts["sha256"],
        })
    config = exporter.run.student.config
    about = f"ViT-{config.size.title()}, run {exporter.run.folder.name}; onnxruntime-web {VERSION}."
    camera = {k: v for k, v in models[0].facts.items() if k == "canonical_focal"}
    return {"px": config.image_size, **camera, "models": listed, "runtime": BACKENDS,
            "clip": json.loads(CLIP.read_text()), "about": about}


def _write_service_worker(folder: Path) -> None:
    """Lists every file with its SHA-256 (unpacked), for use offline; changes with any of them."""
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()
                   and path.name not in ("serve.py", "NOTICE"))
    files = {name: unpacked_sha256(folder / name) for name in names}
    files["./"] = files["index.html"]
    script = Template((STATIC / "sw.js").read_text())
    (folder / "sw.js").write_text(
        script.substitute(build=digest(files), files=json.dumps(files, indent=1)))
