"""`vega3d scenes import`: published folders become clips and questions that training reads."""
import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

import vega3d
from records import manifest
from records.files import write_json
from scenes.clip import ClipFolder, load_clip
from scenes.questions.question import Question
from scenes.questions.stored import QUESTIONS_FILE, by_clip, load_questions, save_questions
from scenes.sources.importing import import_scannet, write_import
from teacher.language.config import FinetuneConfig, LanguageTeacherConfig
from teacher.language.train import train_language_teacher
from tests.language_fakes import save_tiny_lm
from tests.scenes.published import (
    SCENE,
    VSI_ROWS,
    write_benchmarks,
    write_scannet,
    write_vsibench,
)

TRAIN_SCENE = "scene0000_00"
SMALL = ("--frames", "2", "--size", "28")


def run(*args) -> None:
    vega3d.main(["scenes", "import", *map(str, args)])


@pytest.fixture
def scannet(tmp_path):
    """A train and a val scene with the annotations of all benchmarks."""
    root = write_scannet(tmp_path / "scannet")
    write_scannet(root, "train", TRAIN_SCENE)
    write_benchmarks(root / "benchmarks", "train", TRAIN_SCENE)
    write_benchmarks(root / "benchmarks")
    return root


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def files_of(folder):
    """Without the manifest, which holds times."""
    return {p: p.read_bytes() for p in folder.rglob("*")
            if p.is_file() and p.name != "manifest.json"}


def test_scannet_becomes_train_and_test_clips_with_the_questions_of_all_benchmarks(scannet, out,
                                                                                    capsys):
    run("scannet", scannet, "--out", out, *SMALL, "--annotations", scannet / "benchmarks")
    source = ClipFolder(out)
    assert source.ids("train") == [f"train/{TRAIN_SCENE}"] and source.ids("val") == []
    clip = source.clip(f"test/{SCENE}")
    assert clip.id == f"test/{SCENE}" and clip.frames.shape == (2, 3, 28, 28)
    assert clip.depth is not None and len(clip.objects) == 5
    stored = load_questions(out)
    tasks = [q.task for q in stored[f"test/{SCENE}"]]
    assert tasks.count("ground") == 4 and tasks.count("multi_ground") == 3
    assert tasks.count("caption") == 3 and tasks.count("qa") == 1 and tasks.count("situated") == 1
    assert [q.task for q in stored[f"train/{TRAIN_SCENE}"]].count("situated") == 3  # three wordings
    # the poster is flat: no candidate, as it holds no token
    assert {len(q.boxes) for q in stored[f"test/{SCENE}"]} == {4}
    card = json.loads((out / "scenes.json").read_text())
    assert card["key"].startswith("import-") and card["imports"]["scannet"]["questions"] == 26
    assert "2 clips, 26 questions" in capsys.readouterr().out


def test_vsibench_becomes_test_clips_and_joins_a_folder_of_the_same_frames(scannet, out, tmp_path):
    vsi = write_vsibench(tmp_path / "vsi")
    run("scannet", scannet, "--out", out, *SMALL, "--annotations", scannet / "benchmarks")
    key = json.loads((out / "scenes.json").read_text())["key"]
    run("vsibench", vsi, "--out", out, *SMALL)
    assert len(ClipFolder(out).ids("test")) == 3
    stored = load_questions(out)
    assert [q.text for q in stored["test/scannet-scene0011_00"]] == [
        row["question"] for row in VSI_ROWS[:2]]
    assert f"train/{TRAIN_SCENE}" in stored  # what was there stays
    card = json.loads((out / "scenes.json").read_text())
    assert set(card["imports"]) == {"scannet", "vsibench"} and card["key"] != key
    before = files_of(out)
    run("vsibench", vsi, "--out", out, *SMALL)
    assert files_of(out) == before  # again changes nothing


def test_an_interrupted_import_goes_on_and_another_size_is_refused(scannet, out, monkeypatch):
    imported = import_scannet(scannet, 2, 28, scannet / "benchmarks")
    with monkeypatch.context() as patch:
        read = []
        patch.setattr(manifest, "digest",
                      lambda path, call=manifest.digest: read.append(path.suffix) or call(path))
        write_import(imported, out)
        assert read and ".safetensors" not in read  # each digest is of the bytes as written
    assert len(manifest.faults(out)) == 0 and manifest.count(out) == 4
    finished = files_of(out)
    (out / "scenes.json").unlink()
    (out / f"test/{SCENE}.safetensors").write_bytes(b"half")
    kept = (out / f"train/{TRAIN_SCENE}.safetensors").stat().st_mtime_ns
    write_import(imported, out)
    assert files_of(out) == finished
    assert (out / f"train/{TRAIN_SCENE}.safetensors").stat().st_mtime_ns == kept
    with pytest.raises(ValueError, match="holds imported clips of 2 frames of 28 px, expected"):
        write_import(import_scannet(scannet, 2, 14), out)
    write_json({"key": "rooms-1", "frames": 2, "size": 28}, out / "scenes.json")
    with pytest.raises(ValueError, match="holds rendered rooms"):
        write_import(imported, out)


