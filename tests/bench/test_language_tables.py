"""The recipe of the language teacher's tables: from clips to rows, and who trains what."""
import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from bench.recipes import language_tables
from scenes.clip import SPLITS, ClipFolder, save_clip
from student.config import SHIPPED
from student.vit import load_student
from teacher.language import train as training
from teacher.language.lm import load_lm
from tests.fakes import FakeRooms
from tests.language_fakes import sample_room


@pytest.fixture
def main(tmp_path, monkeypatch):
    """Runs the recipe on a folder of clips whose questions are `sample_room`'s."""
    rooms = FakeRooms(train=3, val=1, test=2, frames=2)
    for split in SPLITS:
        for clip_id in rooms.ids(split):
            save_clip(rooms.clip(clip_id), tmp_path / "clips" / f"{clip_id}.safetensors")
    (tmp_path / "clips" / "scenes.json").write_text('{"key": "fake"}')
    monkeypatch.setattr(training, "read_rooms",
                        lambda source, ids, *_: [sample_room(i) for i in ids])

    def run(table: str, *args: str) -> list[dict]:
        out = tmp_path / f"{table}.json"
        monkeypatch.setattr(sys, "argv", [
            "language_tables", table, str(tmp_path / "clips"), "--work", str(tmp_path / "work"),
            "--out", str(out), "--lm", "tiny", "--steps", "2", "--batch", "2", "--grid", "2",
            "--draws", "1", *args])
        language_tables.main()
        return json.loads(out.read_text())["rows"] if out.is_file() else []

    return run


def test_a_table_has_each_rows_scores_counts_and_readout(main, tmp_path, monkeypatch):
    rows = main("sensitivity", "--rows", "true_xyz", "semantic", "text_only", "--seeds", "0", "1")
    differences = [row for row in rows if row.get("kind") == "difference"]
    rows_of_scores = [row for row in rows if "kind" not in row]
    assert {(row["features"], row["seed"]) for row in rows_of_scores} == {
        (name, seed) for name in ("true_xyz", "semantic", "text_only") for seed in (0, 1)}
    for row in rows_of_scores:
        assert row["steps"] == 2 and row["train_clips"] == 3 and row["train_questions"] > 0
        assert row["task"] in ("fused", "gate") or row["questions"] == 2
    assert {(row["features"], row["minus"], row["task"]) for row in differences} == {
        ("true_xyz", name, "camera_distance") for name in ("semantic", "text_only")}
    for row in differences:
        ours, baseline = (np.mean([one["value"] for one in rows_of_scores
                                   if one["features"] == name and one["metric"] == "mra"
                                   and one["task"] == row["task"]])
                          for name in (row["features"], row["minus"]))
        assert row["value"] == pytest.approx(ours - baseline) and row["seeds"] == row["rooms"] == 2
    by_task = {(row["features"], row["task"], row["metric"]): row for row in rows_of_scores}
    assert ("true_xyz", "camera_distance", "mra") in by_task
    assert by_task["true_xyz", "vsi:object_rel_distance", "accuracy"]["check"] == "pointers"
    assert by_task["true_xyz", "fused", "depth_r2"]["value"] > 0.9
    assert by_task["semantic", "fused", "depth_r2"]["value"] < 0.5
    monkeypatch.setattr(language_tables, "_train", None)  # nothing is trained again
    assert main("sensitivity", "--rows", "true_xyz", "semantic", "text_only", "--seeds", "0",
                "1") == rows


def test_a_score_of_a_kind_counts_the_questions_of_that_kind(main, monkeypatch):
    def room_with_kinds(clip_id):
        room = sample_room(clip_id)
        kind = "counter" if clip_id == "test/000" else "prior"
        room.questions = [replace(question, kind=kind) for question in room.questions]
        return room

    monkeypatch.setattr(training, "read_rooms",
                        lambda source, ids, *_: [room_with_kinds(i) for i in ids])
    rows = main("sensitivity", "--rows", "text_only", "--seeds", "0")
    counts = {row["metric"]: row["questions"] for row in rows if row["task"] == "camera_distance"}
    assert counts["mra"] == 2 and counts["mra/counter"] == counts["mra/prior"] == 1


