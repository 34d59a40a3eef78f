"""onnxruntime with its telemetry off, for every import of it: `from records.runtime import ort`.

Since 1.31 it would write a device id below the user's cache folder and open a telemetry session.
"""
import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before the import; subprocesses inherit it

import onnxruntime as ort

__all__ = ["ort"]
