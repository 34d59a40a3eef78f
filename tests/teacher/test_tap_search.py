"""The search for a tap: ranks that follow the evidence, intervals that cover it, and a search that
survives a kill."""
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

from distill.config import TeacherConfig, load_config
from records.files import digest
from teacher.cli import VERBS
from teacher.config import SEARCH_COLUMNS, AlignmentConfig, ProbeConfig, SearchConfig
from teacher.probing import probes, tap_search
from teacher.probing.correspondence import noise_snr
from teacher.probing.probe_set import probe_set
from teacher.probing.tap_search import (
    chosen_tap,
    noise_sums,
    rank,
    save_tap,
    tap_file,
)
from teacher.towers.checkpoints import NANO
from teacher.towers.efficientnet import SemanticEncoder
from teacher.towers.tap import Tap
from teacher.towers.wan import load_wan
from tests.fakes import FakeRooms, save_tiny_wan

ROOMS = FakeRooms(train=2, val=2, test=3, frames=5)


def clips(split):
    return [ROOMS.clip(i) for i in ROOMS.ids(split)]


@pytest.fixture
def quick(monkeypatch):
    # seconds each
    monkeypatch.setattr("teacher.probing.probes.mlp",
                        lambda x, y, x_test, seed: torch.zeros(len(x_test), 4))


def made_up(errors, clips=40, seed=0):
    """Sums of taps whose probes err by `errors` (share of the variance) on average, each clip
    differently."""
    rng = np.random.default_rng(seed)
    hardness = rng.uniform(0.5, 1.5, clips)
    ones = np.ones(clips)
    plain = {
        "tokens": 100 * ones, "depth": 0 * ones, "depth_square": 100 * ones, "near": 50 * ones,
        "normal_cos": 80 * ones, "xyz_square": 300 * ones, "x": 0 * ones, "y": 0 * ones,
        "z": 0 * ones, "signal": 10 * ones, "noise": ones
    } | {
        f"corr_{s}{k}": ones
        for s in ("", "std_")
        for k in ("same", "same_pairs", "other", "other_pairs", "auc", "auc_clips")
    } | {"corr_right": ones, "corr_asked": ones}
    return {("image", 100 * (i + 1), 4): plain | {
                name: hardness * error * size * rng.uniform(0.8, 1.2, clips)
                for name, size in (("ridge_error", 100), ("mlp_error", 100), ("fused_error", 100),
                                   ("xyz_error", 300))
            }
            for i, error in enumerate(errors)}


def test_the_tap_that_errs_least_comes_first_and_its_interval_holds_the_truth():
    found = rank(made_up([0.6, 0.2, 0.4]), SearchConfig(resamples=300))
    assert [row["t"]
            for row in found.rows] == [0.2, 0.3, 0.1] and [row["rank"]
                                                           for row in found.rows] == [1, 2, 3]
    assert found.best == Tap(block=4, k=200)
    for row, error in zip(found.rows, (0.2, 0.4, 0.6), strict=True):
        assert row["depth_r2_mlp_low"] < 1 - error < row["depth_r2_mlp_high"]
        assert row["depth_r2_mlp_high"] - row["depth_r2_mlp_low"] < 0.4 * error
    assert found.rows[0]["first_share"] == 1 and found.rows[0]["score"] == 100 and found.rows[2][
        "score"] == 0


def test_equals_share_the_first_place_and_more_clips_narrow_the_interval():
    few, many = (rank(made_up([0.4, 0.4], n), SearchConfig(resamples=400)).rows for n in (10, 160))
    assert all(0.02 < row["first_share"] < 0.98 for row in few)

    def width(rows):
        return rows[0]["depth_r2_mlp_high"] - rows[0]["depth_r2_mlp_low"]

    assert width(many) < width(few) / 2


def test_what_decides_is_a_choice_and_unknown_columns_are_refused():
    taps = made_up([0.2, 0.6])
    taps["image", 200, 4]["noise"] = taps["image", 200, 4]["noise"] / 10
    assert rank(taps, SearchConfig()).best.k == 100 and rank(
        taps, SearchConfig(by=("snr", ))).best.k == 200
    assert set(SEARCH_COLUMNS) < set(rank(taps, SearchConfig()).rows[0])
    linear = {tap: {k: v for k, v in found.items() if k not in ("mlp_error", "near", "normal_cos")}
              for tap, found in taps.items()}
    found = rank(linear, SearchConfig(mlp=False))
    assert found.best.k == 100 and "depth_r2_mlp" not in found.rows[0] and found.rows[0][
        "first_share"] == 1
    with pytest.raises(
            ValueError,
            match="no column normal_cos; expected some of: depth_r2_ridge, xyz_r2_ridge, corr_std"):
        SearchConfig(mlp=False, by=("normal_cos",))
    for bad, message in (({"by": ("depht", )}, "no column depht; expected some of: depth_r2_ridge"),
                      ({"clips": 1}, "at least 2"), ({"modes": ()}, "one mode"), ({"levels":
                          ()}, "one level"), ({"levels": (1001, )}, "search.levels is 1001")):
        with pytest.raises(ValueError, match=message):
            SearchConfig(**bad)


