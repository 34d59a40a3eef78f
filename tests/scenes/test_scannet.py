"""ScanNet and its five benchmarks, from small folders laid out as published."""
import json

import numpy as np
import pytest

from scenes.furniture.pack import CLASSES
from scenes.questions.scoring import described_box, values
from scenes.sources.scannet import ScanNet, read_ply_vertices
from scenes.sources.scannet_annotations import load_annotations
from scenes.sources.video3dllm import load_processed
from tests.scenes.published import (
    ALIGN,
    DEPTH_CAMERA,
    OBJECTS,
    SCENE,
    aligned_box,
    box_points,
    write_benchmarks,
    write_scannet,
)


@pytest.fixture
def root(tmp_path):
    return write_scannet(tmp_path)


@pytest.fixture
def benchmarks(tmp_path):
    write_benchmarks(tmp_path / "benchmarks", "train")
    return write_benchmarks(tmp_path / "benchmarks")


def test_a_scene_is_a_clip_of_evenly_spread_frames_that_have_a_pose(root):
    source = ScanNet(root, frames=3, size=16)
    assert source.ids("val") == [f"val/{SCENE}"] and source.ids("train") == []
    clip = source.clip(f"val/{SCENE}")
    assert clip.frames.shape == (3, 3, 16, 16)
    # of the frames 0, 1, 3, 4, 5 that have a pose, the first, middle and last; a jpeg keeps a flat
    # red within 3
    assert np.abs(clip.frames[:, 0].mean((1, 2)) - [0, 120, 200]).max() < 3
    camera = np.eye(4)
    camera[:3, 3] = [3, 0, 1]
    assert np.allclose(clip.poses[1], ALIGN @ camera)


def test_objects_have_aligned_boxes_and_the_ids_of_the_instance_pictures(root):
    things = ScanNet(root, frames=1, size=8).clip(f"val/{SCENE}").objects
    assert [t.id
            for t in things] == [1, 2, 3, 4, 5] and [t.name
                                                     for t in things] == [o[0] for o in OBJECTS]
    assert [t.category for t in things] == ["sofa", "chair", "chair", "tableware", "decor"]
    assert all(t.category in CLASSES for t in things)
    for k, t in enumerate(things):
        assert np.allclose([*t.center, *t.size], aligned_box(k), atol=1e-5)


def test_depth_is_in_metres_where_the_colour_pixel_looks(root):
    clip = ScanNet(root, frames=6, size=32).clip(f"val/{SCENE}")
    assert np.allclose(clip.depth[-1][:, :16], 1.005) and np.allclose(clip.depth[-1][:, 16:], 3.0)
    # squashed to a square: one focal length a side, and a point seen at a pixel comes back to it
    assert np.allclose(clip.intrinsics, [[30, 0, 16], [0, 40, 16], [0, 0, 1]])


def test_depth_of_another_camera_is_looked_up_through_both(root):
    shifted = DEPTH_CAMERA.copy()
    # the depth camera's picture is four pixels to the right of the colour camera's
    shifted[0, 2] += 4
    np.savetxt(root / "posed_images" / SCENE / "depth_intrinsic.txt", shifted, fmt="%f")
    clip = ScanNet(root, frames=1, size=64).clip(f"val/{SCENE}")
    row = clip.depth[0, 32]
    # 0: beyond it
    assert np.allclose(row[:24], 1.0) and np.allclose(row[24:56], 3.0) and np.allclose(row[56:], 0)


def test_scanrefer_splits_unique_from_multiple_by_scannets_labels(root, benchmarks):
    (benchmarks / "scannetv2-labels.combined.tsv").write_text(
        "id\traw_category\tcategory\tcount\tnyu40id\teigen13id\tnyuClass\tnyu40class\n"
        "1\tcouch\tcouch\t1\t6\t9\tsofa\tsofa\n2\toffice chair\tchair\t1\t5\t4\tchair\tchair\n")
    asked = load_annotations(ScanNet(root), "scanrefer", benchmarks, "val")
    assert [(q.text, q.targets, q.kind) for q in asked] == [
        ("The large couch.", (0,), "unique"), ("A couch by the chairs.", (0,), "unique"),
        ("The chair nearest the couch.", (1,), "multiple"), ("The far chair.", (2,), "multiple")]
    assert np.allclose(asked[2].boxes[1], aligned_box(1),
                       atol=1e-5) and asked[0].clip_id == f"val/{SCENE}"
    assert asked[
        0].prompt == "Identify the object according to the following description.\nThe large couch."


