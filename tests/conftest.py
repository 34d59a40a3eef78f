import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # tests import onnxruntime themselves

import pytest
import torch

from tests.fakes import save_tiny_wan

torch.set_num_threads(1)  # two threads beside another job can be ten times slower than one


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny_wan(tmp_path_factory):
    return save_tiny_wan(tmp_path_factory.mktemp("tiny-wan"))
