from glob import glob

from setuptools import setup

NAME = "vega3d_depth"

setup(
    name=NAME, version="0.1.0", packages=[NAME], install_requires=["setuptools"], zip_safe=True,
    data_files=[("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
                (f"share/{NAME}", ["package.xml"]), (f"share/{NAME}/launch", glob("launch/*.py"))],
    maintainer="vega3d-edge", maintainer_email="maintainer@example.com", license="Apache-2.0",
    description="Depth, normals and points of a camera by an exported vega3d-edge model",
    entry_points={"console_scripts": [f"depth_node = {NAME}.node:main"]})
