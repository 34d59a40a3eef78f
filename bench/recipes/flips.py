"""One byte of every file of a run is flipped, then `vega3d verify` and the stage that reads it run.

    python -m bench.recipes.flips --work DIR [--ort onnxruntime-web.tgz] [--out flips.json]

DIR gets a tiny run of everything: clips, teacher, student, heads, ONNX, an ahead-of-time engine,
the page, a bench; and copies of the shipped weights. Takes minutes. A row's `verdict`:

refused      exit code 2 and the file's name
made again   the stage names the file and writes it anew
left out     bench names the file and measures the rest
verified     no stage reads the file; `vega3d verify` names it
used         read without a message
"""
import io
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from fnmatch import fnmatch
from pathlib import Path

import vega3d
from records import manifest
from records.environment import environment
from records.files import read_object
from records.outputs import LIST
from records.results import Row, measured, save

# a line that says that a file is not as it was written
NAMED = "damaged|belongs|differs|exists|not"
QUICK = ["--no-memory", "--no-teacher", "--seconds", "0.02", "--iterations", "4", "--rounds", "2"]
MANY = ("features", "clips", "page", "jetson")
SETTINGS = """name: flips
scenes: {train: 4, test: 4, workers: 0}
teacher: {generator: generators/wan-nano, heads: {epochs: 1, width: 8}}
student: {epochs: 1, batch: 8}
heads: {steps: 2}
"""
RUN = "runs/flips"
DISTILL = ["distill", "run", "--config", "config.yaml"]
ONNX, PRESET = ["export", "onnx", "--run", RUN], ["export", "onnx", "--run", RUN, "--preset", "web"]
FLAGGED = f"{RUN}/export/model.int8.flagged.onnx"
FP32_FLAGGED = f"{RUN}/export/model.flagged.onnx"
TRT = ["export", "trt", "--run", RUN, "--target", "rtx", "--sm", "89"]
JETSON = ["export", "trt", "--run", RUN, "--target", "jetson"]
PAGE = ["export", "web", "--run", RUN]
LATENCY = ["bench", "latency", RUN, "--out", f"{RUN}/bench", *QUICK]
ACCURACY = ["bench", "accuracy", "--run", RUN, "--out", f"{RUN}/bench"]


HEADS = ["distill", "heads", "--student", "students/vit-ti", "--scenes.train", "4",
         "--scenes.test", "4", "--scenes.workers", "0", "--heads.steps", "2"]


def make_run(work: Path, page: list[str]) -> None:
    """The run and what belongs to it, unless it is there; commands run in `work` from now on."""
    work.mkdir(parents=True, exist_ok=True)
    os.chdir(work)
    os.environ["VEGA3D_CACHE"] = "cache"
    Path("config.yaml").write_text(SETTINGS)
    for name, source in (("generators", "teacher"), ("students", "student")):
        if not Path(name).exists():
            shutil.copytree(Path(vega3d.__file__).parent / source / "weights", name)
    if Path(RUN, "bench", "results.json").is_file():
        return
    for argv in (DISTILL, ONNX, PRESET, TRT, JETSON, page, ACCURACY, LATENCY):
        code, printed = call(argv)
        if code:
            raise SystemExit(f"flips: vega3d {' '.join(argv)} failed: {printed}")


def readers(page: list[str]) -> list[tuple[str, list[str]]]:
    """The command that reads the files of a pattern; the first that fits is taken."""
    return [
        (f"{RUN}/config.yaml", ACCURACY), (f"{RUN}/accuracy.json", ACCURACY),
        (f"{RUN}/env.json", JETSON), (f"{RUN}/student/student.*", ONNX),
        (f"{RUN}/student/heads.safetensors", PRESET), (f"{RUN}/frames/*", ONNX),
        (f"{RUN}/teacher/*", DISTILL), (f"{RUN}/features/*", DISTILL),
        (f"{RUN}/export/page/*", PAGE), (f"{RUN}/export/jetson/*", JETSON),
        (f"{RUN}/export/web/onnx/*", PRESET),
        (f"{RUN}/export/model.int8.flagged*", ["bench", "latency", FLAGGED, *QUICK]),
        (f"{RUN}/export/model.flagged*", ["bench", "latency", FP32_FLAGGED, *QUICK]),
        (f"{RUN}/export/model*", LATENCY),
        (f"{RUN}/bench/features/*", ACCURACY), (f"{RUN}/bench/results.json", LATENCY),
        (f"{RUN}/manifest.json", ONNX), ("runs/cache/clips/*", DISTILL),
        ("generators/wan-nano/vae/*", DISTILL), ("generators/wan-nano/transformer/*", DISTILL),
        ("generators/wan-nano/prompt.safetensors", DISTILL), ("cache/efficientnet*", DISTILL),
        ("cache/onnxruntime-web*", page),
        ("students/vit-ti/student.*", ["bench", "latency", "students/vit-ti", *QUICK]),
        ("students/vit-ti/heads.safetensors", HEADS)]


