"""The strict readers and writers of records/: JSON, YAML, ranges, arguments, full disks."""
import errno
import json
from dataclasses import dataclass
from typing import Annotated

import pytest
from safetensors import SafetensorError

from records.files import (
    MAX_DEPTH,
    atomic_write,
    parse_json,
    read_json,
    reading,
    regular_file,
    to_json,
    write_json,
)
from records.options import Count, Range, Rate, Share, check_ranges, parse_call
from records.yaml_files import read_yaml


def test_written_json_has_null_for_nan_and_infinity_and_is_read_by_any_parser(tmp_path):
    content = {"loss": float("nan"), "rows": [{"x": float("inf"), "y": 1.5}], "pair": (1, -2)}
    assert json.loads(to_json(content), parse_constant=pytest.fail) == {
        "loss": None, "rows": [{"x": None, "y": 1.5}], "pair": [1, -2]}
    write_json(content, tmp_path / "a.json")
    assert read_json(tmp_path / "a.json", "")["rows"] == [{"x": None, "y": 1.5}]


def test_json_is_as_deep_as_the_limit_and_numbers_as_long_as_64_bits():
    deep = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    assert parse_json(deep) and parse_json(f"[{2**63 - 1}, {-2**63}, 1e308]") == [
        2**63 - 1, -2**63, 1e308]
    for text, why in ((f"[{deep}]", "nested deeper"), ('{"a": 1, "a": 1}', "'a' is there twice"),
                      (str(2**64), "has 20 digits"), ("1e309", "not finite"), ("NaN", "NaN")):
        with pytest.raises(ValueError, match=why):
            parse_json(text)


def test_yaml_takes_aliases_and_merges_that_stay_small_and_leaves_dates_text(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("base: &b {lr: 0.1, date: 2026-11-28}\nrun: {<<: *b, lr: 0.2}\nagain: *b\n")
    base = {"lr": 0.1, "date": "2026-11-28"}
    found = read_yaml(path, "correct it")
    assert found["again"] == base and found["run"] == base | {"lr": 0.2}


def test_an_error_of_decoding_names_the_file_and_what_was_expected(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"x")
    with (pytest.raises(ValueError, match=r"a\.bin: not a clip \(no 'frames'\); copy it again"),
          reading(path, "a clip", "copy it again")):
        raise KeyError("frames")
    with (pytest.raises(FileNotFoundError), reading(tmp_path / "none", "a clip", "")):
        pass
    with pytest.raises(ValueError, match="is a folder, expected a file"):
        regular_file(tmp_path)


@pytest.mark.parametrize("error", [
    OSError(errno.ENOSPC, "No space left on device"),
    SafetensorError("I/O error: No space left on device (os error 28)")])
def test_a_full_disk_names_the_file_that_was_written(tmp_path, error):
    with (pytest.raises((OSError, ValueError), match=r"(?s)model\.bin.*|.*model\.bin") as failed,
          atomic_write(tmp_path / "model.bin")):
        raise error
    assert "No space left" in str(failed.value) and not any(tmp_path.iterdir())


@dataclass(frozen=True)
class Options:
    steps: Count = 1
    lr: Rate = 0.1
    shares: tuple[Share, ...] = ()
    batch: Annotated[int, Range(1, 8)] | str = 1

    def __post_init__(self) -> None:
        check_ranges(self, "options")


def test_a_number_out_of_its_range_is_named_with_the_range():
    Options(10_000_000, 1.0, (0.0, 1.0), "dynamic")
    for bad, why in (({"steps": 0}, "options.steps is 0, expected at least 1"),
                     ({"steps": True}, "options.steps is True"),
                     ({"lr": 0.0}, "options.lr is 0.0, expected more than 0 and at most 1"),
                     ({"lr": float("nan")}, "options.lr is nan"),
                     ({"shares": (0.5, 2.0)}, "options.shares is 2.0"),
                     ({"batch": 9}, "options.batch is 9, expected at least 1 and at most 8")):
        with pytest.raises(ValueError, match=why):
            Options(**bad)


def test_arguments_are_checked_before_the_call_and_errors_are_one_line():
    def train(steps: Count = 1) -> None:
        """Trains.

        Args:
            steps: of the training
        """
        called.append(steps)

    called: list[int] = []
    parse_call([train], ["--steps", "3"], "prog")()
    assert called == [3]
    for args, why in ((["--steps", "-3"], "--steps is -3, expected at least 1"),
                      (["--steps", "x"], "--steps"), (["--step", "3"], "Unrecognized options")):
        with pytest.raises(ValueError, match=why) as failed:
            parse_call([train], args, "prog")
        assert len(str(failed.value).splitlines()) == 1 and "─" not in str(failed.value)
