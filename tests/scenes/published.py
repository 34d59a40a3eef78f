"""Small folders in the published layouts of ScanNet, its five benchmarks and VSI-Bench."""
import json
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from PIL import Image

SCENE, WIDTH, HEIGHT = "scene0001_00", 64, 48
# axisAlignment: quarter turn, shift
ALIGN = np.array([[0, -1, 0, 3], [1, 0, 0, 1], [0, 0, 1, 0.5], [0, 0, 0, 1.0]])
COLOUR_CAMERA = np.array([[60, 0, 32, 0], [0, 60, 24, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
# half the picture, the same view
DEPTH_CAMERA = np.array([[30, 0, 16, 0], [0, 30, 12, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
OBJECTS = [("couch", (0, 0, 0), (2, 1, 0.8)), ("office chair", (3, 0, 0), (3.5, 0.5, 1)),
           ("office chair", (3, 2, 0), (3.5, 2.5, 1)),
           ("coffee cup", (0.5, 0.5, 0.8), (0.6, 0.6, 0.9)),
           ("poster", (0, 0, 1), (1, 0, 2))]  # the poster is flat
VSI_ROWS = [{
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


def box_points(low, high) -> np.ndarray:
    return np.array([[(low, high)[i][0], (low, high)[j][1], (low, high)[k][2]]
                     for i in (0, 1) for j in (0, 1) for k in (0, 1)], float)


def aligned_box(k: int) -> list[float]:
    points = box_points(*OBJECTS[k][1:]) @ ALIGN[:3, :3].T + ALIGN[:3, 3]
    return [*(points.max(0) + points.min(0)) / 2, *np.ptp(points, axis=0)]


def write_ply(path: Path, points: np.ndarray) -> None:
    colours = ("red", "green", "blue", "alpha")
    kind = np.dtype([*((axis, "<f4") for axis in "xyz"), *((c, "u1") for c in colours)])
    rows = np.zeros(len(points), kind)
    for i, axis in enumerate("xyz"):
        rows[axis] = points[:, i]
    head = ["ply", "format binary_little_endian 1.0", "comment MLIB generated",
            f"element vertex {len(points)}", *(f"property float {a}" for a in "xyz"),
            *(f"property uchar {c}" for c in colours), "element face 0",
            "property list uchar int vertex_indices", "end_header\n"]
    path.write_bytes("\n".join(head).encode() + rows.tobytes())


def write_scannet(root: Path, split: str = "val", scene: str = SCENE) -> Path:
    """One scene of five objects and six frames, the third without a pose; another one is listed."""
    root.mkdir(parents=True, exist_ok=True)
    (root / f"scannetv2_{split}.txt").write_text(f"{scene}\nscene0002_00\n")
    _write_scan(root / "scans" / scene, scene)
    frames = root / "posed_images" / scene
    frames.mkdir(parents=True)
    np.savetxt(frames / "intrinsic.txt", COLOUR_CAMERA, fmt="%f")
    np.savetxt(frames / "depth_intrinsic.txt", DEPTH_CAMERA, fmt="%f")
    for k in range(6):
        Image.new("RGB", (WIDTH, HEIGHT), (40 * k, 0, 0)).save(frames / f"{10 * k:05d}.jpg")
        depth = np.full((HEIGHT // 2, WIDTH // 2), 1000 + k, np.uint16)
        depth[:, WIDTH // 4:] = 3000
        Image.fromarray(depth).save(frames / f"{10 * k:05d}.png")
        pose = np.eye(4)
        pose[:3, 3] = [k, 0, 1]
        if k == 2:
            pose[:] = -np.inf  # lost
        np.savetxt(frames / f"{10 * k:05d}.txt", pose, fmt="%f")
    return root


def _write_scan(scan: Path, scene: str) -> None:
    scan.mkdir(parents=True)
    numbers = " ".join(map(str, ALIGN.ravel()))
    (scan / f"{scene}.txt").write_text(
        f"appVersionId = 1\naxisAlignment = {numbers} \nnumDepthFrames = 30\n")
    points = [box_points(low, high) for _, low, high in OBJECTS]
    write_ply(scan / f"{scene}_vh_clean_2.ply", np.concatenate(points))
    segments = np.repeat(100 + np.arange(len(OBJECTS)), 8).tolist()
    (scan / f"{scene}_vh_clean_2.0.010000.segs.json").write_text(
        json.dumps({"sceneId": scene, "segIndices": segments}))
    groups = [{"id": k, "objectId": k, "segments": [100 + k], "label": label}
              for k, (label, _, _) in enumerate(OBJECTS)]
    (scan / f"{scene}.aggregation.json").write_text(
        json.dumps({"sceneId": f"scannet.{scene}", "segGroups": groups}))


def write_benchmarks(folder: Path, split: str = "val", scene: str = SCENE) -> Path:
    """The annotation files of all five benchmarks about one scene."""
    (folder / "balanced").mkdir(parents=True, exist_ok=True)

    def refer(number, name, text, ann="0"):
        return {"scene_id": scene, "object_id": str(number), "object_name": name, "ann_id": ann,
                "description": text, "token": text.split()}

    multi = [{"scene_id": scene, "object_ids": ids, "object_name": "chair", "ann_id": k,
              "description": "the chairs", "eval_type": kind}
             for k, (ids, kind) in enumerate([([1, 2], "mt"), ([], "zt_w_d"), ([0], "st_wo_d")])]
    question = {"scene_id": scene, "situation": "I sit on the couch.",
                "alternative_situation": ["I am on the couch.", "Sitting."],
                "question": "How many chairs are ahead?", "question_id": 7}
    answer = {"scene_id": scene, "question_id": 7, "question_type": "N/A", "answer_type": "other",
              "position": {"x": 0, "y": 0, "z": 0},
              "rotation": {"_x": 0, "_y": 0, "_z": 0, "_w": 1},
              "answers": [{"answer": "two", "answer_confidence": "yes", "answer_id": 1}]}
    files = {
        f"ScanRefer_filtered_{split}.json": [
            refer(0, "couch", "the large couch."), refer(0, "couch", "a couch by the chairs.", "1"),
            refer(1, "office_chair", "the chair nearest the couch."),
            refer(2, "office_chair", "the far chair.")],
        f"multi3drefer_{split}.json": multi,
        f"ScanQA_v1.0_{split}.json": [{
            "answers": ["on couch", "couch"], "object_ids": [3], "object_names": ["cup"],
            "question": "Where is the cup?", "question_id": "val-scene0001-0", "scene_id": scene}],
        f"balanced/v1_balanced_questions_{split}_scannetv2.json": {
            "info": {}, "questions": [question]},
        f"balanced/v1_balanced_sqa_annotations_{split}_scannetv2.json": {
            "info": {}, "annotations": [answer]}}
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    return folder


def write_video(path: Path, frames: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = imageio_ffmpeg.write_frames(str(path), (64, 48), fps=10, codec="libx264rgb",
                                         output_params=["-crf", "1"], pix_fmt_in="rgb24",
                                         pix_fmt_out="rgb24", macro_block_size=1)
    writer.send(None)
    for k in range(frames):
        writer.send(np.full((48, 64, 3), 10 * k, np.uint8))
    writer.close()


def write_vsibench(root: Path) -> Path:
    """VSI_ROWS and their two videos of 21 frames."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in VSI_ROWS))
    for row in VSI_ROWS[1:]:
        write_video(root / row["dataset"] / f"{row['scene_name']}.mp4", 21)
    return root
