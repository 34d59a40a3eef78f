"""VSI-Bench from a small folder laid out as published."""
import json

import imageio_ffmpeg
import numpy as np
import pytest

from scenes.questions.scoring import summary
from scenes.sources.vsibench import VSIBench

ROWS = [{
    "id": 0, "dataset": "scannet", "scene_name": "scene0011_00", "question_type": "object_counting",
    "question": "How many chair(s) are in this room?", "options": None, "ground_truth": "4"
}, {
    "id": 1, "dataset": "scannet", "scene_name": "scene0011_00",
    "question_type": "object_rel_direction_easy",
    "question": "If I am standing by the bed and facing the tv, is the sofa to the left or the "
                "right of the tv?",
    "options": ["A. left", "B. right"], "ground_truth": "B"
}, {
    "id": 2, "dataset": "arkitscenes", "scene_name": "41069025",
    "question_type": "room_size_estimation",
    "question": "What is the size of this room (in square meters)?", "options": None,
    "ground_truth": "21.3"
}]


def write_video(path, frames: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = imageio_ffmpeg.write_frames(str(path), (64, 48), fps=10, codec="libx264rgb",
                                         output_params=["-crf", "1"], pix_fmt_in="rgb24",
                                         pix_fmt_out="rgb24", macro_block_size=1)
    writer.send(None)
    for k in range(frames):
        writer.send(np.full((48, 64, 3), 10 * k, np.uint8))
    writer.close()


@pytest.fixture
def root(tmp_path):
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    for row in ROWS[1:]:
        write_video(tmp_path / row["dataset"] / f"{row['scene_name']}.mp4", 21)
    return tmp_path


def test_questions_are_read_as_they_are_and_can_be_scored(root):
    asked = VSIBench(root).questions()
    assert [q.task for q in asked] == [f"vsi:{row['question_type']}" for row in ROWS]
    assert [(q.answer, q.number, q.options)
            for q in asked] == [("4", 4.0, ()), ("B", None, ("A. left", "B. right")),
                                ("21.3", 21.3, ())]
    assert asked[1].prompt == (
        f"These are frames of a video.\n{ROWS[1]['question']}\nOptions:\nA. left\nB. right\n"
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
    (json.dumps({**ROWS[0], "question_type": "colour"}), "has question_type 'colour'")])
def test_a_line_that_is_laid_out_otherwise_is_named(root, line, message):
    with (root / "test.jsonl").open("a") as file:
        file.write(line)
    with pytest.raises(ValueError, match=message):
        VSIBench(root)


@pytest.mark.parametrize("row", [{**ROWS[0], "ground_truth": "four"}, {**ROWS[0], "ground_truth": "0"},
                                 {**ROWS[1], "options": None}])
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
