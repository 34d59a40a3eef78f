"""Precision maps come from the graph, matches between views from the features alone."""
import numpy as np
import onnx
import pytest
import torch

from bench.report.pictures import match_rows, mutual_matches
from bench.report.precision_map import SLOTS, layers
from scenes.clip import Clip
from tests.bench_run import drawn_run


def exported(name: str) -> onnx.ModelProto:
    return onnx.load(drawn_run() / "export" / name)


@pytest.mark.parametrize(("name", "precision"),
                         [("model.onnx", "fp32"), ("model.fp16.onnx", "fp16")])
def test_a_file_of_one_precision_is_that_in_every_slot_of_every_block(name, precision):
    found = list(layers(exported(name)))
    assert {kind for *_, kind in found} == {precision}
    slots = {(block, slot) for block in (0, 1) for slot in SLOTS}
    assert {(block, slot) for block, slot, _ in found} >= slots
    assert [slot for block, slot, _ in found if block == -1] == ["patch_embed"]
    assert [slot for block, slot, _ in found if block == 2] == ["norm1", "head"]


def test_only_a_product_of_two_dequantised_operands_is_int8():
    model = exported("model.onnx")
    scale = onnx.numpy_helper.from_array(np.float32(0.1), "scale")
    zero = onnx.numpy_helper.from_array(np.int8(0), "zero")
    model.graph.initializer.extend([scale, zero])
    for name, operands in (("blocks.0.fc1/MatMul", (0, 1)), ("blocks.1.fc1/MatMul", (1,))):
        at, node = next((i, n) for i, n in enumerate(model.graph.node) if n.name == name)
        for operand in operands:
            tensor = f"{name}.{operand}"
            pair = [
                onnx.helper.make_node("QuantizeLinear", [node.input[operand], "scale", "zero"],
                                      [f"{tensor}.q"]),
                onnx.helper.make_node("DequantizeLinear", [f"{tensor}.q", "scale", "zero"],
                                      [f"{tensor}.dq"])
            ]
            node.input[operand] = f"{tensor}.dq"
            for new in reversed(pair):
                model.graph.node.insert(at, new)
    found = {(block, slot): precision for block, slot, precision in layers(model)}
    assert found[0, "fc1"] == "int8" and found[1, "fc1"] == "fp32"
    assert [place for place, precision in found.items() if precision == "int8"] == [(0, "fc1")]


def test_a_graph_of_other_names_has_no_map():
    model = exported("model.onnx")
    for node in model.graph.node:
        node.name = f"layer_{node.name.replace('.', '_')}"
    assert list(layers(model)) == []


def test_mutual_nearest_neighbours_are_each_other_s():
    a = torch.eye(5)
    b = a[[3, 0, 1, 4, 4]]  # tokens 3, 0, 1, 4 and a second one like 4; 2 has none
    pairs = {tuple(pair) for pair in mutual_matches(a, b).tolist()}
    assert {(3, 0), (0, 1), (1, 2)} <= pairs and len([p for p in pairs if p[0] == 4]) == 1
    assert all(p[0] != 2 or p[1] not in (0, 1, 2) for p in pairs)


class Moved:
    """A clip whose camera stands still: every token is where it was, and its depth says so."""

    def __init__(self, labelled: bool):
        self.ids, self.source, self.labelled = ["test/00000_0"], self, labelled
        features = torch.randn(1, 8, 14, 14, generator=torch.Generator().manual_seed(0))
        self.features = features.expand(3, -1, -1, -1)

    def clip(self, clip_id: str) -> Clip:
        frames = np.zeros((3, 3, 224, 224), np.uint8)
        if not self.labelled:
            return Clip(clip_id, frames)
        camera = np.array([[112.0, 0, 112], [0, 112, 112], [0, 0, 1]])
        return Clip(clip_id, frames, depth=np.full((3, 224, 224), 4.0, np.float32),
                    intrinsics=camera, poses=np.stack([np.eye(4)] * 3))

    def load(self, clip_id: str) -> dict:
        order = torch.randperm(14, generator=torch.Generator().manual_seed(1))
        shuffled = self.features[..., order]
        wrong = torch.stack([self.features[0], self.features[1], shuffled[2]])
        return {"generative": self.features, "student_fp32": wrong}


class Folder:
    def __init__(self, folder):
        self.folder = folder


def test_matches_are_judged_by_where_the_points_really_are(tmp_path):
    rows = match_rows(Folder(tmp_path), Moved(labelled=True), [])
    pairs = {row["voice"]: row for row in rows if row["kind"] == "match_pair"}
    teacher = pairs["teacher"]
    assert teacher["right"] == teacher["asked"] == teacher["found"] == 196
    assert pairs["student"]["right"] < 40  # columns changed places: few stayed where they were
    lines = [row for row in rows if row["kind"] == "match" and row["voice"] == "teacher"]
    assert 0 < len(lines) <= 16 and all(row["from_x_px"] == row["to_x_px"] for row in lines)
    assert (tmp_path / "bench" / "strips" / teacher["from_file"]).is_file()


def test_without_depth_nothing_is_called_right_or_wrong(tmp_path):
    rows = match_rows(Folder(tmp_path), Moved(labelled=False), [])
    assert {row["right"] for row in rows} == {None} and rows