def test_the_noise_of_two_draws_clip_by_clip_sums_to_noise_snr():
    mean, noise = torch.randn(3, 2, 5, 14, 14) * 2, torch.randn(2, 3, 2, 5, 14, 14)
    one, two = mean + noise
    found = noise_sums(one, two)
    assert found["signal"].shape == (3,)
    wanted = noise_snr(torch.stack([one, two]).movedim(3, -1).flatten(1, -2))["snr"]
    assert found["signal"].sum() / found["noise"].sum() - 0.5 == pytest.approx(wanted, rel=1e-2)


def test_probe_sums_of_all_clips_give_the_probe_s_own_scores(quick):
    train, test = (probe_set(clips(s), [0, 4]) for s in ("val", "test"))
    x = [torch.randn(len(s.frames), 2, 8, 14, 14) for s in (train, test)]
    parts = probes.sums(train, test, *x, tuple(x))
    assert all(v.shape == (3,) for v in parts.values())
    complete = probes.probe(train, test, *x, tuple(x))
    for name, value in probes.scores({k: v.sum() for k, v in parts.items()}).items():
        assert value == pytest.approx(complete[name], nan_ok=True)
    truth, guess = test.depth.log().flatten(), torch.full((test.depth.numel(), ),
                                                          float(test.depth.log().mean()))
    constant = dict(parts, ridge_error=((guess - truth) ** 2).view(3, -1).sum(1).numpy())
    assert probes.scores({k: v.sum()
                          for k, v in constant.items()
                          })["depth_r2_ridge"] == pytest.approx(0, abs=1e-5)


def test_a_killed_search_goes_on_and_ends_alike(tiny_wan, tmp_path, monkeypatch, quick):
    config = SearchConfig(generator=str(tiny_wan), levels=(100, 800), modes=("image", ), clips=2,
                          resamples=20, device="cpu")
    complete = tap_search.search(config, clips, "k", tmp_path / "complete")
    assert len(complete.rows) == 6 and {row["block"] for row in complete.rows} == {0, 1, 2}
    real, calls = tap_search._read_taps, []

    def killed(tower, blocks, *rest):
        calls.append((tower.tap.k, len(blocks)))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(tower, blocks, *rest)

    monkeypatch.setattr(tap_search, "_read_taps", killed)
    with pytest.raises(KeyboardInterrupt):
        tap_search.search(config, clips, "k", tmp_path / "half")
    files = list((tmp_path / "half").iterdir())
    tap = {"block": 2, "k": 100, "frames": "image", "seeds": 1, "seed": 0, "noise": "shared",
           "geometry": "registered", "side": None, "tail": "refuse", "precision": "auto"}
    weights = load_wan(tiny_wan, Tap(block=2)).spec["weights"]
    name = digest(weights, tap, SemanticEncoder.spec, "k", 2, True, "val")
    assert [file.name for file in files] == [f"{name}.safetensors"]
    assert tap_search.search(config, clips, "k",
                             tmp_path / "half") == complete
    best = complete.best.k, 1  # on test, then with random weights on val and test
    assert calls == [(100, 3), (800, 3), (800, 3), best, best, best]
    files[0].write_bytes(files[0].read_bytes()[:99])  # a damaged one is made again
    assert tap_search.search(config, clips, "k", tmp_path / "half") == complete
    assert calls[6:] == [(100, 3)]
    tap_search.search(config, clips, "other clips", tmp_path / "half")
    assert len(calls) == 12


def test_val_chooses_the_tap_and_test_scores_only_that(tiny_wan, tmp_path, monkeypatch):
    errors = {"val": (0.6, 0.2, 0.4), "test": (0.1, 0.5, 0.1)}
    read = []

    def split_of(found):
        return next(iter(found)).id.split("/")[0]

    def made_up_taps(tower, blocks, sets, *rest):
        read.append((sets.fit, sets.test, blocks))
        return {block: next(iter(made_up([errors[sets.test][block]]).values())) for block in blocks}

    monkeypatch.setattr(tap_search, "probe_set", split_of)
    monkeypatch.setattr(tap_search, "extract", lambda *rest: None)
    monkeypatch.setattr(tap_search, "frame_controls", lambda *rest: {})
    monkeypatch.setattr(tap_search, "_read_taps", made_up_taps)
    config = SearchConfig(generator=str(tiny_wan), levels=(300,), modes=("image",), clips=2,
                          resamples=50, device="cpu")
    found = tap_search.search(config, clips, "k", tmp_path)
    assert read[:2] == [("train", "val", [0, 1, 2]), ("train", "test", [1])]
    first, *others = found.rows
    assert found.best.block == first["block"] == 1
    assert first["depth_r2_ridge"] == pytest.approx(0.8, abs=0.05)
    assert first["test_depth_r2_ridge"] == pytest.approx(0.5, abs=0.05)
    assert first["test_depth_r2_ridge_low"] < 0.5 < first["test_depth_r2_ridge_high"]
    assert not any(name.startswith("test_") for row in others for name in row)
    assert all(row["grid"] == 14 and row["clips"] == 40 for row in found.rows)


