"""VSI-Bench from a small folder laid out as published."""
import json

import numpy as np
import pytest

from scenes.questions.scoring import summary
from scenes.sources.vsibench import VSIBench
from tests.scenes.published import VSI_ROWS, write_video, write_vsibench


@pytest.fixture
def root(tmp_path):
    return write_vsibench(tmp_path)


def test_questions_are_read_as_they_are_and_can_be_scored(root):
    asked = VSIBench(root).questions()
    assert [q.task for q in asked] == [f"vsi:{row['question_type']}" for row in VSI_ROWS]
    assert [(q.answer, q.number, q.options)
            for q in asked] == [("4", 4.0, ()), ("B", None, ("A. left", "B. right")),
                                ("21.3", 21.3, ())]
    assert asked[1].prompt == (
        f"These are frames of a video.\n{VSI_ROWS[1]['question']}\nOptions:\nA. left\nB. right\n"
        "Answer with the option's letter from the given choices directly.")
    scores = summary(asked, ["4", "B. right", "30"])
    # off by 0.408: within 0.5, 0.45
    assert scores["vsi"] == {"mean": pytest.approx((1 + 1 + 0.2) / 3), "types": 3}


def test_a_clip_is_frames_from_first_to_last(root):
    source = VSIBench(root, frames=5, size=16)
    assert source.ids("test") == ["test/scannet-scene0011_00", "test/arkitscenes-41069025"]
    assert source.ids("train") == []
    clip = source.clip("test/arkitscenes-41069025")
    assert clip.frames.shape == (5, 3, 16, 16)
    assert np.abs(clip.frames.mean((1, 2, 3)) - [0, 50, 100, 150, 200]).max() < 3


def test_a_short_video_gives_some_frames_twice(root):
    write_video(root / "scannet" / "scene0011_00.mp4", 2)
    clip = VSIBench(root, frames=4, size=8).clip("test/scannet-scene0011_00")
    assert np.abs(clip.frames.mean((1, 2, 3)) - [0, 0, 0, 10]).max() < 3


def test_a_missing_video_is_named_or_its_questions_left_out(root):
    (root / "scannet" / "scene0011_00.mp4").unlink()
    source = VSIBench(root)
    with pytest.raises(ValueError, match="lacks videos of scannet; unpack"):
        source.questions()
    assert [q.task for q in source.questions(only_present=True)] == ["vsi:room_size_estimation"]
    with pytest.raises(ValueError, match=r"unpack scannet\.zip"):
        source.clip("test/scannet-scene0011_00")


def test_a_damaged_video_is_named(root):
    (root / "scannet" / "scene0011_00.mp4").write_bytes(b"no video")
    with pytest.raises(ValueError, match=r"scene0011_00\.mp4: not a readable video"):
        VSIBench(root, frames=2, size=8).clip("test/scannet-scene0011_00")


@pytest.mark.parametrize(("line", "message"), [
    ("{", r"test\.jsonl:4: not a JSON object"), ('{"id": 3}', r"test\.jsonl:4: lacks dataset"),
    (json.dumps({**VSI_ROWS[0], "question_type": "colour"}), "has question_type 'colour'")])
def test_a_line_that_is_laid_out_otherwise_is_named(root, line, message):
    with (root / "test.jsonl").open("a") as file:
        file.write(line)
    with pytest.raises(ValueError, match=message):
        VSIBench(root)


@pytest.mark.parametrize("row", [{**VSI_ROWS[0], "ground_truth": "four"},
                                 {**VSI_ROWS[0], "ground_truth": "0"},
                                 {**VSI_ROWS[1], "options": None}])
def test_an_answer_that_cannot_be_scored_is_named(root, row):
    (root / "test.jsonl").write_text(json.dumps(row))
    with pytest.raises(ValueError, match="expected a number above 0, or a letter and options"):
        VSIBench(root).questions()


def test_a_folder_without_questions_says_what_to_download(tmp_path):
    with pytest.raises(ValueError, match="nyu-visionx/VSI-Bench"):
        VSIBench(tmp_path)
    (tmp_path / "test.jsonl").write_text("")
    with pytest.raises(ValueError, match="holds no question"):
        VSIBench(tmp_path)
