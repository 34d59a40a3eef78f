"""Published data sets laid out otherwise, runs with a hostile configuration, full disks."""
import json
import resource
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from records.ffmpeg import VideoWriter
from tests.hostile.case import Case
from tests.hostile.corpus_config import bomb
from tests.hostile.corpus_files import DAMAGED_JSON, Make, clip, run, written
from tests.hostile.corpus_pictures import model, picture
from tests.scenes.published import write_benchmarks, write_scannet
from tests.scenes.rgbd_scenes import save


def numbers_in_yaml() -> Iterator[Case]:
    """The file is named too."""
    for key, text in {
            "student.lr": ".inf", "student.weight_decay": ".nan", "student.l1_weight": "-0.5",
            "student.epochs": "0", "student.batch": "-1", "student.model.depth": "0",
            "student.model.out_dim": "-256", "student.model.patch": "0", "heads.steps": "-1",
            "teacher.tap.block": "-1", "teacher.tap.k": "1001", "teacher.tap.seeds": "0",
            "teacher.heads.lr": "-.inf", "scenes.train": "-48", "scenes.frames": "6",
            "scenes.workers": "100000", "seeds": "[0, 0]", "name": "../x"}.items():
        content = text
        for part in reversed(key.split(".")):
            content = f"{{{part}: {content}}}"
        yield Case("number", f"{key}: {text} in YAML", written(
            "hostile.yaml", content.encode(), ["distill", "run", "--config", "hostile.yaml"]),
            "hostile.yaml")


def configurations() -> Iterator[Case]:
    texts = {"an alias bomb": bomb(9), "nested": "[" * 5000, "a key twice": "name: a\nname: b\n",
             "zeros": "\0" * 99, "an unknown key": "sudent: {}\n"}
    for what, text in texts.items():
        for command in (["bench", "--run", "run"], ["bench", "accuracy", "--run", "run"],
                        ["bench", "latency", "run"]):
            yield Case("yaml", f"{' '.join(command)} of a run with {what}",
                       _run(text, [*command, "--out", "out"]), "config.yaml")


def _run(config: str, args: list[str]) -> Make:
    def make(folder: Path) -> list[str]:
        run(folder / "run", config_yaml=config.encode())
        return args
    return make


def data_sets() -> Iterator[Case]:
    row = {"id": 1, "dataset": "scannet", "scene_name": "s", "question_type": "object_counting",
           "question": "?", "ground_truth": "3", "options": None}
    for what, text in {
            "nested": "[" * 50_000, "a list": "[1]", "a key twice": '{"id": 1, "id": 2}',
            "NaN": json.dumps(row | {"id": float("nan")}), "empty": "", "zeros": "\0" * 99,
            "another type": json.dumps(row | {"question_type": "x"}),
            "5000 digits": '{"id": ' + "9" * 5000 + "}"}.items():
        yield Case("data set", f"test.jsonl, {what}", written(
            "root/test.jsonl", text.encode(), ["scenes", "import", "vsibench", "root", "--out",
                                               "out"]), "test.jsonl")
    yield Case("data set", "test.jsonl, not UTF-8", written(
        "root/test.jsonl", b"\xff", ["scenes", "import", "vsibench", "root", "--out", "out"]),
        "test.jsonl")


def annotations() -> Iterator[Case]:
    """The files of ScanNet's benchmarks: damaged, and with one value that makes no sense."""
    for name, inside in ANNOTATIONS.items():
        for what in ("nothing", "nested", "a key twice", "NaN", "5000 digits", "null", "not UTF-8",
                     "zeros"):
            yield Case("annotations", f"{name}, {what}", _annotated(name, DAMAGED_JSON[what]), name)
        for value in (None, -1, 2**40, [[]], {"a": []}):
            for key in KEYS[name]:
                yield Case("annotations", f"{name}, {key} is {value!a}",
                           _annotated(name, (inside, key, value)), "_val")


ANNOTATIONS = {"ScanRefer_filtered_val.json": "", "multi3drefer_val.json": "",
               "ScanQA_v1.0_val.json": "",
               "balanced/v1_balanced_questions_val_scannetv2.json": "questions",
               "balanced/v1_balanced_sqa_annotations_val_scannetv2.json": "annotations"}
KEYS = dict(zip(ANNOTATIONS, (("scene_id", "object_id", "object_name", "description"),
                              ("scene_id", "object_ids", "description"), ("scene_id", "answers"),
                              ("question_id", "question", "situation"), ("question_id", "answers")),
                strict=True))


def _annotated(name: str, change: bytes | tuple[str, str, object]) -> Make:
    def make(folder: Path) -> list[str]:
        path = write_benchmarks(write_scannet(folder / "root") / "benchmarks") / name
        if isinstance(change, tuple):
            inside, key, value = change
            content = json.loads(path.read_text())
            (content[inside] if inside else content)[0][key] = value
            path.write_text(json.dumps(content))
        else:
            path.write_bytes(change)
        return ["scenes", "import", "scannet", "root", "--annotations", "root/benchmarks",
                "--frames", "1", "--size", "28", "--out", "out"]
    return make


