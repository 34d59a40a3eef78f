"""The Jetson folder's own script, as it is, among the jobs of trt.py: trt_jetson_run.py JOB.json, in TensorRT's Python.

It builds and gates beside the other builds; only before it times does it wait for its turn, with the GPU to itself.
"""
import os
import sys
from pathlib import Path

from bench.h200.trt_worker import Job

job = Job(Path(sys.argv[1]))
os.chdir(job.work / "jetson")
sys.path.insert(0, str(job.work / "jetson"))
import run_on_jetson as script  # noqa: E402  the copy that lies there

measure = script.measure


def measure_alone(*args):
    with job.alone():
        measure(*args)


script.measure = measure_alone
sys.argv = ["run_on_jetson.py", "--own-kernels", "--seconds", "1"]
script.main()
