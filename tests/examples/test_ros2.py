"""The ROS 2 node against a stub of rclpy (tests/examples/ros2_stub.py), with the shipped model."""
import ast
import importlib
import runpy
import sys
import xml.etree.ElementTree as xml
from array import array
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from infer.model import SHIPPED, Model
from tests.examples import ros2_stub

PACKAGE = Path(__file__).parents[2] / "examples" / "ros2"


class Plane:
    """A model of depth z = 2 m at any focal length, that keeps what it was given."""
    outputs, px, path = ["depth", "normals"], 224, Path("plane.onnx")

    def __init__(self, path: Path = path, threads: int = 0):
        self.given = []

    def __call__(self, frames: np.ndarray, focal: float) -> dict[str, np.ndarray]:
        self.given.append((frames, focal))
        normals = np.zeros((1, 3, 56, 56), np.float32)
        normals[:, 2] = -1
        return {"depth": np.full((1, 1, 56, 56), 2, np.float32), "normals": normals}


@pytest.fixture
def ros(monkeypatch):
    """The module of the node, imported beside the stub."""
    for name, module in ros2_stub.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.syspath_prepend(str(PACKAGE))
    monkeypatch.setattr(ros2_stub.Node, "given", {})
    yield importlib.import_module("vega3d_depth.node")
    for name in [name for name in sys.modules if name.startswith("vega3d_depth")]:
        del sys.modules[name]


def image(ros, picture: np.ndarray, encoding: str = "rgb8", padding: int = 0):
    """With rows that are `padding` bytes longer than their pixels."""
    height, width, channels = picture.shape
    rows = np.zeros((height, width * channels + padding), np.uint8)
    rows[:, :width * channels] = picture.reshape(height, -1)
    header = SimpleNamespace(stamp=SimpleNamespace(sec=10, nanosec=450_000_000), frame_id="camera")
    return ros.ImageMessage(header=header, height=height, width=width, encoding=encoding,
                            step=width * channels + padding, data=array("B", rows.tobytes()))


def info(ros, width: int, height: int, focal: float, cx: float, cy: float):
    return ros.CameraInfo(width=width, height=height,
                          k=[focal, 0.0, cx, 0.0, focal, cy, 0.0, 0.0, 1.0])


def values(message, channels: int) -> np.ndarray:
    return np.frombuffer(message.data, "<f4").reshape(message.height, message.width, channels)


@pytest.fixture
def picture() -> np.ndarray:
    coarse = np.random.default_rng(0).integers(0, 255, (12, 16, 3), np.uint8)
    return coarse.repeat(40, 0).repeat(40, 1)  # [480,640,3]


def test_depth_and_normals_are_those_of_the_model(ros, picture):
    node = ros.DepthNode()
    node.on_info(info(ros, 640, 480, 500.0, 319.5, 239.5))
    node.on_image(image(ros, picture))
    frame = sys.modules["vega3d_depth.geometry"].middle_square(picture, 224)
    outputs = Model(SHIPPED)(frame[None], 500 * 224 / 480)
    (depth,), (normals,) = node.published["depth"], node.published["normals"]
    assert (depth.encoding, normals.encoding) == ("32FC1", "32FC3")
    assert depth.header.frame_id == "camera" and depth.step == 4 * depth.width
    np.testing.assert_allclose(values(depth, 1)[..., 0], outputs["depth"][0, 0], rtol=1e-6)
    np.testing.assert_allclose(values(normals, 3).transpose(2, 0, 1), outputs["normals"][0],
                               rtol=1e-6)
    assert not node.warnings


@pytest.mark.parametrize(("encoding", "order"), [
    ("rgb8", [0, 1, 2]), ("bgr8", [2, 1, 0]), ("rgba8", [0, 1, 2, 0]), ("bgra8", [2, 1, 0, 0])])
def test_every_encoding_and_padded_rows_give_the_same_frame(ros, picture, monkeypatch, encoding,
                                                            order):
    monkeypatch.setattr(ros, "Model", Plane)
    node = ros.DepthNode()
    node.on_image(image(ros, picture))
    node.on_image(image(ros, picture[..., order], encoding, padding=24))
    (first, _), (second, _) = node.model.given
    assert (first == second).all() and first.shape == (1, 3, 224, 224)


def test_the_focal_length_is_that_of_the_model_s_input(ros, picture, monkeypatch):
    monkeypatch.setattr(ros, "Model", Plane)
    node = ros.DepthNode()
    node.on_info(info(ros, 1280, 960, 1000.0, 640.0, 480.0))  # the picture is half as large
    node.on_image(image(ros, picture))
    assert node.model.given[0][1] == pytest.approx(500 * 224 / 480)
    (small,) = node.published["depth/camera_info"]
    assert (small.width, small.height) == (56, 56)
    assert small.k[0] == pytest.approx(500 * 56 / 480)


