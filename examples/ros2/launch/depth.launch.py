"""ros2 launch vega3d_depth depth.launch.py image:=/camera/color/image_raw points:=false"""
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

TOPICS = {"image": "/camera/image_raw", "camera_info": "/camera/camera_info"}
PARAMETERS = {"model": "", "points": True, "threads": 0}  # of vega3d_depth.node


def generate_launch_description():
    given = {name: LaunchConfiguration(name) for name in (*TOPICS, *PARAMETERS)}
    parameters = {name: ParameterValue(given[name], value_type=type(default))
                  for name, default in PARAMETERS.items()}
    node = Node(package="vega3d_depth", executable="depth_node", namespace="vega3d",
                remappings=[(name, given[name]) for name in TOPICS], parameters=[parameters])
    arguments = [DeclareLaunchArgument(name, default_value=str(default))
                 for name, default in {**TOPICS, **PARAMETERS}.items()]
    return LaunchDescription([*arguments, node])
