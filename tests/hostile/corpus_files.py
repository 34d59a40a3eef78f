"""Kinds of files that are wrong for any reader: damaged JSON, no regular files, names."""
import json
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from student.config import SHIPPED
from tests.hostile.case import Case

DAMAGED_JSON = {
    "nothing": b"", "cut short": b'{"schema": 1, "name"', "nested": b"[" * 100_000,
    "nested, closed": b"[" * 900 + b"]" * 900, "nested objects": b'{"a":' * 50_000,
    "a key twice": b'{"schema": 1, "schema": 1}', "NaN": b'{"schema": NaN}',
    "infinity": b'{"schema": -Infinity}', "1e999": b'{"schema": 1e999}',
    "5000 digits": b'{"schema": ' + b"9" * 5000 + b"}", "a list": b"[]", "null": b"null",
    "a word": b'"schema"', "not UTF-8": b'{"schema": "\xff"}', "UTF-16": '{"schema": 1}'.encode(
        "utf-16"), "zeros": bytes(4096), "a lone surrogate": b'{"\\ud800": 1}',
    "two values": b"{} {}", "40 MB": b"[" + b"0," * 20_000_000 + b"0]",
}
Make = Callable[[Path], list[str]]


def clip(folder: Path, name: str = "clip.safetensors", header: object = None, **arrays) -> Path:
    arrays = arrays or {"frames": np.zeros((2, 3, 8, 8), np.uint8)}
    text = header if isinstance(header, str) else json.dumps(
        {"id": "test/1", "objects": [], "room_size": None} if header is None else header)
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(arrays, path, {"clip": text})
    return path


