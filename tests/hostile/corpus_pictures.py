"""Pictures: among a folder's frames, as a photo of `vega3d infer`, as textures, in a report."""
import io
import json
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper
from PIL import Image

from infer.model import EXPECTED_INPUT
from tests.hostile.case import Case

Make = Callable[[Path], list[str]]
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n(/etc/passwd) (r) file\nshowpage\n"


def picture(kind: str = "PNG", size: tuple[int, int] = (64, 48), **options: object) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, (90, 120, 30)).save(out, kind, **options)
    return out.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, *chunks: bytes, depth: int = 8, colour: int = 2) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(chunks) + chunk(b"IEND", b"")


def pictures() -> dict[str, bytes]:
    jpeg = picture("JPEG")
    text = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(10**8), 9))
    pixels = chunk(b"IDAT", zlib.compress(bytes((64 * 3 + 1) * 48)))
    return {
        "nothing": b"", "zeros": bytes(999), "text": b"hello\n" * 99, "EPS": EPS,
        "EPS in DOS": b"\xc5\xd0\xd3\xc6" + struct.pack("<IIIIIIH", 32, len(EPS), 0, 0, 0, 0,
                                                      65535) + bytes(2) + EPS,
        "PDF": b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n", "SVG": b"<svg xmlns='a'/>",
        "PPM": b"P6 4 4 255\n" + bytes(48), "ICO": picture("ICO"), "TGA": picture("TGA"),
        "PCX": picture("PCX"), "DDS": picture("DDS"), "ICNS": picture("ICNS"),
        "HEIC": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "a JPEG cut": jpeg[:len(jpeg) // 2],
        "a JPEG's header": jpeg[:20], "a PNG cut": picture(size=(640, 480))[:99],
        "a PNG without pixels": png(64, 48), "a PNG of 0 px": png(0, 0, pixels),
        "a PNG of 60000 x 60000": png(60_000, 60_000, pixels),
        "a PNG of 2^31 x 2^31": png(2**31 - 1, 2**31 - 1, pixels),
        "a PNG with 100 MB of text": png(64, 48, text, pixels),
        "a PNG of another checksum": picture()[:-20] + bytes(8) + picture()[-12:],
        "a BMP of 60000 x 60000": picture("BMP")[:18] + struct.pack("<ii", 60_000, 60_000)
        + picture("BMP")[26:],
        "a GIF of 65535 x 65535": picture("GIF")[:6] + b"\xff\xff\xff\xff" + picture("GIF")[10:],
        "a TIFF cut": picture("TIFF")[:40], "a WebP cut": picture("WEBP")[:40],
        "a TIFF of floats": _tiff_of_floats(),
    }


def _tiff_of_floats() -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.ones((48, 64), np.float32)).save(out, "TIFF")
    return out.getvalue()


def model(path: Path) -> None:
    """An identity that declares frames [1,3,32,32] as an export does."""
    kinds = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, 32, 32])
             for name in ("frames", "features")]
    node = helper.make_node("Identity", ["frames"], ["features"])
    proto = helper.make_model(helper.make_graph([node], "g", kinds[:1], kinds[1:]),
                              opset_imports=[helper.make_opsetid("", 17)])
    proto.ir_version = 8
    entry = proto.metadata_props.add()
    entry.key, entry.value = "input", json.dumps({"name": "frames", **EXPECTED_INPUT})
    onnx.save(proto, path)


def photos() -> Iterator[Case]:
    names = pictures()
    names["a PNG in full, 40000 x 40000"] = b""
    for what, content in names.items():
        heavy = what.endswith("40000")
        yield Case("picture", f"infer, {what}", _photo(content, heavy), "hostile.jpg", heavy)
        yield Case("picture", f"a frame of a folder, {what}", _folder(content, heavy),
                   "hostile.jpg", heavy)


def _photo(content: bytes, large: bool) -> Make:
    def make(folder: Path) -> list[str]:
        model(folder / "model.onnx")
        (folder / "hostile.jpg").write_bytes(_large() if large else content)
        return ["infer", "model.onnx", "hostile.jpg", "-o", "out"]
    return make


def _folder(content: bytes, large: bool) -> Make:
    def make(folder: Path) -> list[str]:
        (folder / "frames").mkdir()
        for i in range(8):
            (folder / f"frames/{i}.png").write_bytes(picture())
        (folder / "frames/hostile.jpg").write_bytes(_large() if large else content)
        return ["scenes", "show", "frames"]
    return make