def test_proposals_are_what_may_be_chosen_and_the_truth_is_not_among_them(root, benchmarks):
    (root / "pred.json").write_text(
        json.dumps({f"scannet/{SCENE}": [[0, 0, 0, 1, 1, 1], [1, 1, 1, 1, 1, 1]]}))
    question = load_annotations(ScanNet(root), "multi3drefer", benchmarks, "val",
                                root / "pred.json")[0]
    assert len(question.offered) == 2 and question.targets == (3, 4) and question.kind == "mt"
    assert np.allclose(question.boxes[3], aligned_box(1), atol=1e-5)


def test_multi3drefer_has_zero_one_and_several_targets(root, benchmarks):
    asked = load_annotations(ScanNet(root), "multi3drefer", benchmarks, "val")
    assert [(q.targets, q.kind) for q in asked] == [((1, 2), "mt"), ((), "zt_w_d"),
                                                    ((0, ), "st_wo_d")]


def test_scan2cap_asks_once_an_object_with_all_its_descriptions(root, benchmarks):
    asked = load_annotations(ScanNet(root), "scan2cap", benchmarks, "val")
    assert [q.answers for q in asked] == [("The large couch.", "A couch by the chairs."),
                                          ("The chair nearest the couch.",), ("The far chair.",)]
    assert asked[0].prompt == "Given an object located at <coord> , describe the object in detail."


def test_scanqa_and_sqa3d_keep_their_answers_and_wording(root, benchmarks):
    source = ScanNet(root)
    question, = load_annotations(source, "scanqa", benchmarks, "val")
    assert question.answers == ("on couch", "couch")
    assert question.prompt == "Where is the cup? Answer the question simply."
    question, = load_annotations(source, "sqa3d", benchmarks, "val")
    assert (question.answer, question.kind) == ("two", "how") and question.prompt == (
        "I sit on the couch. How many chairs are ahead? Answer the question using a single word or "
        "phrase."
    )
    training = load_annotations(source, "sqa3d", benchmarks, "train")
    assert [q.text.split(". ")[0] for q in training] == [
        "I sit on the couch", "I am on the couch", "Sitting"]


@pytest.mark.parametrize(("change", "message"), [
    ({"scene_id": "scene0999_00"}, "no scene scene0999_00"), ({"object_id": "77"}, "has no object "
                                                                                   "77"),
    ({"object_id": "4"}, "box without volume")])
def test_an_annotation_of_what_is_not_here_is_named_or_left_out(root, benchmarks, capsys, change,
                                                                message):
    path = benchmarks / "ScanRefer_filtered_val.json"
    items = json.loads(path.read_text())
    path.write_text(json.dumps([*items, {**items[0], **change}]))
    with pytest.raises(ValueError, match=message):
        load_annotations(ScanNet(root), "scanrefer", benchmarks, "val")
    assert len(load_annotations(ScanNet(root), "scanrefer", benchmarks, "val",
                         skip_missing=True)) == len(items)
    assert "left out 1 annotations" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "content", "message"), [
    ("multi3drefer_val.json", None, "missing; download"),
    ("multi3drefer_val.json", "{", "not the published layout"),
    ("multi3drefer_val.json", '[{"scene_id": "x"}]', "entry 0 lacks object_ids, description, "
                                                     "eval_type"),
    ("multi3drefer_val.json", '{"a": 1}', "entry 0 lacks scene_id")])
