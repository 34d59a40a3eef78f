"""An engine file as a function: frames in [0,1] -> features, on the GPU it was built for; checked
before it is run."""
import json
from pathlib import Path
from types import ModuleType

import numpy as np

from export.artefact import Facts, sidecar_path
from export.tensorrt import cuda
from export.tensorrt.builder import surface
from records.files import sha256


def check_engine(path: Path, trt: ModuleType, gpu: cuda.Device | None) -> Facts:
    """The engine's sidecar, if this machine may run it.

    Raises ValueError for a missing, truncated or altered file, another SM, another TensorRT:
    TensorRT itself crashes on some of these.
    """
    if not path.is_file() or not sidecar_path(path).is_file():
        raise ValueError(
            f"{path}: no engine with a sidecar here; build one with: vega3d export trt")
    try:
        facts: Facts = json.loads(sidecar_path(path).read_text())
        built = {"sha256": facts["sha256"], "sm": facts["sm"], "builder": facts["builder"]}
    except (ValueError, KeyError) as error:
        raise ValueError(
            f"{sidecar_path(path)}: not an engine's sidecar ({error}); build it again") from error
    if sha256(path) != built["sha256"]:
        raise ValueError(
            f"{path}: truncated or altered: not the file its sidecar describes; build it again")
    if built["builder"] != surface(trt).label:
        raise ValueError(
            f"{path}: built by {built['builder']}, this is {surface(trt).label}; engines do not "
            "travel between versions, build it again")
    if gpu is None or built["sm"] != gpu.sm:
        here = f"SM {gpu.sm} ({gpu.name})" if gpu else "a machine without a GPU"
        raise ValueError(
            f"{path}: built for SM {built['sm']}, this is {here}; engines do not travel, build it "
            "there"
        )
    return facts


class EngineModel:
    """Runs engine bytes. frames [N,3,H,W] float32 -> features [N,D,h,w]; a static batch's last
    chunk is filled up."""

    def __init__(self, trt: ModuleType, plan: bytes, batch: int = 8):
        self.runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
        self.engine = self.runtime.deserialize_cuda_engine(plan)
        if self.engine is None:
            raise ValueError(
                "engine: TensorRT cannot read it (truncated, or of another version or GPU); build "
                "it anew"
            )
        self.context = self.engine.create_execution_context()
        self.frames, self.features = (self.engine.get_tensor_name(i) for i in range(2))
        shape = tuple(self.engine.get_tensor_shape(self.frames))
        self.batch = batch if shape[0] == -1 else shape[0]
        self.context.set_input_shape(self.frames, (self.batch, *shape[1:]))
        out = tuple(self.context.get_tensor_shape(self.features))
        self.input = cuda.Buffer((self.batch, *shape[1:]), np.dtype(np.float32))
        self.output = cuda.Buffer(out, np.dtype(np.float32))
        self.context.set_tensor_address(self.frames, self.input.address)
        self.context.set_tensor_address(self.features, self.output.address)

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        outputs = []
        for start in range(0, len(frames), self.batch):
            chunk = frames[start:start + self.batch]
            full = np.concatenate([chunk, np.repeat(chunk[-1:], self.batch - len(chunk), 0)])
            self.input.upload(full)
            self.run()
            outputs.append(self.output.download()[:len(chunk)])
        return np.concatenate(outputs)

    def run(self) -> None:
        """One pass over what is in the input buffer, waited for."""
        if not self.context.execute_async_v3(0):
            raise ValueError("engine: TensorRT could not run it; build it again on this machine")
        cuda.synchronise()
