from dataclasses import replace
from pathlib import Path

import pytest

from distill.config import (
    RunConfig,
    ScenesConfig,
    TeacherConfig,
    anchored,
    dump_config,
    load_config,
    load_run_config,
)
from records.yaml_files import read_yaml


def yaml_file(tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return path


def test_a_config_survives_being_written_and_read(tmp_path):
    config = replace(RunConfig(), name="a", seeds=(1, 2),
                     scenes=replace(ScenesConfig(), path=Path("my/video.mp4")))
    assert load_config(yaml_file(tmp_path, dump_config(config))) == config
    assert load_config(yaml_file(tmp_path, "")) == RunConfig()


def test_a_run_of_before_the_noise_knob_keeps_its_fresh_noise(tmp_path):
    text = dump_config(RunConfig())
    lines = [line for line in text.splitlines() if not line.strip().startswith("noise:")]
    assert len(lines) == len(text.splitlines()) - 1
    (tmp_path / "config.yaml").write_text("\n".join(lines))
    assert load_run_config(tmp_path).teacher.tap.noise == "fresh"
    (tmp_path / "config.yaml").write_text(text.replace("noise: fresh", "noise: shared"))
    assert load_run_config(tmp_path).teacher.tap.noise == "shared"


def test_a_run_of_before_the_removal_of_averaged_weights_opens_if_it_had_none(tmp_path):
    training = replace(RunConfig().student, augment=("photometric",))
    config = replace(RunConfig(), student=training)
    text, file = dump_config(config), tmp_path / "config.yaml"
    assert "ema" not in text
    file.write_text(text.replace("student:\n", "student:\n  ema: 0.0\n"))
    assert load_config(file).student == load_run_config(tmp_path).student == training
    file.write_text(text.replace("student:\n", "student:\n  ema: 0.999\n"))
    with pytest.raises(ValueError, match="student: unknown key 'ema'"):
        load_run_config(tmp_path)


def test_nested_keys_and_integers_for_floats_are_accepted(tmp_path):
    text = "teacher: {tap: {k: 500, frames: video}}\nstudent: {lr: 1}"
    config = load_config(yaml_file(tmp_path, text))
    assert (config.teacher.tap.k, config.teacher.tap.frames) == (500, "video")
    assert config.student.lr == 1.0


@pytest.mark.parametrize(("text", "value"), [
    ("1e-4", 1e-4), ("1E-4", 1e-4), ("1e+2", 100.0), (".5e1", 5.0), ("2.e3", 2000.0),
    ("1e3", 1000.0), ("1.5e3", 1500.0), ("0.0001", 1e-4), ("1.0e-4", 1e-4), ("3", 3.0)])
def test_numbers_are_written_as_in_yaml_1_2(tmp_path, text, value):
    assert read_yaml(yaml_file(tmp_path, f"- {text}"), "correct it") == [value]
    if value < 1:
        assert load_config(yaml_file(tmp_path, f"student: {{lr: {text}}}")).student.lr == value
    elif value > 0 and value.is_integer():
        read = load_config(yaml_file(tmp_path, f"heads: {{steps: {text}}}")).heads.steps
        assert read == value and isinstance(read, int)


def test_a_name_that_looks_like_a_number_stays_a_name(tmp_path):
    for name in ("1e3", "5e-10", "007", "3"):
        config = replace(RunConfig(), name=name)
        assert load_config(yaml_file(tmp_path, dump_config(config))) == config


@pytest.mark.parametrize(("text", "message"), [
    ("heads: {steps: 1e-4}", "steps is 0.0001, expected int"),
    ("student: {lr: 1e-4x}", "lr is '1e-4x', expected float"),
    ("studnet: {}", "unknown key 'studnet'; did you mean 'student'"),
    ("student: {epoch: 3}", "student: unknown key 'epoch'; did you mean 'epochs'"),
    ("student: {epochs: many}", "student: epochs is 'many', expected int"),
    ("student: {epochs: true}", "epochs is True, expected int"),
    ("student: 3", "student: got 3, expected keys and values"),
    ("student: {init: half}", "init is 'half', expected one of: shipped, scratch"),
    ("student: {augment: [flip]}", "augment is 'flip', expected one of: photometric"),
    ("seeds: 0", "seeds is 0, expected a list"),
    ("scenes: {frames: 8}", "expected 4n\\+1"),
    ("teacher: {tap: {k: 2000}}", "tap.k is 2000"),
    ("student: {epochs: 0}", "student.epochs is 0, expected at least 1"),
    ("a: [", "not YAML"),
])
def test_a_wrong_config_is_one_line_that_names_the_key(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        load_config(yaml_file(tmp_path, text))


def test_a_missing_config_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="no such config file"):
        load_config(tmp_path / "none.yaml")


@pytest.mark.parametrize("runs", ["runs", "my/runs", "."])
def test_relative_paths_of_a_run_are_of_where_it_was_started(tmp_path, monkeypatch, runs):
    start, elsewhere = tmp_path / "start", tmp_path / "elsewhere"
    for folder in (start, elsewhere):  # another video of the same name must not be taken
        (folder / "videos").mkdir(parents=True)
    (start / "wan").mkdir()
    config = replace(RunConfig(), runs=Path(runs), name="a",
                     scenes=replace(ScenesConfig(), path=Path("videos"), furniture=Path("gone")),
                     teacher=TeacherConfig("wan"))
    run = start / runs / "a"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(dump_config(config))
    monkeypatch.chdir(start)
    assert load_run_config(Path(runs) / "a") == config
    monkeypatch.chdir(elsewhere)
    opened = load_run_config(run)
    assert opened.scenes.path == start / "videos"
    assert opened.teacher.generator == str(start / "wan")
    assert opened.scenes.furniture == Path("gone")  # not there: as it was


def test_paths_of_a_run_whose_start_cannot_be_told_are_written_as_absolute(tmp_path):
    (tmp_path / "videos").mkdir()
    config = replace(RunConfig(), scenes=replace(ScenesConfig(), path=Path("videos")))
    assert anchored(config, tmp_path).scenes.path == tmp_path / "videos"
    assert anchored(config, tmp_path).teacher.generator == "wan-nano"
