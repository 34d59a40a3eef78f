"""`vega3d verify [RUN]`: every file of a run against the SHA-256 in its manifest."""
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import tyro

from records import manifest
from records.files import cache_folder, parse_json, read_object
from records.outputs import LIST, OutputFolder

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = (ROOT / "student" / "weights", ROOT / "teacher" / "weights", ROOT / "infer" / "model")


def verify(run: Annotated[Path, tyro.conf.Positional] = Path("runs/latest")) -> None:
    """Check all files of a run, its clips, the converted encoder and the shipped weights.

    Prints a line for every file that is damaged or missing; exit code 2 if there is one.

    Args:
        run: a run folder of `vega3d distill run`, or another folder with a manifest.json
    """
    listed = manifest.count(run)
    if listed is None and not (run / "config.yaml").is_file():
        raise ValueError(f"{run}: no run here (no config.yaml, no manifest.json); "
                         "make one with: vega3d distill run")
    folders = [run, *manifest.used_folders(run), cache_folder(), *SHIPPED]
    faults = list(dict.fromkeys(line for folder in folders for line in folder_faults(folder)))
    for line in faults:
        print(line)
    if listed is None:
        print(f"{run}: has no {manifest.NAME} (made before there were any): only exported models, "
              f"features and pages were checked; the next vega3d distill run of it lists its files")
    if faults:
        raise ValueError(f"{run}: {len(faults)} files are damaged or missing")
    print(f"{run}: intact; {listed or 0} listed files, and those it uses")


def folder_faults(folder: Path) -> Iterator[str]:
    """By its manifest, by the lists of its feature stores, pages and bundles, and by sidecars."""
    yield from manifest.faults(folder)
    for log in sorted(folder.rglob("files.jsonl")):
        yield from _feature_faults(log)
    for page in sorted(folder.rglob(LIST)):
        yield from OutputFolder(page.parent).faults()
    for model in sorted(folder.rglob("*.onnx")) + sorted(folder.rglob("*.engine")):
        if found := manifest.fault(model):
            yield found


def _feature_faults(log: Path) -> Iterator[str]:
    rows = {}
    for number, line in enumerate(log.read_text(errors="replace").splitlines(), 1):
        try:
            row = parse_json(line)
            rows[row["clip"]] = row["sha256"], row["bytes"]
        except (ValueError, KeyError, TypeError):
            yield f"{log}: damaged (line {number})"
    for clip, (sha256, size) in rows.items():
        path = log.parent / f"{clip}.safetensors"
        if not path.is_file() or not manifest.matches(path, sha256, size):
            yield f"{path}: damaged or missing (by {log.name})"
    if not read_object(log.parent / manifest.NAME):
        yield f"{log.parent / manifest.NAME}: damaged or missing"


VERBS = {"": verify}