def files(page: list[str]) -> Iterator[tuple[Path, list[str]]]:
    """Every file that a manifest, a store or a page lists, and its reader ([]: none): of the many
    files of a store, a page or a bundle, one of each suffix is read, the others are left to
    verify."""
    tried, patterns = set(), readers(page)
    for path in sorted(set(_listed(Path()))):
        argv = next((argv for pattern, argv in patterns if fnmatch(str(path), pattern)), [])
        group = next((part for part in MANY if part in path.parts), None)
        kind = (path.parents[1] if group == "features" else group, path.suffix)
        yield path, [] if group and kind in tried else argv
        tried.add(kind)


def trial(path: Path, argv: Sequence[str], run: Path) -> Row:
    """Flips the middle byte, verifies, runs the reader, and puts an unnoticed byte back."""
    intact, facts = path.read_bytes(), path.stat()
    damaged = bytearray(intact)
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    try:
        return _tried(path, argv, run, bytes(damaged))
    finally:
        if path.is_file() and path.read_bytes() == damaged:
            path.write_bytes(intact)
            os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))


def _tried(path: Path, argv: Sequence[str], run: Path, damaged: bytes) -> Row:
    folder = run if path.is_relative_to(run) or len(path.parts) < 2 else Path(path.parts[0])
    code, printed = call(["verify", str(run if folder.name in ("runs", "cache") else folder)])
    verified = code == 2 and _names(path, printed)
    verdict = "verified" if verified and not argv else "used"
    if argv:
        code, printed = call(argv)
        if _names(path, printed) and code in (0, 2):
            remade = path.is_file() and path.read_bytes() != damaged
            verdict = "refused" if code else "made again" if remade else "left out"
    return {"file": str(path), "kind": _kind(path), "stage": " ".join(argv[:2]) or "verify",
            "verdict": verdict, "verify": "named" if verified else "missed"}


def call(argv: Sequence[str]) -> tuple[int, str]:
    """vega3d's exit code and what it printed."""
    printed = io.StringIO()
    with redirect_stdout(printed), redirect_stderr(printed):
        try:
            vega3d.main(argv)
        except SystemExit as stopped:
            return int(stopped.code or 0), printed.getvalue()
    return 0, printed.getvalue()


def _names(path: Path, printed: str) -> bool:
    """Whether a line says what is wrong with the file; a console may have wrapped it."""
    text = "".join(printed.split())
    return re.search(rf"{re.escape(path.name)}:({NAMED})", text) is not None


def _listed(top: Path) -> Iterator[Path]:
    for found in top.rglob(manifest.NAME):
        names = read_object(found).get("files", {})
        if manifest.count(found.parent) is not None:
            yield from (Path(os.path.normpath(found.parent / name)) for name in names)
            yield found
    for log in top.rglob("files.jsonl"):
        yield from [log, *log.parent.rglob("*.safetensors")]
    for page in top.rglob(LIST):
        yield from (page.parent / name for name in read_object(page).get("files", {}))
    yield from top.glob("cache/onnxruntime-web*/*js")


def _kind(path: Path) -> str:
    """The folder that a table counts it in."""
    parts = path.relative_to(RUN).parts if path.is_relative_to(RUN) else path.parts
    if len(parts) == 1:
        return "run"
    return "/".join(parts[:2]) if parts[0] == "export" and len(parts) > 2 else parts[0]


def main(work: Path, ort: Path | None = None, out: Path = Path("flips.json")) -> None:
    """work: the folder of the run. ort: onnxruntime-web's npm package, to be unpacked again."""
    out = out.absolute()
    page = [*PAGE, "--ort", str(ort.absolute())] if ort else PAGE
    make_run(work.absolute(), page)
    rows = []
    for path, argv in list(files(page)):
        rows.append(trial(path, argv, Path(RUN)))
        print(rows[-1], flush=True)
    save(measured("flips", rows, environment()), out)
    print(f"{sum(row['verdict'] != 'used' for row in rows)} of {len(rows)} named")


if __name__ == "__main__":
    vega3d.run_recipe(main)
