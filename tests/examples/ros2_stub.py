"""A stub of rclpy, launch and the messages that the node uses: no ROS 2 is installed here.

As the real ones, messages refuse fields that they do not have and values of another type.
"""
import array
import sys
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

FIELDS: dict[str, dict[str, Any]] = {  # the type of a field, or a function that makes one
    "Header": {"stamp": SimpleNamespace, "frame_id": str},
    "Image": {"header": object, "height": int, "width": int, "encoding": str, "is_bigendian": int,
              "step": int, "data": array.array},
    "CameraInfo": {"header": object, "height": int, "width": int, "distortion_model": str,
                   "d": list, "k": list, "r": list, "p": list},
    "PointField": {"name": str, "offset": int, "datatype": int, "count": int},
    "PointCloud2": {"header": object, "height": int, "width": int, "fields": list,
                    "is_bigendian": bool, "point_step": int, "row_step": int, "data": array.array,
                    "is_dense": bool},
    "KeyValue": {"key": str, "value": str},
    "DiagnosticStatus": {"level": bytes, "name": str, "message": str, "hardware_id": str,
                         "values": list},
    "DiagnosticArray": {"header": object, "status": list},
}


def message(name: str, constants: dict[str, Any]) -> type:
    fields = FIELDS[name]

    def init(self, **values):
        self.header = SimpleNamespace(stamp=None, frame_id="")
        for key, value in values.items():
            assert key in fields, f"{name} has no field {key}"
            assert isinstance(value, fields[key]), f"{name}.{key} is a {type(value).__name__}"
            setattr(self, key, value)

    return type(name, (), {"__init__": init, **constants})


class Node:
    """Parameters by `given`; what is published, by topic."""
    given: ClassVar[dict[str, Any]] = {}

    def __init__(self, name: str):
        self.name, self.published, self.subscriptions = name, {}, {}
        self.timers, self.warnings = [], []

    def declare_parameter(self, name: str, default: Any) -> SimpleNamespace:
        return SimpleNamespace(value=type(default)(self.given.get(name, default)))

    def create_publisher(self, kind: type, topic: str, depth: int) -> SimpleNamespace:
        sent = self.published[topic] = []

        def publish(message):
            assert isinstance(message, kind)
            sent.append(message)

        return SimpleNamespace(publish=publish)

    def create_subscription(self, kind: type, topic: str, call: Any, qos: Any) -> None:
        self.subscriptions[topic] = call

    def create_timer(self, seconds: float, call: Any) -> None:
        self.timers.append((seconds, call))

    def get_clock(self) -> SimpleNamespace:
        return SimpleNamespace(now=lambda: SimpleNamespace(nanoseconds=10_500_000_000,
                                                           to_msg=lambda: "now"))

    def get_logger(self) -> SimpleNamespace:
        return SimpleNamespace(warning=self.warnings.append)


def modules() -> dict[str, ModuleType]:
    """What `import rclpy` and the others find, by name."""
    def module(name: str, **contents: Any) -> ModuleType:
        made = ModuleType(name)
        made.__dict__.update(contents)
        return made

    def record(*args: Any, **named: Any) -> SimpleNamespace:
        return SimpleNamespace(args=args, **named)

    constants: dict[str, dict[str, Any]] = {
        "PointField": {"FLOAT32": 7}, "DiagnosticStatus": {"OK": b"\0", "WARN": b"\1"}}
    messages = {name: message(name, constants.get(name, {})) for name in FIELDS}
    qos = module("rclpy.qos", QoSProfile=record,
                 HistoryPolicy=SimpleNamespace(KEEP_LAST=1),
                 ReliabilityPolicy=SimpleNamespace(BEST_EFFORT=2))
    found = [
        module("rclpy", init=lambda: None, spin=lambda node: None, try_shutdown=lambda: None),
        module("rclpy.node", Node=Node), qos, module("sensor_msgs"),
        module("sensor_msgs.msg", **messages), module("diagnostic_msgs"),
        module("diagnostic_msgs.msg", **messages),
        module("launch", LaunchDescription=record),
        module("launch.actions", DeclareLaunchArgument=record),
        module("launch.substitutions", LaunchConfiguration=record),
        module("launch_ros"), module("launch_ros.actions", Node=record),
        module("launch_ros.parameter_descriptions", ParameterValue=record)]
    assert not any(each.__name__ in sys.modules for each in found), "a real ROS 2 is here: use it"
    return {each.__name__: each for each in found}
