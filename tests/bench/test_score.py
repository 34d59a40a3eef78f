"""Accuracy of the very files: equal where they are equal, apart where they differ, with intervals
that hold."""
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from bench.accuracy.intervals import RoomBootstrap, add_intervals
from bench.accuracy.score import accuracy
from bench.artefacts import exported
from tests.bench_run import DrawnRooms, drawn_run, make_run, use


@pytest.fixture(scope="module", autouse=True)
def rooms():
    with pytest.MonkeyPatch.context() as patch:
        use(DrawnRooms(), patch)
        yield


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    return accuracy(drawn_run())


def by_features(rows: list[dict]) -> dict[str, dict]:
    return {row["features"]: row for row in rows if row["kind"] == "accuracy"}


def test_what_the_run_recorded_is_kept_as_it_was(rows):
    recorded = json.loads((drawn_run() / "accuracy.json").read_text())
    assert [row["features"]
            for row in recorded] == ["teacher", "semantic_only", "zeros", "student_fp32"]
    for row in recorded:
        assert row.items() <= by_features(rows)[row["features"]].items()


def test_each_exported_file_is_scored_under_its_own_digest(rows):
    scored = {row["features"]: row["sha256"] for row in rows if "fp32_cosine_mean" in row}
    assert scored == {file.features: file.sha256 for file in exported(drawn_run())[0]}
    assert set(scored) == {"student_onnx_fp32", "student_fp16", "student_int8_cpu"}


def test_the_fp32_file_scores_as_the_torch_student(rows):
    torch_row, onnx_row = by_features(rows)["student_fp32"], by_features(rows)["student_onnx_fp32"]
    # where the tiny teacher gains anything at all
    recoveries = {m for m in torch_row if m.startswith("recovery")}
    assert recoveries <= set(onnx_row)
    for metric in ("delta1", "abs_rel", "normal_deg", "miou", "cosine_mean", *recoveries):
        assert onnx_row[metric] == pytest.approx(torch_row[metric], rel=5e-3, abs=1e-3), metric
    assert onnx_row["fp32_cosine_mean"] > 0.99999


def test_int8_is_judged_by_its_own_features_not_by_the_torch_student(rows):
    int8 = by_features(rows)["student_int8_cpu"]
    assert 0.99 < int8["fp32_cosine_mean"] < by_features(
        rows)["student_onnx_fp32"]["fp32_cosine_mean"]
    assert int8["cosine_mean"] != by_features(rows)["student_fp32"]["cosine_mean"]


def test_the_paired_difference_is_the_difference_of_the_rows(rows):
    row, base = by_features(rows)["teacher"], by_features(rows)["semantic_only"]
    assert row["clips"] == row["rooms"] == 4
    for metric in ("delta1", "normal_deg"):
        found = row[f"{metric}_vs_semantic"]
        assert found == pytest.approx(row[metric] - base[metric], abs=1e-6)
        assert row[f"{metric}_vs_semantic_low"] <= found <= row[f"{metric}_vs_semantic_high"]
    assert "delta1_vs_semantic" not in base


def test_pictures_are_drawn_for_every_reader(rows):
    pictures = [row for row in rows if row["kind"] == "picture"]
    assert {row["place"]
            for row in pictures} == {
                "frame", "truth_depth", "semantic_depth", "teacher_depth", "student_depth",
                "int8_depth", "teacher_features", "student_features", "int8_features"
            }
    for row in pictures:
        content = (drawn_run() / "bench" / "strips" / row["file"]).read_bytes()
        assert content.startswith(b"\x89PNG") and row["alt"]
        assert (row["shows"] != "depth") or 0 < row["near_m"] < row["far_m"]


def test_a_second_bench_reads_the_features_it_has(rows, monkeypatch):
    monkeypatch.setattr("bench.accuracy.student_features.FileTower.features",
                        lambda *_: pytest.fail("ran the file again"))
    assert by_features(accuracy(drawn_run())) == by_features(rows)