def student(folder: Path, **changed: bytes) -> Path:
    """The shipped student's files, some replaced: name with _ for its dot -> content."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("student.json", "student.safetensors", "heads.safetensors"):
        content = changed.get(name.replace(".", "_"))
        if content is None:
            (folder / name).symlink_to(SHIPPED / name)
        else:
            (folder / name).write_bytes(content)
    return folder


def run(folder: Path, **changed: bytes) -> Path:
    """A finished run with the shipped student and grey frames."""
    student(folder / "student", **changed)
    (folder / "config.yaml").write_bytes(changed.get("config_yaml", b"name: run\n"))
    (folder / "frames").mkdir()
    for name in ("calibration", "heldout"):
        save_file({"frames": np.full((32, 3, 224, 224), 127, np.uint8)},
                  folder / "frames" / f"{name}.safetensors")
    return folder


def written(name: str, content: bytes, args: Sequence[str]) -> Make:
    def make(folder: Path) -> list[str]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
        return list(args)
    return make


def json_files() -> Iterator[Case]:
    for what, content in DAMAGED_JSON.items():
        heavy = len(content) > 10**7
        for args in (["bench", "report", "--results", "hostile.json"],
                     ["bench", "compare", "hostile.json", "hostile.json"]):
            yield Case("json", f"{' '.join(args[:2])}, {what}",
                       written("hostile.json", content, args), "hostile.json", heavy)
        yield Case("json", f"scenes.json, {what}", _card(content), "scenes.json", heavy)
        yield Case("json", f"student.json, {what}", _student_json(content), "student.json", heavy)


def _card(content: bytes) -> Make:
    def make(folder: Path) -> list[str]:
        (folder / "clips").mkdir()
        (folder / "clips" / "scenes.json").write_bytes(content)
        return ["scenes", "render", "--n", "1", "--out", "clips"]
    return make


def _student_json(content: bytes) -> Make:
    def make(folder: Path) -> list[str]:
        run(folder / "run", student_json=content)
        return ["export", "onnx", "--run", "run"]
    return make


def _student_shape(**fields: object) -> Make:
    facts = json.loads((SHIPPED / "student.json").read_text()) | fields
    return _student_json(json.dumps(facts).encode())


def shapes() -> Iterator[Case]:
    for fields in ({"depth": 0}, {"depth": -1}, {"depth": 10**9}, {"depth": "12"}, {"depth": 12.5},
                   {"depth": True}, {"depth": None}, {"size": "xl"}, {"size": []}, {"patch": 0},
                   {"patch": -16}, {"patch": 1}, {"image_size": 10**6}, {"image_size": 8192},
                   {"out_dim": 0}, {"out_dim": 10**12}, {"out_dim": [256]}, {"new": 1}):
        yield Case("metadata", f"student.json with {fields}", _student_shape(**fields),
                   "student/student.")
    for what, content in DAMAGED_JSON.items():
        text = content[:10**6].decode(errors="replace")
        yield Case("metadata", f"a clip's header, {what}", _clip(text), "clip.safetensors")


def _clip(header: object, **arrays: np.ndarray) -> Make:
    def make(folder: Path) -> list[str]:
        clip(folder, header=header, **arrays)
        return ["scenes", "show", "clip.safetensors"]
    return make


def clips() -> Iterator[Case]:
    facts: dict = {"id": "test/1", "objects": [], "room_size": None}
    frames = np.zeros((2, 3, 8, 8), np.uint8)
    nan = np.full((2, 8, 8), np.nan, np.float32)
    odd: dict[str, tuple[object, dict]] = {
        "no frames": (facts, {"depth": nan}), "float frames": (facts, {"frames": nan}),
        "no frame": (facts, {"frames": frames[:0]}), "NaN depth": (facts, {"frames": frames,
                                                                          "depth": nan}),
        "depth of another shape": (facts, {"frames": frames, "depth": nan[:1]}),
        "an unknown array": (facts, {"frames": frames, "weights": nan}),
        "objects that are a word": (facts | {"objects": "sofa"}, {}),
        "an object without fields": (facts | {"objects": [{}]}, {}),
        "a room of text": (facts | {"room_size": 3}, {}),
        "no id": ({"objects": [], "room_size": None}, {}),
    }
    for what, (header, arrays) in odd.items():
        yield Case("clip", what, _clip(header, **arrays), "clip.safetensors")
    whole = bytes([8, 0, 0, 0, 0, 0, 0, 0]) + b"{}      "
    for what, content in {"nothing": b"", "8 bytes": bytes(8), "a header of 2^63": b"\xff" * 7 +
                          b"\x7f" + b"{}", "no tensor": whole, "text": b"hello " * 99,
                          "a pickle": b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00K\x01.",
                          "a nested header": (9000).to_bytes(8, "little") + b"[" * 9000}.items():
        for verb in ("show", "ask"):
            yield Case("clip", f"scenes {verb}, {what}",
                       written("clip.safetensors", content, ["scenes", verb, "clip.safetensors"]),
                       "clip.safetensors")
    for what, source, size in (("cut", "student", 1000), ("empty", "student", 0),
                               ("another file's", "heads", None)):
        yield Case("weights", f"student.safetensors {what}", _weights(source, size),
                   "student.safetensors")


def _weights(name: str, size: int | None) -> Make:
    def make(folder: Path) -> list[str]:
        content = (SHIPPED / f"{name}.safetensors").read_bytes()[:size]
        run(folder / "run", student_safetensors=content)
        return ["export", "onnx", "--run", "run"]
    return make


READERS = {  # kind of file -> what reads it, as `hostile` with this ending
    "clip": (".safetensors", ["scenes", "show", "hostile.safetensors"]),
    "questions": (".safetensors", ["scenes", "ask", "hostile.safetensors"]),
    "config": (".yaml", ["distill", "run", "--config", "hostile.yaml"]),
    "results": (".json", ["bench", "report", "--results", "hostile.json"]),
    "compared": (".json", ["bench", "compare", "hostile.json", "hostile.json"]),
    "pack": (".zip", ["scenes", "render", "--n", "1", "--furniture", "hostile.zip"]),
    "video": (".mp4", ["scenes", "show", "hostile.mp4"]),
    "benched": (".onnx", ["bench", "latency", "hostile.onnx"]),
    "document": (".md", ["bench", "tables", "hostile.md"]),
    "launch": (".yaml", ["teacher", "plan", "--launch", "hostile.yaml"]),
}


def special_files() -> Iterator[Case]:
    for what, special in {"a pipe": os.mkfifo, "a socket": _socket, "a device": _device,
                          "a folder": os.mkdir, "a link to itself": lambda p: os.symlink(p.name, p),
                          "missing": lambda p: None}.items():
        for kind, (ending, args) in READERS.items():
            yield Case("special file", f"{what} as {kind}", _special(special, ending, args),
                       "hostile")
        yield Case("special file", f"{what} as student.json", _special_student(special),
                   "run" if what == "missing" else "student")


def _special(special: Callable[[Path], object], ending: str, args: list[str]) -> Make:
    def make(folder: Path) -> list[str]:
        special(folder / f"hostile{ending}")
        return args
    return make


def _special_student(special: Callable[[Path], object]) -> Make:
    def make(folder: Path) -> list[str]:
        run(folder / "run")
        (folder / "run/student/student.json").unlink()
        special(folder / "run/student/student.json")
        return ["export", "onnx", "--run", "run"]
    return make


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(path.name)
    os.replace(path.name, path)


def _device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def names() -> Iterator[Case]:
    for name in ("", ".", "..", "latest", "cache", "../x", "/tmp/x", "a/b", ".hidden", "a b", "é",
                 "a\nb", "\x1b[2J", "n" * 300):
        yield Case("name", f"--name {name[:9]!r}", lambda folder, n=name: [
            "distill", "run", "--name", n], "name")
    for seeds in (["0", "0"], ["3", "1", "3"], []):
        yield Case("name", f"--seeds {seeds}", lambda folder, s=seeds: [
            "distill", "run", "--seeds", *s], "seeds")


CORPUS = (json_files, shapes, clips, special_files, names)
