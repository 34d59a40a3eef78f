"""A ROS 2 node: depth, normals and points of a camera's pictures, by an exported model.

Subscribes to `image` (rgb8, bgr8, rgba8, bgra8 or mono8) and `camera_info`. Publishes, at the
model's output size and for the picture's middle square: `depth` (32FC1, metres), `normals` (32FC3,
in camera axes), `depth/camera_info`, `points` if the parameter is true; and /diagnostics.
"""
from __future__ import annotations

import statistics
import time
from array import array
from pathlib import Path

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.node import Node
from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, PointCloud2, PointField
from sensor_msgs.msg import Image as ImageMessage

from infer.model import SHIPPED, Model
from vega3d_depth.geometry import Camera, assumed, middle_square, pixels, points

# the newest picture only: a queue would add its length to the latency
NEWEST = QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=1,
                    reliability=ReliabilityPolicy.BEST_EFFORT)
SECONDS = 1.0  # between two diagnostics


class DepthNode(Node):
    """Parameters: model (an ONNX file; empty: the shipped one), threads (0: one a core), points."""

    def __init__(self) -> None:
        super().__init__("vega3d_depth")
        model = self.declare_parameter("model", "").value
        threads = self.declare_parameter("threads", 0).value
        self.with_points = self.declare_parameter("points", True).value
        self.model = Model(Path(model) if model else SHIPPED, threads)
        if "depth" not in self.model.outputs:
            raise ValueError(f"{model}: has no depth; use a file of: vega3d export onnx "
                             "--preset edge")
        self.info: CameraInfo | None = None
        self.milliseconds: list[float] = []
        self.ages: list[float] = []
        self.problem = ""
        self.output = {
            name: self.create_publisher(kind, name, 1) for name, kind in (
                ("depth", ImageMessage), ("normals", ImageMessage), ("points", PointCloud2),
                ("depth/camera_info", CameraInfo), ("/diagnostics", DiagnosticArray))}
        self.create_subscription(CameraInfo, "camera_info", self.on_info, NEWEST)
        self.create_subscription(ImageMessage, "image", self.on_image, NEWEST)
        self.create_timer(SECONDS, self.report)

    def on_info(self, message: CameraInfo) -> None:
        self.info = message

    def on_image(self, message: ImageMessage) -> None:
        began = time.perf_counter()
        try:
            picture = pixels(message.data, message.encoding, message.width, message.height,
                             message.step)
        except ValueError as error:
            self.warn(str(error))
            return
        px = self.model.px
        camera = self.camera(message.width, message.height)
        outputs = self.model(middle_square(picture, px)[None], camera.of_middle_square(px).fx)
        self.publish(message.header, picture, camera, {k: v[0] for k, v in outputs.items()})
        self.milliseconds.append(1000 * (time.perf_counter() - began))
        stamp = message.header.stamp
        now = self.get_clock().now().nanoseconds
        self.ages.append(now / 1e6 - stamp.sec * 1e3 - stamp.nanosec / 1e6)

    def camera(self, width: int, height: int) -> Camera:
        """Of the pictures, which may be smaller than the camera's own; assumed without any."""
        if self.info is None or not self.info.k[0] or not self.info.width:
            self.warn("no camera_info: a field of view of 53 degrees is assumed, and depth and "
                      "points are off by the same factor as it")
            return assumed(width, height)
        self.problem = ""
        x, y = width / self.info.width, height / self.info.height
        k = self.info.k
        return Camera(width, height, k[0] * x, k[4] * y, (k[2] + 0.5) * x - 0.5,
                      (k[5] + 0.5) * y - 0.5)

    def publish(self, header, picture: np.ndarray, camera: Camera,
                outputs: dict[str, np.ndarray]) -> None:
        depth = outputs["depth"][0]  # [h,w]
        small = camera.of_middle_square(depth.shape[0])
        self.output["depth"].publish(_image(header, depth[..., None], "32FC1"))
        self.output["depth/camera_info"].publish(_info(header, small))
        if "normals" in outputs:
            normals = outputs["normals"].transpose(1, 2, 0)
            self.output["normals"].publish(_image(header, normals, "32FC3"))
        if self.with_points:
            colours = middle_square(picture, depth.shape[0]).transpose(1, 2, 0)
            self.output["points"].publish(_cloud(header, points(depth, colours, small)))

    def warn(self, problem: str) -> None:
        """Once a problem, and in the diagnostics as long as it lasts."""
        if problem != self.problem:
            self.problem = problem
            self.get_logger().warning(problem)

    def report(self) -> None:
        values = {"frames": str(len(self.milliseconds))}
        if self.milliseconds:
            values |= {"latency_ms_median": f"{statistics.median(self.milliseconds):.1f}",
                       "latency_ms_max": f"{max(self.milliseconds):.1f}",
                       "age_ms_median": f"{statistics.median(self.ages):.1f}"}
        level = DiagnosticStatus.OK
        if self.problem or not self.milliseconds:
            level = DiagnosticStatus.WARN
        status = DiagnosticStatus(
            level=level, name="vega3d_depth", hardware_id=self.model.path.name,
            message=self.problem or ("running" if self.milliseconds else "no picture comes"),
            values=[KeyValue(key=key, value=value) for key, value in values.items()])
        report = DiagnosticArray(status=[status])
        report.header.stamp = self.get_clock().now().to_msg()
        self.output["/diagnostics"].publish(report)
        self.milliseconds, self.ages = [], []


def _bytes(values: np.ndarray) -> array:
    """What rclpy takes without looking at every byte."""
    return array("B", np.ascontiguousarray(values, "<f4").tobytes())


def _image(header, values: np.ndarray, encoding: str) -> ImageMessage:
    height, width, channels = values.shape
    return ImageMessage(header=header, height=height, width=width, encoding=encoding,
                        is_bigendian=0, step=4 * channels * width, data=_bytes(values))


def _cloud(header, cloud: np.ndarray) -> PointCloud2:
    height, width, _ = cloud.shape
    fields = [PointField(name=name, offset=4 * i, datatype=PointField.FLOAT32, count=1)
              for i, name in enumerate(("x", "y", "z", "rgb"))]
    return PointCloud2(header=header, height=height, width=width, fields=fields, point_step=16,
                       is_bigendian=False, row_step=16 * width, data=_bytes(cloud), is_dense=True)


def _info(header, camera: Camera) -> CameraInfo:
    fx, fy, cx, cy = camera.fx, camera.fy, camera.cx, camera.cy
    return CameraInfo(
        header=header, height=camera.height, width=camera.width, distortion_model="plumb_bob",
        d=[0.0] * 5, k=[fx, 0.0, cx, 0.0, fy, cy, 0.0, 0.0, 1.0],
        r=[1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0],
        p=[fx, 0.0, cx, 0.0, 0.0, fy, cy, 0.0, 0.0, 0.0, 1.0, 0.0])


def main() -> None:
    rclpy.init()
    try:
        rclpy.spin(DepthNode())
    except KeyboardInterrupt:
        pass
    except ValueError as error:  # of the model
        raise SystemExit(f"vega3d_depth: {error}") from error
    finally:
        rclpy.try_shutdown()