def recordings() -> Iterator[Case]:
    """RGB-D folders of vega3d bench real, and two of vega3d distill adapt."""
    matrix = {"of a larger picture": "1200 0 800\n0 1200 600\n0 0 1", "transposed":
              "120 0 0\n0 120 0\n80 60 1", "of ones": "1 0 0\n0 1 0\n0 0 1", "empty": "",
              "of one line": "120 120 80 60", "NaN": "nan 0 80\n0 120 60\n0 0 1",
              "1e300": "1e300 0 80\n0 1e300 60\n0 0 1"}
    for what, text in matrix.items():
        yield Case("recording", f"K.txt {what}", _recorded("plain", "K.txt", text), "rec")
    pose = {"zero": "0 " * 16, "mirrored": "-1 0 0 0  0 1 0 0  0 0 1 0  0 0 0 1",
            "scaled": "9 0 0 0  0 9 0 0  0 0 9 0  0 0 0 1",
            "by columns": "1 0 0 0  0 1 0 0  0 0 1 0  3 2 1 1", "NaN": "nan " * 16,
            "of 12 numbers": "1 0 0 0  0 1 0 0  0 0 1 0"}
    for what, text in pose.items():
        yield Case("recording", f"a pose {what}", _recorded("plain", "poses.txt", 2 * f"{text}\n"),
                   "rec")
    other = {"groundtruth.txt": "0.0 nan 0 0 0 0 0 1\n0.03 0 0 0 0 0 0 1", "rgb.txt": "0.0",
             "depth.txt": "50.0 depth/0.png", "rgb.txt of no file": "0.0 rgb/9.png"}
    for what, text in other.items():
        yield Case("recording", f"TUM, {what}", _recorded("tum", what.split()[0], text), "rec")
    for what, text in (("short", "1 2 3"), ("lost", "nan nan nan nan\n" * 4)):
        for verb in ("bench real", "distill adapt"):
            yield Case("recording", f"{verb}, 7-Scenes, a pose {what}", _recorded(
                "7scenes", f"frame-{0:06d}.pose.txt", text, 1, verb.split()), "rec")
    for verb in ("bench real rec", "distill adapt rec", "teacher probe --rgbd rec"):
        yield Case("recording", f"{verb}, world to camera", _inverted(verb), "world to camera")
    for what, mode, scale in (("in float metres", "F", 1e-3), ("in whole metres", "I;16", 1e-3),
                              ("all zero", "I;16", 0.0), ("of 8 bits", "L", 0.02)):
        yield Case("recording", f"depth {what}", _depths(mode, scale), "rec")


def _recorded(layout: str, name: str, text: str, frames: int = 2,
              verb: Sequence[str] = ("bench", "real")) -> Make:
    def make(folder: Path) -> list[str]:
        (save(folder / "rec", layout, frames) / name).write_text(text)
        return [*verb, "rec"]
    return make


def _inverted(verb: str) -> Make:
    def make(folder: Path) -> list[str]:
        save(folder / "rec", "plain", 8, inverted=True)
        return verb.split()
    return make


def _depths(mode: str, scale: float) -> Make:
    kind = {"F": np.float32, "I;16": np.uint16, "L": np.uint8}[mode]

    def make(folder: Path) -> list[str]:
        for path in (save(folder / "rec", "plain", 2) / "depth").iterdir():
            values = np.asarray(Image.open(path)) * scale
            Image.fromarray(values.astype(kind)).save(path, "TIFF" if mode == "F" else "PNG")
        return ["bench", "real", "rec"]
    return make


def full_disks() -> Iterator[Case]:
    """A limit on the size of files stands for the disk."""
    yield Case("full disk", "infer", _photo, "out/photo")
    yield Case("full disk", "infer of a video", _video, "vega3d-depth-")
    yield Case("full disk", "scenes show", _sheet, "sheet.png")
    yield Case("full disk", "scenes render", _limited("scenes render --n 1 --workers 0 --out out"),
               "out/scenes.json")
    yield Case("full disk", "distill run", _limited("distill run --scenes.path rec/images "
                                                    "--scenes.frames 1"), "config.yaml")


def _photo(folder: Path) -> list[str]:
    model(folder / "model.onnx")
    (folder / "photo.png").write_bytes(picture())
    _limit(64)
    return ["infer", "model.onnx", "photo.png", "-o", "out"]


def _video(folder: Path) -> list[str]:
    with VideoWriter(folder / "clip.mp4", 10) as video:
        video.write(np.zeros((64, 64, 3), np.uint8))
    _limit(64)
    return ["infer", "clip.mp4", "-o", "out"]


def _limited(command: str) -> Make:
    def make(folder: Path) -> list[str]:
        save(folder / "rec", "plain", 3)  # images/ are read as clips of a frame
        _limit(64)
        return command.split()
    return make


def _sheet(folder: Path) -> list[str]:
    clip(folder)
    _limit(64)
    return ["scenes", "show", "clip.safetensors", "--out", "sheet.png"]


def _limit(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


CORPUS = (numbers_in_yaml, configurations, data_sets, annotations, recordings, full_disks)