def test_processed_files_train_on_the_proposals_that_overlap_the_targets(scannet, out, tmp_path):
    folder = tmp_path / "processed"
    folder.mkdir()
    identify = "<image>Identify the object according to the following description.\nThe chair."
    for split, scene in (("train", TRAIN_SCENE), ("val", SCENE)):
        item = {"video": f"scannet/{scene}", "metadata": {"dataset": "scanrefer"},
                "conversations": [{"value": identify}, {"value": "<ground>"}]}
        (folder / f"scanrefer_{split}_llava_style.json").write_text(json.dumps(
            [{**item, "box": [0, 0, 0, 1, 1, 1]}, {**item, "box": [50, 0, 0, 1, 1, 1]}]))
        (tmp_path / f"{split}.json").write_text(json.dumps(
            {f"scannet/{scene}": [[9, 9, 9, 1, 1, 1], [0, 0, 0, 1, 1, 1.1]]}))
    imported = import_scannet(scannet, 2, 28, processed=folder,
                              proposals=[tmp_path / "val.json", tmp_path / "train.json"])
    asked = by_clip(imported.questions)
    # nothing offered overlaps the second training target; a test target is not among the offered
    assert [q.targets for q in asked[f"train/{TRAIN_SCENE}"]] == [(1,)]
    assert [q.targets for q in asked[f"test/{SCENE}"]] == [(2,), (2,)]
    assert all(len(q.offered) == 2 for q in imported.questions)


@pytest.mark.parametrize(("break_it", "message"), [
    (lambda root: (root / "benchmarks" / "multi3drefer_val.json").write_text("{"),
     "not the published layout"),
    (lambda root: (root / "scans" / SCENE / f"{SCENE}.aggregation.json").unlink(),
     f"no scene {SCENE}"),
    (lambda root: write_benchmarks(root / "benchmarks", "val", TRAIN_SCENE),
     f"no frames of test/{TRAIN_SCENE} and 0 other scenes"),
    (lambda root: (root / "posed_images" / SCENE / "00000.png").write_bytes(b"cut"),
     "00000.png: damaged or not an image"),
    (lambda root: [p.unlink() for p in (root / "posed_images" / SCENE).glob("000[1-5]0.txt")],
     "has only 1 frames, expected 2; import with --frames 1")])
def test_bad_input_is_one_line_with_exit_code_2_and_no_list_of_clips(scannet, out, capsys, break_it,
                                                                      message):
    break_it(scannet)
    (scannet / "benchmarks" / "ScanRefer_filtered_train.json").unlink()
    with pytest.raises(SystemExit, match="2"):
        run("scannet", scannet, "--out", out, *SMALL, "--annotations", scannet / "benchmarks")
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("vega3d: ") and message in error
    assert not (out / "scenes.json").exists() and not (out / QUESTIONS_FILE).exists()
    assert all(load_clip(p) for p in out.rglob("*.safetensors"))  # each complete


@pytest.mark.parametrize(("args", "message"), [
    (("vsibench", "/nowhere"), "test.jsonl: missing; download it"),
    (("scannet", "/nowhere"), "has no scannetv2_train.txt"),
    (("vsibench", "/nowhere", "--annotations", "x"), "are for scannet")])
def test_a_wrong_call_is_refused(out, capsys, args, message):
    with pytest.raises(SystemExit, match="2"):
        run(*args, "--out", out)
    assert message in capsys.readouterr().err and not out.exists()


def test_stored_questions_come_back_as_they_were(tmp_path):
    boxes = np.random.default_rng(0).normal(size=(3, 7)).astype(np.float32)
    asked = [Question("test/a", "ground", "x", None, None, (), boxes, (1, 2), "mt", (), 2),
             Question("test/a", "vsi:object_counting", "n?", "4", 4.0, (), boxes[:0], ()),
             Question("test/b", "qa", "w?", "a", None, ("A. b",), boxes[1:, :6], (), "",
                      ("a", "b"))]
    save_questions(by_clip(asked), tmp_path)
    back = [q for questions in load_questions(tmp_path).values() for q in questions]
    for old, new in zip(asked, back, strict=True):
        np.testing.assert_array_equal(old.boxes, new.boxes)
        facts = [{k: v for k, v in asdict(q).items() if k != "boxes"} for q in (old, new)]
        assert facts[0] == facts[1]
    assert load_questions(tmp_path / "none") is None
    (tmp_path / QUESTIONS_FILE).write_text('{"clips": {"a": {"boxes": [], "questions": [{}]}}}')
    with pytest.raises(ValueError, match="not a complete questions file"):
        load_questions(tmp_path)


def test_a_teacher_trains_and_is_scored_on_the_imported_questions(scannet, out, tmp_path):
    size = ("--frames", "2", "--size", "224")
    run("scannet", scannet, "--out", out, *size, "--annotations", scannet / "benchmarks")
    tuning = FinetuneConfig(lm=str(save_tiny_lm(tmp_path / "lm")), steps=2, clips=1, questions=2,
                            save_every=2, validate_every=2)
    config = LanguageTeacherConfig(out=tmp_path / "teacher", clips=out, features="noise", grid=2,
                                   position="depth_pose", tuning=tuning)
    scores = train_language_teacher(config)
    assert scores["ground"]["n"] == 4 and scores["qa"]["n"] == 1 and scores["caption"]["n"] == 3
    run("vsibench", write_vsibench(tmp_path / "vsi"), "--out", out, *size)
    with pytest.raises(ValueError, match="no depth and poses; train with --position pose_free"):
        train_language_teacher(config)
    scores = train_language_teacher(replace(config, position="pose_free", out=tmp_path / "free"))
    assert scores["vsi"]["types"] == 3 and scores["ground"]["n"] == 4
    with pytest.raises(ValueError, match="no questions about training clips"):
        train_language_teacher(
            replace(config, out=tmp_path / "none", tasks=("vsi:route_planning",)))


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
