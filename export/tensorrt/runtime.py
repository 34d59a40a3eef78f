"""Running an engine file on the GPU it was built for, after checking that it may be run."""
from pathlib import Path
from types import ModuleType

import numpy as np

from export.artefact import Facts, sidecar_path
from export.tensorrt import cuda
from export.tensorrt.builder import tensorrt_api
from records import manifest
from records.files import read_json, sha256


def check_engine(path: Path, trt: ModuleType, gpu: cuda.Gpu | None) -> Facts:
    """The engine's sidecar. Raises ValueError for a missing, truncated or altered file, another SM
    or another TensorRT: TensorRT itself crashes on some of these.
    """
    sidecar = sidecar_path(path)
    if not path.is_file() or not sidecar.is_file():
        raise ValueError(f"{path}: no engine with a sidecar here; build one with: "
                         "vega3d export trt")
    manifest.check(sidecar, "build it again")
    try:
        facts: Facts = read_json(sidecar, "build it again")
        built_sha256, built_sm, builder = facts["sha256"], facts["sm"], facts["builder"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{sidecar}: not an engine's sidecar ({error}); build it again") from error
    if sha256(path) != built_sha256:
        raise ValueError(f"{path}: truncated or altered: not the file its sidecar describes; "
                         "build it again")
    label = tensorrt_api(trt).label
    if builder != label:
        raise ValueError(f"{path}: built by {builder}, this is {label}; an engine runs only under "
                         "the version that built it, build it again")
    if gpu is None or built_sm != gpu.sm:
        here = f"SM {gpu.sm} ({gpu.name})" if gpu else "a machine without a GPU"
        raise ValueError(f"{path}: built for SM {built_sm}, this is {here}; an engine runs only on "
                         "the SM it was built for, build it there")
    return facts


class EngineModel:
    """frames [N,3,H,W] float32 in [0,1] -> features [N,D,h,w]; the last chunk is padded."""

    def __init__(self, trt: ModuleType, plan: bytes, batch: int = 8):
        self.runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
        self.engine = self.runtime.deserialize_cuda_engine(plan)
        if self.engine is None:
            raise ValueError("engine: TensorRT cannot read it (truncated, or of another version or "
                             "GPU); build it again")
        self.context = self.engine.create_execution_context()
        frames, features = (self.engine.get_tensor_name(i) for i in range(2))
        static_batch, *frame_shape = tuple(self.engine.get_tensor_shape(frames))
        self.batch = batch if static_batch == -1 else static_batch
        shape = (self.batch, *frame_shape)
        self.context.set_input_shape(frames, shape)
        self.input = cuda.Buffer(shape, np.dtype(np.float32))
        self.output = cuda.Buffer(tuple(self.context.get_tensor_shape(features)),
                                  np.dtype(np.float32))
        self.context.set_tensor_address(frames, self.input.address)
        self.context.set_tensor_address(features, self.output.address)

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        outputs = []
        for start in range(0, len(frames), self.batch):
            chunk = frames[start:start + self.batch]
            padding = np.repeat(chunk[-1:], self.batch - len(chunk), 0)
            self.input.upload(np.concatenate([chunk, padding]))
            self.run()
            outputs.append(self.output.download()[:len(chunk)])
        return np.concatenate(outputs)

    def run(self) -> None:
        """Runs the engine on the input buffer and waits for it."""
        if not self.context.execute_async_v3(0):
            raise ValueError("engine: TensorRT could not run it; build it again on this machine")
        cuda.synchronize()
