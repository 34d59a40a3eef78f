"""What rows are called in a page for people, and which colour stands for them."""
from records.results import Row

FEATURES = {
    "teacher": "Teacher: generator + semantic", "semantic_only": "Semantic only",
    "zeros": "Control: zeros", "noise": "Control: fixed noise", "rgb": "Control: RGB patches",
    "vae": "Control: VAE latents", "student_fp32": "Student, torch FP32",
    "student_onnx_fp32": "Student, ONNX FP32", "student_fp16": "Student, ONNX FP16",
    "student_int8": "Student, INT8 for TensorRT", "student_int8_cpu": "Student, INT8 for CPU",
    "student_heads": "Student, its own heads",
}
STAGES = {
    "vae_encode": "VAE encode", "transformer": "transformer to the tap",
    "generator": "generator, whole", "semantic": "semantic encoder"
}
BACKENDS = {
    "torch": "torch", "compile": "torch.compile", "ort-cpu": "ONNX", "ort-cuda": "ONNX",
    "openvino": "OpenVINO", "ort-trt": "ONNX by TensorRT", "trt": "TensorRT", "rtx": "TensorRT-RTX"
}


def accuracy_label(row: Row) -> str:
    return FEATURES.get(row["features"], str(row["features"]))


def latency_label(row: Row, noise_draws: int = 1) -> str:
    """Such as "Student, ONNX INT8", or a teacher's stage."""
    place = f" on the GPU{', as a graph' * (row.get('launch') == 'graph')}" if row[
        "device"] == "cuda" else ""
    batch = f", batch {row['batch']}" if row["batch"] != 1 else ""
    if row["stage"] != "student":
        draws = f", {noise_draws} noise draws" if row[
            "stage"] == "transformer" and noise_draws > 1 else ""
        return f"Teacher: {STAGES[row['stage']]}{draws}{batch}{place}"
    return f"Student, {BACKENDS.get(row['backend'], row['backend'])} {row['precision'].upper()}{batch}{place}"


def colour(row: Row) -> str:
    """The CSS class of a row of either table."""
    if row.get("stage", "student") != "student" or row.get("features") == "teacher":
        return "teacher"
    if "int8" in (row.get("precision") or row.get("features", "")):
        return "int8"
    return "student" if "student" in row.get("features", "student") else "control"