def test_a_file_that_is_missing_or_otherwise_laid_out_is_named(root, benchmarks, name, content,
                                                               message):
    (benchmarks / name).unlink()
    if content is not None:
        (benchmarks / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        load_annotations(ScanNet(root), "multi3drefer", benchmarks, "val")


def test_an_answer_without_a_question_is_named(root, benchmarks):
    path = benchmarks / "balanced" / "v1_balanced_questions_val_scannetv2.json"
    path.write_text(path.read_text().replace("7}", "8}"))
    with pytest.raises(ValueError, match="answer to question 7, which is not among the questions"):
        load_annotations(ScanNet(root), "sqa3d", benchmarks, "val")


def test_a_folder_without_split_files_or_frames_says_what_to_do(root, tmp_path):
    with pytest.raises(ValueError, match=r"has no scannetv2_train\.txt"):
        ScanNet(tmp_path / "posed_images")
    with pytest.raises(ValueError, match="no frames of scene0002_00"):
        ScanNet(root).clip("val/scene0002_00")
    (root / "posed_images" / SCENE / "00000.png").write_bytes(b"cut")
    with pytest.raises(ValueError, match=r"00000\.png: damaged or not an image"):
        ScanNet(root).clip(f"val/{SCENE}")


def test_a_scene_without_any_pose_is_refused(root):
    for path in (root / "posed_images" / SCENE).glob("0*.txt"):
        np.savetxt(path, np.full((4, 4), np.inf))
    with pytest.raises(ValueError, match="none of 6 frames has a pose"):
        ScanNet(root).clip(f"val/{SCENE}")


def test_a_mesh_that_is_cut_short_or_of_another_format_is_refused(root):
    path = root / "scans" / SCENE / f"{SCENE}_vh_clean_2.ply"
    whole = path.read_bytes()
    assert np.allclose(read_ply_vertices(path)[:8], box_points(*OBJECTS[0][1:]))
    ascii_ = whole.replace(b"binary_little_endian", b"ascii")
    for content, message in ((whole[:-9], "cut short"), (ascii_, "not a binary"), (b"ply\n",
                                                                                   "not a binary")):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            read_ply_vertices(path)


IDENTIFY = "<image>Identify the object according to the following description.\nThe far chair."
ENTRIES = {
    "scanrefer": {
        "conversations": [{"value": IDENTIFY, "from": "human"},
                          {"value": "<ground>", "from": "gpt"}], "box": [0, 0, 0, 1, 1, 1]
    }, "multi3drefer": {
        "conversations": [{
            "value": f"{IDENTIFY}\nThere may be no corresponding object, or there may be one or "
                     "more objects."
        }, {"value": "<ground>"}], "box": [[0, 0, 0, 1, 1, 1], [2, 0, 0, 1, 1, 1]]
    }, "scan2cap": {
        "conversations": [{
            "value": "<image> Given an object located at <coord> , describe the object in detail."
        }, {"value": "A chair."}], "box_input": [0.1, 0, 0, 1, 1, 1], "gt_box": [0, 0, 0, 1, 1, 1],
        "annotations": ["A chair.", "The chair."]
    }, "scanQA": {
        "conversations": [{"value": "<image> Where is it? Answer the question simply."},
                          {"value": "left"}]
    }, "sqa3d": {
        "conversations": [{
            "value": "<image> I sit. What is ahead? Answer the question using a single word or "
                     "phrase."
        }, {"value": "wall"}]
    }
}


def entry(name: str, **changes) -> dict:
    about = {"dataset": name, "question_type": "what"}
    return {"id": 0, "video": f"scannet/{SCENE}", "metadata": about, **ENTRIES[name], **changes}


@pytest.mark.parametrize("name", ENTRIES)
def test_processed_files_give_the_prompt_they_hold(tmp_path, name):
    path = tmp_path / f"{name}_val_llava_style.json"
    path.write_text(json.dumps([entry(name)]))
    question, = load_processed(path, "val")
    assert question.prompt == entry(name)["conversations"][0]["value"].replace("<image>",
                                                                               "").strip()
    assert question.clip_id == f"val/{SCENE}" and question.kind == "what"
    assert len(question.targets) == {"scanrefer": 1, "multi3drefer": 2, "scan2cap": 1}.get(name, 0)
    assert question.answer == {"scan2cap": "A chair.", "scanQA": "left", "sqa3d": "wall"}.get(name)


def test_processed_proposals_are_offered_before_what_is_meant(tmp_path):
    (tmp_path / "pred.json").write_text(
        json.dumps({f"scannet/{SCENE}": [[0, 0, 0, 1, 1, 1.2], [9, 9, 9, 1, 1, 1]]}))
    (tmp_path / "a.json").write_text(json.dumps([entry("scanrefer")]))
    question, = load_processed(tmp_path / "a.json", "val", tmp_path / "pred.json")
    assert len(question.offered) == 2 and question.targets == (2,)
    assert values(question, question.offered[:1])["acc@0.5"] == 1
    assert values(question, question.offered[1:])["acc@0.25"] == 0


def test_a_caption_without_a_proposal_describes_nothing(tmp_path):
    (tmp_path / "a.json").write_text(
        json.dumps([entry("scan2cap"), entry("scan2cap", box_input=None)]))
    found, lost = load_processed(tmp_path / "a.json", "val")
    assert described_box(found)[1] == pytest.approx(0.9 / 1.1) and described_box(lost)[1] == 0


@pytest.mark.parametrize(("changes", "message"), [
    ({"box": [0, 0, 0]}, "entry 0 cannot be read"),
    ({"conversations": [{"value": "Hello"}, {"value": ""}]}, "is not that of"),
    ({"metadata": {"dataset": "nr3d"}}, "KeyError: 'nr3d'"),
    ({"box": [0, 0, 0, 1, 1, float("nan")]}, "not finite")])
def test_a_processed_entry_that_is_laid_out_otherwise_is_named(tmp_path, changes, message):
    (tmp_path / "a.json").write_text(json.dumps([entry("scanrefer", **changes)]))
    with pytest.raises(ValueError, match=message):
        load_processed(tmp_path / "a.json", "val")
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(ValueError, match="is a dict, expected a list"):
        load_processed(tmp_path / "a.json", "val")
