"""Result files: what is saved is loaded again, other files are refused with the reason."""
import json

import pytest

from records.results import ROOT, Results, load, measured, save, shorten_paths

ROW = {"kind": "latency", "artefact": "model.onnx", "latency_ms": 12.5, "batch": 1, "speedup": None}


def results(*rows: dict) -> Results:
    return Results("bench", "vega3d bench", "abc123", {"cpu": "a processor"}, list(rows))


def test_what_was_saved_comes_back_equal(tmp_path):
    saved = results(ROW, {"kind": "accuracy", "delta1": 0.8})
    save(saved, tmp_path / "results.json")
    assert load(tmp_path / "results.json") == saved


def test_rows_are_found_by_kind_in_order():
    saved = results({**ROW, "batch": 1}, {"kind": "accuracy"}, {**ROW, "batch": 8})
    assert [row["batch"] for row in saved.of("latency")] == [1, 8]
    assert saved.of("picture") == []


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_ratio_over_nothing_becomes_null(tmp_path, value):
    save(results({"recovery": value}), tmp_path / "results.json")
    assert load(tmp_path / "results.json").rows == [{"recovery": None}]


def test_a_row_that_is_not_flat_is_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(ValueError, match=r"parity is a dict"):
        save(results({"parity": {"cosine": 1.0}}), tmp_path / "results.json")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("content", "says"), [
    ("not json", "not JSON"), ("[]", "is a list, expected a dict"),
    (json.dumps({"schema": 2}), "schema 2, this one reads 1"),
    (json.dumps({"schema": 1, "name": "a"}), "got command = None"),
    (json.dumps({"schema": 1, "name": "a", "command": "b", "commit": "c", "env": {}, "rows": [1]}),
     "row 0 is 1"),
])
def test_a_file_of_another_kind_is_refused_with_the_reason(tmp_path, content, says):
    path = tmp_path / "results.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=says) as error:
        load(path)
    assert str(path) in str(error.value)


def test_a_missing_file_names_the_command_that_makes_it(tmp_path):
    with pytest.raises(ValueError, match="measure some with: vega3d bench"):
        load(tmp_path / "results.json")


def test_a_measurement_records_its_command_and_commit(monkeypatch):
    monkeypatch.setattr("sys.argv", ["/usr/bin/vega3d", "bench", "--threads", "2"])
    found = measured("latency_cpu", [ROW], {"commit": "abc123"})
    assert (found.command, found.commit) == ("vega3d bench --threads 2", "abc123")


@pytest.mark.parametrize(("command", "short"), [
    ("vega3d bench --run runs/a --out /tmp/b/c", "vega3d bench --run runs/a --out c"),
    ("python -m x --out=/tmp/b.json NAME=/tmp/c/", "python -m x --out=b.json NAME=c"),
    (f"x {ROOT}/runs/001 ../other/clips", "x runs/001 clips"),
    ("x ./a/b https://host/path a/b; y /tmp/z, /q", "x ./a/b https://host/path a/b; y z, q")])
def test_recorded_commands_have_no_machine_paths(command, short):
    assert shorten_paths(command) == short