def test_features_of_a_file_that_was_replaced_are_dropped(rows, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(drawn_run(), run)
    (run / "manifest.json").unlink()
    stores = sorted((run / "bench" / "features").glob("student_int8_cpu-*"))
    assert len(stores) == 1
    shutil.copy(run / "export" / "model.onnx", run / "export" / "model.int8.cpu.onnx")
    sidecar = json.loads((run / "export" / "model.onnx.json").read_text())
    (run / "export" / "model.int8.cpu.onnx.json").write_text(json.dumps(sidecar))
    again = by_features(accuracy(run))
    assert again["student_int8_cpu"]["fp32_cosine_mean"] == again["student_onnx_fp32"][
        "fp32_cosine_mean"]
    assert stores != (kept := sorted(
        (run / "bench" / "features").glob("student_int8_cpu-*"))) and len(kept) == 1


def test_clips_without_depth_are_scored_by_cosine_alone(tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        use(DrawnRooms(labelled=False), patch)
        run = make_run(tmp_path, labelled=False, depth=1)
        found = accuracy(run)
    row = by_features(found)["student_fp32"]
    assert {"cosine_mean", "cosine_p1"} <= row.keys() and "delta1" not in row
    assert {r["place"]
            for r in found
            if r["kind"] == "picture"} == {"frame", "teacher_features", "student_features"}
    assert load_file(run / "frames" / "heldout.safetensors").keys() == {"frames"}


@pytest.mark.parametrize(("present", "says"), [
    ((), "no run here"), (("config.yaml",), "finish it with: vega3d distill")])
def test_no_run_and_an_unfinished_run_say_what_to_do(tmp_path, present, says):
    for name in present:
        (tmp_path / name).write_text("")
    with pytest.raises(ValueError, match=says):
        accuracy(Path(tmp_path))


def clips(**values: list[float]) -> dict[str, list[dict]]:
    """Per-clip rows: delta1 as given, and normals that improve as delta1 does."""
    return {
        name: [{"delta1": v, "normal_deg": 30 - 20 * v} for v in column]
        for name, column in values.items()
    }


def test_clips_of_one_room_are_drawn_together():
    ids = [f"test/{room:05d}_{take}" for room in range(8) for take in range(2)]
    assert RoomBootstrap(ids).count == 8
    alone = np.repeat(np.arange(8.0), 2)
    together = RoomBootstrap(ids).difference(alone, np.zeros(16))
    apart = RoomBootstrap([f"test/{i}" for i in range(16)]).difference(alone, np.zeros(16))
    assert together[2] - together[1] > 1.2 * (apart[2] - apart[1])  # sqrt(2) times wider


def test_a_difference_that_every_clip_shares_has_no_spread():
    noise = np.random.default_rng(0).normal(size=20)
    rooms = RoomBootstrap([f"test/{i}" for i in range(20)])
    mean, low, high = rooms.difference(noise + 0.25, noise)
    assert (mean, low, high) == pytest.approx((0.25, 0.25, 0.25))


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    ids = [f"test/{i}" for i in range(30)]
    found = [RoomBootstrap(ids, seed).difference(rng.normal(0.1, 1, 30), np.zeros(30))
             for seed in range(120)]
    assert 0.88 <= np.mean([low <= 0.1 <= high for _, low, high in found]) <= 0.99


def test_one_room_has_an_interval_without_ends():
    assert RoomBootstrap(["test/1_0", "test/1_1"]).difference(np.ones(2),
                                                      np.zeros(2)) == (1, -np.inf, np.inf)


def test_recovery_has_bounds_where_the_teacher_surely_gains():
    rng = np.random.default_rng(2)
    base = rng.uniform(0.5, 0.7, 24)
    rows = [{"features": "student_fp32", "recovery": 0.8}]
    add_intervals(
        rows,
        clips(semantic_only=base, teacher=base + rng.uniform(0.08, 0.12, 24),
              student_fp32=base + rng.uniform(0.06, 0.1, 24)), [f"test/{i}" for i in range(24)])
    assert 0.7 < rows[0]["recovery_low"] < 0.8 < rows[0]["recovery_high"] < 0.9
    assert rows[0]["recovery_low"] <= rows[0]["recovery_delta1_low"]


def test_recovery_of_a_gain_that_may_be_zero_has_no_bounds():
    rng = np.random.default_rng(3)
    base = rng.uniform(0.5, 0.7, 24)
    rows = [{"features": "student_fp32", "recovery": 7.0}]
    add_intervals(
        rows,
        clips(semantic_only=base, teacher=base + rng.normal(0, 0.1, 24), student_fp32=base + 0.05),
        [f"test/{i}" for i in range(24)])
    assert not [key for key in rows[0] if key.startswith("recovery_")]
    assert rows[0]["delta1_vs_semantic_low"] > 0


def test_a_run_of_another_seed_adds_its_rows_and_one_of_the_same_seed_is_refused(rows, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(drawn_run(), other)
    (other / "manifest.json").unlink()  # it is edited below
    with pytest.raises(ValueError, match="seed 0 is also in"):
        accuracy(drawn_run(), also=[other])
    _as_seed(other, 1)
    config = other / "config.yaml"  # the same features, in a folder that it names
    config.write_text(config.read_text().replace("features: null", f"features: {other}/features"))
    both = accuracy(drawn_run(), also=[other])
    mine, theirs = ([r for r in both if r["kind"] == "accuracy" and r["seed"] == seed]
                    for seed in (0, 1))
    assert mine == [r for r in rows if r["kind"] == "accuracy"]
    assert [r["features"] for r in theirs] == [r["features"] for r in mine]
    # intervals and pictures: the first run's
    assert not [key for row in theirs for key in row if key.endswith("_low")]
    assert [r for r in both
            if r["kind"] != "accuracy"] == [r for r in rows if r["kind"] != "accuracy"]
    config.write_text(config.read_text().replace("epochs: 1\n", "epochs: 2\n"))
    with pytest.raises(ValueError, match="more than the seeds"):
        accuracy(drawn_run(), also=[other])


def _as_seed(run: Path, seed: int) -> None:
    """The same files under another seed's name."""
    for path in (run / "teacher").iterdir():
        path.rename(path.with_name(path.name.replace("_seed0", f"_seed{seed}")))
    config, recorded = run / "config.yaml", run / "accuracy.json"
    config.write_text(config.read_text().replace("seeds:\n- 0\n", f"seeds:\n- {seed}\n"))
    recorded.write_text(
        json.dumps([{**row, "seed": seed} for row in json.loads(recorded.read_text())]))
