import io
import json

import pytest

from teacher.data.file_list import LINES, FileList

COUNT = 3 * LINES


def listed(i: int) -> tuple[bytes, int, int]:
    return bytes([i % 256]) * 32, i, i or -1


def line(i: int) -> bytes:
    sha256, size, mtime_ns = listed(i)
    return json.dumps({"clip": f"train/{i % COUNT}", "sha256": sha256.hex(), "bytes": size,
                       "mtime_ns": mtime_ns}).encode() + b"\n"


def test_every_clip_is_found_with_what_was_listed_last():
    files, text = FileList(), b"".join(map(line, range(COUNT + 5)))
    assert files.read(io.BytesIO(text)) == len(text)
    assert [files.get(f"train/{i}") for i in range(COUNT)] == [
        listed(i + COUNT if i < 5 else i) for i in range(COUNT)]
    for i in range(7, 7 + 2 * LINES):  # also while rows are added
        files.add(f"train/{i % COUNT}", listed(i + 1))
        assert files.get(f"train/{i % COUNT}") == listed(i + 1)
    assert files.get("train/3") == listed(COUNT + 3) and files.get("test/3") is None


def test_an_empty_list_has_no_clip():
    assert FileList().get("train/0") is None and FileList().read(io.BytesIO()) == 0


@pytest.mark.parametrize("broken", [b'{"clip": "tr\n', b"[]\n", b'{"clip": ["a"]}\n', b"\xff\n",
                                    line(1).replace(b'"bytes": 1', b'"bytes": "1"'),
                                    line(1).replace(b'"bytes": 1', b'"bytes": 1e99')])
def test_a_broken_line_is_left_out_and_a_cut_one_is_not_read(broken):
    files, complete = FileList(), line(0) + broken + line(2)
    assert files.read(io.BytesIO(complete + line(3)[:-1])) == len(complete)
    assert files.get("train/0") and files.get("train/2")
    assert files.get("train/1") is None and files.get("train/3") is None