def test_a_training_that_another_process_has_is_left_to_it(main, tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    with language_tables.locked(work / "semantic_0.lock"):
        assert main("sensitivity", "--rows", "semantic", "place", "--seeds", "0") == []
    assert (work / "place_0.json").is_file()
    assert {row["features"] for row in main("sensitivity", "--rows", "semantic", "place", "--seeds",
                                            "0")} == {"semantic", "place"}


def test_the_finished_trainings_of_a_table_are_written_without_training_the_others(
        main, monkeypatch):
    with pytest.raises(ValueError, match="has no finished training"):
        main("sensitivity", "--rows", "semantic", "--seeds", "0", "--finished")
    with pytest.raises(ValueError, match=r"--rows: got 'nothing', expected some of: .*semantic"):
        main("sensitivity", "--rows", "semantic", "nothing")
    rows = main("sensitivity", "--rows", "semantic", "--seeds", "0")
    monkeypatch.setattr(language_tables, "_train", None)
    assert main("sensitivity", "--seeds", "0", "1", "--finished") == rows


def test_without_visual_tokens_there_is_no_readout_of_them(main):
    rows = main("sensitivity", "--rows", "place", "--seeds", "0", "--eager")
    assert rows and "fused" not in {row["task"] for row in rows}


def test_features_are_dropped_into_the_generators_own_training(main, tmp_path, monkeypatch):
    seen, trained = [], []
    evaluate, train = language_tables.evaluate, language_tables.train_language_teacher

    def record(model, dataset, *rest):
        seen.append((model, dataset.visual.generative.float()))
        return evaluate(model, dataset, *rest)

    monkeypatch.setattr(language_tables, "evaluate", record)
    monkeypatch.setattr(language_tables, "train_language_teacher",
                        lambda config, data: trained.append(config.features) or train(config, data))
    names = [*language_tables.DROPPED]
    rows = main("questions", "--rows", *names, "generator", "random_weights", "--seeds", "1")
    assert trained == ["generator", "random_weights"]  # in this order: nothing is dropped before
    for name in names:
        scored, whole = ({(row["task"], row["metric"]) for row in rows
                          if "kind" not in row and row["features"] == features}
                         for features in (name, "generator"))
        assert scored == {pair for pair in whole if pair[0] not in ("fused", "gate")}, name
    (model, zeros), (_, noise), (_, student), (_, int8) = seen
    expected = load_file(tmp_path / "work" / "generator_1" / "teacher.safetensors")
    assert all(torch.equal(one.newline, expected["newline"]) for one, _ in seen)
    drawn = (noise - model.generative_mean) / model.generative_std
    assert not zeros.any() and torch.equal(noise[0], noise[1]) and abs(drawn.std() - 1) < 0.02
    true = load_student(SHIPPED)
    frames = [torch.from_numpy(ClipFolder(tmp_path / "clips").clip(f"test/00{i}").frames) / 255
              for i in range(2)]
    with torch.no_grad():
        true_features = true.destandardise(true(torch.cat(frames))).view_as(student)
    torch.testing.assert_close(student, true_features, atol=5e-3, rtol=5e-3)
    assert 0.95 < torch.cosine_similarity(int8, student, dim=2).mean() < 0.99999
    weights = {json.loads(path.read_text())["weights"]
               for path in (tmp_path / "work" / "features").glob("wan-*/manifest.json")}
    assert {name.removesuffix("-random1") for name in weights} < weights and len(weights) == 2


def test_a_student_of_another_generator_is_not_dropped_in(tmp_path, monkeypatch):
    monkeypatch.setattr(language_tables, "spec_digest", lambda spec: "another")
    config = language_tables.LanguageTeacherConfig(clips=tmp_path, data=tmp_path)
    with pytest.raises(ValueError, match=r"was distilled from the teacher .* tap is another;"):
        language_tables._student_features(config, "student_fp32", (None, None), [])


def test_the_tiny_language_model_knows_every_word_of_the_questions(tmp_path):
    rooms = [sample_room()]
    language_tables.save_tiny_lm(tmp_path, rooms)
    lm, tokenizer = load_lm(str(tmp_path))
    ids = tokenizer(rooms[0].questions[1].prompt, add_special_tokens=False).input_ids
    assert tokenizer.convert_tokens_to_ids("<unk>") not in ids
    assert tokenizer.decode(tokenizer("2.5").input_ids) == "2.5"
    assert lm.config.num_hidden_layers == 3


def test_a_variant_is_compared_with_the_semantic_features_of_that_variant():
    names = {"generator", "semantic", "generator, masked", "semantic, masked",
             "generator, channel gate"}
    minus = {name: language_tables.minus_semantic(name, names) for name in sorted(names)}
    assert minus == {"generator": ["semantic"], "generator, channel gate": ["semantic"],
                     "generator, masked": ["semantic, masked"], "semantic": [],
                     "semantic, masked": []}
    questions = language_tables.BASELINES["questions"]
    assert questions("generator", names) == sorted(names - {"generator"})
    assert questions("zeros dropped in", names) == ["semantic"] and not questions("rgb", names)


def test_the_gates_share_by_class_is_kept_of_the_generator_and_for_the_questions_alone():
    rows = [{"features": "generator", "seed": 0, "task": "gate", "metric": metric, "value": 0.5}
            for metric in ("all", "class/lamp")]
    other = [{**row, "features": "rgb"} for row in rows]
    assert language_tables.table_rows(rows + other, "questions") == rows + other[:1]
    assert language_tables.table_rows(rows, "fusion") == rows[:1]


def test_every_row_of_every_table_is_a_configuration_that_its_name_identifies():
    seen: dict[str, dict] = {}
    for table in language_tables.TABLES.values():
        for name, options in table.items():
            tuning = replace(language_tables.DEFAULTS.tuning, questions=1)
            replace(language_tables.DEFAULTS, tuning=tuning, **options)
            assert seen.setdefault(name, options) == options  # tables share its training
