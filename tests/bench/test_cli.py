"""`vega3d bench` by its command line: files written, parts kept, one line for an error."""
import json
from pathlib import Path

import pytest

import vega3d
from bench.tables.save_results import save_result_file
from records.results import Results, load, save
from tests.bench_rows import ENV, sample
from tests.bench_run import DrawnRooms, drawn_run, use

QUICK = ["--seconds", "0.02", "--iterations", "4", "--rounds", "2", "--no-memory"]


@pytest.fixture(scope="module", autouse=True)
def drawn_rooms():
    with pytest.MonkeyPatch.context() as patch:
        use(DrawnRooms(), patch)
        yield


def bench(*args: object) -> None:
    vega3d.main(["bench", *map(str, args)])


def test_bench_writes_results_and_a_page_that_names_the_run(tmp_path, capsys):
    link = tmp_path / "latest"
    link.symlink_to(drawn_run())
    bench("--run", link, "--out", tmp_path / "out", *QUICK)
    results = load(tmp_path / "out" / "results.json")
    assert {row["kind"] for row in results.rows} == {
        "run", "latency", "preprocess", "accuracy", "picture", "match", "match_pair", "layer",
        "absent"}
    assert results.of("run")[0]["run"] == str(drawn_run().resolve())
    absent = [row["what"] for row in results.of("absent")]
    assert len(absent) == len(set(absent))
    assert str(drawn_run()) in (tmp_path / "out" / "report.html").read_text()
    output = capsys.readouterr().out
    assert "Student, ONNX INT8" in output and "INT8 or not" in output and "report.html" in output


def test_the_same_file_is_timed_and_scored(tmp_path):
    bench("--run", drawn_run(), "--out", tmp_path, *QUICK)
    results = load(tmp_path / "results.json")
    timed = {row["artefact"]: row["sha256"] for row in results.of("latency")
             if row["stage"] == "student"}
    scored = {row["artefact"]: row["sha256"] for row in results.of("accuracy") if "artefact" in row}
    assert {"student.safetensors", "model.onnx",
            "model.int8.cpu.onnx"} <= timed.keys() & scored.keys()
    assert all(timed[name] == scored[name] for name in timed)


def test_one_verb_keeps_what_the_other_measured(tmp_path):
    bench("accuracy", "--run", drawn_run(), "--out", tmp_path)
    scored = load(tmp_path / "results.json").of("accuracy")
    assert scored and "vega3d bench latency" in (tmp_path / "report.html").read_text()
    bench("latency", drawn_run(), "--out", tmp_path, "--no-teacher", *QUICK)
    both = load(tmp_path / "results.json")
    assert both.of("accuracy") == scored and both.of("latency")


@pytest.mark.parametrize("foreign", ["student", "cpu"])
def test_rows_of_another_student_or_machine_are_not_kept(tmp_path, foreign):
    bench("accuracy", "--run", drawn_run(), "--out", tmp_path)
    path = tmp_path / "results.json"
    content = json.loads(path.read_text())
    if foreign == "student":
        content["rows"][0]["student_sha256"] = "other"
    else:
        content["env"]["cpu"] = "other"
    path.write_text(json.dumps(content))
    bench("latency", drawn_run(), "--out", tmp_path, "--no-teacher", *QUICK)
    assert load(path).of("accuracy") == []


def test_the_page_is_drawn_again_from_its_results(tmp_path, capsys):
    bench("accuracy", "--run", drawn_run(), "--out", tmp_path)
    before = (tmp_path / "report.html").read_text()
    (tmp_path / "report.html").unlink()
    bench("report", "--results", tmp_path / "results.json")
    assert (tmp_path / "report.html").read_text() == before


@pytest.mark.parametrize(("args", "says"), [
    (("--run", "nowhere"), "no run here"), (("latency", "nowhere"), "no such file or folder"),
    (("accuracy", "--run", "nowhere"), "no run here"),
    (("report", "--results", "gone.json"), "missing; measure some with"),
    (("tables", "gone.md"), "no such file"),
])
def test_what_cannot_be_done_is_one_line_and_exit_code_2(args, says, capsys):
    with pytest.raises(SystemExit) as stop:
        bench(*args)
    error = capsys.readouterr().err.strip()
    assert stop.value.code == 2
    assert error.count("\n") == 0 and says in error and "Traceback" not in error


def test_results_with_strange_rows_are_one_line_and_no_page(tmp_path, capsys):
    rows = {"lean": {"kind": "latency"},
            "words": {"kind": "latency", "stage": "student", "latency_ms": "fast"}}
    for name, row in rows.items():
        save(Results(name, "c", "c", {}, [row]), tmp_path / f"{name}.json")
    words = tmp_path / "words.json"
    for args in (("report", "--results", tmp_path / "lean.json"), ("compare", words, words)):
        with pytest.raises(SystemExit) as stop:
            bench(*args)
        error = capsys.readouterr().err.strip()
        assert stop.value.code == 2 and error.count("\n") == 0
        assert "not as vega3d bench writes it" in error
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(("name", "field"), [
    ("latency_cpu", "latency_ms"), ("rooms_accuracy", "delta1")])
def test_measured_rows_become_a_committed_file_that_its_table_reads(tmp_path, name, field):
    from bench.tables.fill import table

    path = save_result_file(name, sample(tmp_path).rows, ENV, tmp_path)
    assert path == Path(tmp_path / f"{name}.json")
    rows = load(path).rows
    assert rows and all(field in row and "kind" not in row for row in rows)
    assert table(name, tmp_path).count("\n|") >= 2


def test_a_committed_file_needs_the_rows_it_is_made_of(tmp_path):
    with pytest.raises(ValueError, match="measured no such rows"):
        save_result_file("latency_cpu", sample(tmp_path).of("accuracy"), ENV, tmp_path)
    with pytest.raises(ValueError, match="no such result file; there are: latency_cpu"):
        save_result_file("speed", [], ENV, tmp_path)


def test_a_folder_that_cannot_be_written_to_is_found_before_anything_is_timed(tmp_path,
                                                                             monkeypatch):
    import bench.run
    from bench.latency.timing import LatencyConfig

    def read_only(folder):
        assert folder == tmp_path
        raise OSError(30, "Read-only file system", str(folder))

    monkeypatch.setattr(bench.run, "prepare_folder", read_only)
    monkeypatch.setattr(bench.run, "latency", lambda *_: pytest.fail("timed first"))
    for out in (None, tmp_path):  # beside the model, or where it was asked for
        with pytest.raises(OSError, match="Read-only"):
            bench.run.bench_files([tmp_path / "model.onnx"], LatencyConfig(soak="10m"), out)
