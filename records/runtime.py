"""onnxruntime and NNCF with their telemetry off, for every import of them.

onnxruntime: `from records.runtime import ort`. Since 1.31 it would write a device id below the
user's cache folder and open a telemetry session.
"""
import os
from types import ModuleType

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before the import; subprocesses inherit it

import onnxruntime as ort

__all__ = ["import_nncf", "ort"]


def import_nncf() -> ModuleType:
    """nncf, imported late (10 s): sends nothing and leaves no file in the home folder.

    NNCF_CI stops it from sending; openvino-telemetry, which it opens all the same, would still
    write ~/intel/openvino_ga_cid unless it finds itself in a CI job (TF_BUILD).
    """
    os.environ.setdefault("NNCF_CI", "1")
    before = os.environ.get("TF_BUILD")
    os.environ["TF_BUILD"] = "1"
    try:
        import nncf
    finally:
        del os.environ["TF_BUILD"]
        if before is not None:
            os.environ["TF_BUILD"] = before
    return nncf