def test_points_are_where_the_camera_saw_them(ros, picture, monkeypatch):
    """A plane 2 m ahead; the principal point is not in the middle."""
    monkeypatch.setattr(ros, "Model", Plane)
    node = ros.DepthNode()
    focal, cx, cy = 480.0, 300.0, 200.0
    node.on_info(info(ros, 640, 480, focal, cx, cy))
    node.on_image(image(ros, picture))
    (cloud,) = node.published["points"]
    assert [field.name for field in cloud.fields] == ["x", "y", "z", "rgb"]
    assert (cloud.point_step, cloud.row_step) == (16, 16 * 56)
    xyz = values(cloud, 4)[..., :3]
    assert (xyz[..., 2] == 2).all()
    # the middle of cell (row, column) in px of the picture
    column, row = (80 + (np.arange(56) + 0.5) * 480 / 56 - 0.5, (np.arange(56) + 0.5) * 480 / 56
                   - 0.5)
    np.testing.assert_allclose(xyz[0, :, 0], (column - cx) / focal * 2, atol=1e-5)
    np.testing.assert_allclose(xyz[:, 0, 1], (row - cy) / focal * 2, atol=1e-5)
    colours = np.frombuffer(cloud.data, "<u4").reshape(56, 56, 4)[..., 3]
    red, green, blue = colours[28, 28] >> 16, colours[28, 28] >> 8 & 255, colours[28, 28] & 255
    expected = picture[int(row[28]), int(column[28])].astype(int)
    assert np.abs(np.array([red, green, blue]).astype(int) - expected).max() < 40


def test_without_camera_info_it_warns_once_and_points_can_be_off(ros, picture, monkeypatch):
    monkeypatch.setattr(ros, "Model", Plane)
    monkeypatch.setattr(ros2_stub.Node, "given", {"points": False})
    node = ros.DepthNode()
    for _ in range(3):
        node.on_image(image(ros, picture))
    assert len(node.warnings) == 1 and "53 degrees" in node.warnings[0]
    assert node.model.given[0][1] == 224 and not node.published["points"]


def test_a_picture_that_cannot_be_read_is_a_warning_not_the_end(ros, picture, monkeypatch):
    monkeypatch.setattr(ros, "Model", Plane)
    node = ros.DepthNode()
    node.on_image(image(ros, picture, "bayer_rggb8"))
    short = image(ros, picture)
    short.data = short.data[:100]
    node.on_image(short)
    assert "bayer_rggb8" in node.warnings[0] and "100 bytes" in node.warnings[1]
    assert not node.published["depth"]


def test_diagnostics_say_latency_and_age_and_when_nothing_comes(ros, picture, monkeypatch):
    monkeypatch.setattr(ros, "Model", Plane)
    node = ros.DepthNode()
    node.on_info(info(ros, 640, 480, 500.0, 319.5, 239.5))
    for _ in range(3):
        node.on_image(image(ros, picture))
    (seconds, report), = node.timers
    report()
    report()
    first, second = (message.status[0] for message in node.published["/diagnostics"])
    found = {value.key: float(value.value) for value in first.values}
    assert seconds == 1 and first.level == b"\0" and found["frames"] == 3
    assert 0 < found["latency_ms_median"] <= found["latency_ms_max"]
    assert found["age_ms_median"] == pytest.approx(50)  # stamped at 10.45 s, published at 10.5
    assert second.level == b"\1" and second.message == "no picture comes"


def test_a_model_without_depth_is_one_line(ros, monkeypatch):
    class Features(Plane):
        outputs = ("features",)

    monkeypatch.setattr(ros, "Model", Features)
    with pytest.raises(SystemExit, match="has no depth"):
        ros.main()


def test_the_package_is_one_that_colcon_builds(monkeypatch):
    name = xml.parse(PACKAGE / "package.xml").findtext("name")
    assert (PACKAGE / "resource" / name).is_file() and (PACKAGE / name / "node.py").is_file()
    called = {}
    monkeypatch.setattr("setuptools.setup", lambda **options: called.update(options))
    monkeypatch.chdir(PACKAGE)
    runpy.run_path("setup.py")
    files = [file for _, names in called["data_files"] for file in names]
    assert all(Path(file).is_file() for file in files) and "launch/depth.launch.py" in files
    script, _, target = called["entry_points"]["console_scripts"][0].partition(" = ")
    module, _, function = target.partition(":")
    tree = ast.parse((PACKAGE / f"{module.replace('.', '/')}.py").read_text())
    assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert f"lib/{name}" in (PACKAGE / "setup.cfg").read_text() and script == "depth_node"


def test_the_launch_file_names_the_node_s_topics_and_parameters(ros):
    made = runpy.run_path(str(PACKAGE / "launch" / "depth.launch.py"))
    *arguments, launched = made["generate_launch_description"]().args[0]
    assert {argument.args[0] for argument in arguments} == {
        "image", "camera_info", "model", "points", "threads"}
    assert launched.executable == "depth_node"
    node = ros.DepthNode()
    assert {topic for topic, _ in launched.remappings} == set(node.subscriptions)
    assert set(launched.parameters[0]) == {"model", "points", "threads"}