def test_the_verb_writes_rows_picture_and_the_tap_that_auto_uses(tmp_path, monkeypatch, quick):
    folder = save_tiny_wan(tmp_path / "wan")
    monkeypatch.setattr("scenes.rooms.source.render_clips",
                        lambda source, ids, workers: clips(ids[0].split("/")[0]))
    with pytest.raises(ValueError,
                       match=r"no tap was chosen .* run: vega3d teacher search --generator"):
        chosen_tap(str(folder), Tap())
    config = SearchConfig(generator=str(folder), levels=(700, ), modes=("video", ), clips=2,
                          resamples=20, mlp=False, device="cpu")
    VERBS["search"](config, out=tmp_path / "tap_search.json", work=tmp_path / "work")
    rows = json.loads((tmp_path / "tap_search.json").read_text())["rows"]
    names = ["position only", "semantic encoder", "rgb patches", "vae latents",
             "random-weights ViT-S", "random weights"]
    assert [row["features"] for row in rows[3:]] == names and "rank" not in rows[3]
    place, semantic = rows[3:5]  # nothing, and the same again, add nothing to the encoder
    for row in (place, semantic):
        for split in ("", "test_"):
            assert row[f"{split}depth_r2_fused"] == pytest.approx(
                semantic[f"{split}depth_r2_ridge"], abs=0.05)
    assert place["depth_r2_ridge"] < semantic["depth_r2_ridge"] - 0.1
    assert place["corr_std_auc"] is place["test_corr_std_auc"] is None
    assert semantic["test_corr_std_auc_low"] <= semantic["test_corr_std_auc"]
    assert (rows[8]["block"], rows[8]["t"]) == (rows[0]["block"], 0.7)
    assert len(rows) == 9 and (tmp_path / "tap_search.png").stat().st_size > 1000
    assert tap_file(folder) == folder / "tap.yaml"
    tap = chosen_tap(str(folder), Tap(seeds=2))
    assert tap == Tap(block=rows[0]["block"], k=700, frames="video", seeds=2)
    (tmp_path / "run.yaml").write_text(
        yaml.safe_dump({"teacher": {"generator": str(folder), "tap": "auto"}}))
    assert load_config(tmp_path / "run.yaml").teacher == TeacherConfig(
        str(folder), Tap(rows[0]["block"], 700, "video"))


def test_a_search_and_a_probe_change_no_file_of_the_checkout(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    found = SimpleNamespace(rows=[{"block": 2}], controls=[], best=Tap(2, 500, "video"))
    for name, stub in (("tap_search.search", lambda *_: found),
                       ("tap_search.print_ranking", lambda _: None),
                       ("sweep.probe_grid", lambda *_: found.rows),
                       ("alignment.probe_alignment", lambda *_: found.rows),
                       ("sweep.heat_map", lambda rows, path, *_: path.touch())):
        monkeypatch.setattr(f"teacher.probing.{name}", stub)
    before = tap_file(NANO).stat()
    VERBS["search"](SearchConfig())
    assert capsys.readouterr().out.endswith("vega3d distill run --teacher.tap.block 2 "
                                            "--teacher.tap.k 500 --teacher.tap.frames video\n")
    VERBS["probe"](ProbeConfig(), AlignmentConfig())
    VERBS["probe"](ProbeConfig(), AlignmentConfig(generators=("wan-nano",)))
    assert tap_file(NANO).stat() == before
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")} == {
        "runs/tap_search.json", "runs/tap_search.png", "runs/nano_probe.json",
        "runs/nano_probe.png", "runs/alignment.json"}


def test_a_tap_file_that_is_none_is_named(tmp_path):
    save_tap(Tap(block=6, k=300), tmp_path / "tap.yaml")
    assert yaml.safe_load(
        (tmp_path / "tap.yaml").read_text()) == {"block": 6, "k": 300, "frames": "image"}
    for text in ("block: 1", ": :", "[1, 2]"):
        (tmp_path / "tap.yaml").write_text(text)
        with pytest.raises(ValueError, match=r"tap\.yaml: not (a chosen tap|YAML)"):
            chosen_tap(str(tmp_path), Tap())


def test_the_shipped_default_is_as_good_as_what_the_committed_search_put_first():
    first, *others = json.loads(
        (Path(__file__).parents[2] / "bench/results/tap_search.json").read_text())["rows"]
    shipped = next(row for row in (first, *others) if (row["block"], row["t"], row["mode"]) == (
        Tap().block, Tap().k / 1000, Tap().frames))
    assert first["rank"] == 1 and first["score_low"] < shipped["score"]
    assert shipped["first_share"] > 0.4
    assert chosen_tap("wan-nano", Tap()) == Tap()
