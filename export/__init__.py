"""From a run folder to what a device runs: ONNX, INT8, half precision, TensorRT engines, each
behind a parity gate."""
