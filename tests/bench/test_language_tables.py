"""The recipe of the language teacher's tables: from clips to rows, and who trains what."""
import json
import sys

import pytest

from bench.recipes import language_tables
from scenes.clip import SPLITS, save_clip
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
    assert {(row["features"], row["seed"]) for row in rows} == {
        (name, seed) for name in ("true_xyz", "semantic", "text_only") for seed in (0, 1)}
    for row in rows:
        assert row["steps"] == 2 and row["train_clips"] == 3 and row["train_questions"] > 0
        assert row["task"] == "fused" or row["questions"] == 2
    by_task = {(row["features"], row["task"], row["metric"]): row for row in rows}
    assert ("true_xyz", "camera_distance", "mra") in by_task
    assert by_task["true_xyz", "vsi:object_rel_distance", "accuracy"]["check"] == "pointers"
    assert by_task["true_xyz", "fused", "depth_r2"]["value"] > 0.9
    assert by_task["semantic", "fused", "depth_r2"]["value"] < 0.5
    monkeypatch.setattr(language_tables, "_train", None)  # nothing is trained again
    assert main("sensitivity", "--rows", "true_xyz", "semantic", "text_only", "--seeds", "0",
                "1") == rows


def test_a_training_that_another_process_has_is_left_to_it(main, tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    with language_tables.locked(work / "sensitivity_semantic_0.lock"):
        assert main("sensitivity", "--rows", "semantic", "place", "--seeds", "0") == []
    assert (work / "sensitivity_place_0.json").is_file()
    assert {row["features"] for row in main("sensitivity", "--rows", "semantic", "place", "--seeds",
                                            "0")} == {"semantic", "place"}


def test_the_tiny_language_model_knows_every_word_of_the_questions(tmp_path):
    rooms = [sample_room()]
    language_tables.save_tiny_lm(tmp_path, rooms)
    lm, tokenizer = load_lm(str(tmp_path))
    ids = tokenizer(rooms[0].questions[1].prompt, add_special_tokens=False).input_ids
    assert tokenizer.convert_tokens_to_ids("<unk>") not in ids
    assert tokenizer.decode(tokenizer("2.5").input_ids) == "2.5"
    assert lm.config.num_hidden_layers == 3


def test_every_row_of_every_table_is_a_configuration():
    for table in language_tables.TABLES.values():
        for options in table.values():
            tuning = language_tables.FinetuneConfig(questions=1)
            language_tables.LanguageTeacherConfig(tuning=tuning, **options)