def _large() -> bytes:
    packed = zlib.compressobj(9)
    rows = [packed.compress(bytes(5001)) for _ in range(40_000)]
    return png(40_000, 40_000, chunk(b"IDAT", b"".join(rows) + packed.flush()), depth=1, colour=0)


def special_pictures() -> Iterator[Case]:
    for what, special in {"a pipe": os.mkfifo, "a device": lambda p: p.symlink_to("/dev/zero"),
                          "a folder": os.mkdir, "missing": lambda p: None}.items():
        yield Case("special file", f"{what} as photo", _special(special), "hostile.jpg")


def _special(special: Callable[[Path], object]) -> Make:
    def make(folder: Path) -> list[str]:
        model(folder / "model.onnx")
        special(folder / "hostile.jpg")
        return ["infer", "model.onnx", "hostile.jpg", "-o", "out"]
    return make


def packs() -> Iterator[Case]:
    manifest = {"schema": 1, "source": "x", "models": []}
    chair = {"id": "a", "name": "chair", "category": "chair", "split": "train", "size": [1, 1, 1],
             "top": "", "vertices": 3, "triangles": 1, "textures": 0, "materials": [[0] * 5]}
    odd: dict[str, bytes | dict[str, bytes]] = {
        "no zip": b"hello", "cut": _zip({"manifest.json": b"{}"})[:40], "empty": _zip({}),
        "no models": _zip({"manifest.json": json.dumps(manifest | {"models": 3}).encode()}),
        "a manifest nested": _zip({"manifest.json": b"[" * 99_999}),
        "a manifest with a key twice": _zip({"manifest.json": b'{"models": [], "models": []}'}),
        "a manifest that is a list": _zip({"manifest.json": b"[]"}),
        "a manifest not UTF-8": _zip({"manifest.json": b"\xff\xfe"}),
        "a manifest of 300 MB": _zip({"manifest.json": b" " * 300_000_000}),
        "a model without its mesh": _zip({"manifest.json": json.dumps(
            manifest | {"models": [chair]}).encode()}),
    }
    for what, content in odd.items():
        yield Case("pack", what, _pack(content), "hostile.zip", heavy="MB" in what)


def _zip(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return out.getvalue()


def _pack(content: bytes) -> Make:
    def make(folder: Path) -> list[str]:
        (folder / "hostile.zip").write_bytes(content)
        return ["scenes", "render", "--n", "1", "--furniture", "hostile.zip", "--workers", "0"]
    return make


def reports() -> Iterator[Case]:
    secret = {"/etc/passwd": "a file", "../../secret.png": "a file outside", "secret.png": "a link",
              "text.png": "a text", "eps.png": "EPS", "bomb.png": "a bomb"}
    for name, what in secret.items():
        yield Case("report", f"a picture row that names {what}", _report(name), "strips")
    for what, row in {"a row without fields": {"kind": "latency"}, "an unknown place": {
            "kind": "accuracy"}, "a nested row": {"kind": "latency", "latency_ms": [1]},
            "text for a number": {"kind": "latency", "latency_ms": "fast", "backend": "x"},
            "a run that is a number": {"kind": "run", "run": 3}}.items():
        yield Case("report", what, _rows([row]), "results.json")


def _rows(rows: list[dict]) -> Make:
    def make(folder: Path) -> list[str]:
        (folder / "results.json").write_text(json.dumps(
            {"schema": 1, "name": "n", "command": "c", "commit": "0", "env": {}, "rows": rows}))
        return ["bench", "report", "--results", "results.json"]
    return make


def _report(name: str) -> Make:
    def make(folder: Path) -> list[str]:
        strips = folder / "run/bench/strips"
        strips.mkdir(parents=True)
        (folder / "run/secret.png").write_bytes(picture())
        (strips / "secret.png").symlink_to(folder / "run/secret.png")
        (strips / "text.png").write_text("root:x:0:0")
        (strips / "eps.png").write_bytes(EPS)
        (strips / "bomb.png").write_bytes(png(60_000, 60_000))
        row = {"kind": "picture", "clip": "test/1", "file": name, "place": "frame",
               "shows": "frame", "alt": "a frame"}
        return _rows([{"kind": "run", "run": str(folder / "run")}, row])(folder)
    return make


CORPUS = (photos, special_pictures, packs, reports)
