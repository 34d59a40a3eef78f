"""What the page calls rows, columns and facts, and which colour a row has."""
from records.results import Row

FEATURES = {
    "teacher": "Teacher: generator + semantic", "semantic_only": "Semantic only",
    "zeros": "Control: zeros", "noise": "Control: fixed noise", "rgb": "Control: RGB patches",
    "vae": "Control: VAE latents", "student_fp32": "Student, torch FP32",
    "student_onnx_fp32": "Student, ONNX FP32", "student_fp16": "Student, ONNX FP16",
    "student_int8": "Student, INT8 for TensorRT", "student_int8_cpu": "Student, INT8 for CPU",
    "student_int8_openvino": "Student, INT8 for OpenVINO",
    "student_heads": "Student, its own heads"
}
STAGES = {
    "vae_encode": "VAE encode", "transformer": "transformer to the tap",
    "generator": "generator, whole", "semantic": "semantic encoder"
}
BACKENDS = {
    "torch": "torch", "compile": "torch.compile", "ort-cpu": "ONNX", "ort-cuda": "ONNX",
    "openvino": "OpenVINO", "ort-trt": "ONNX by TensorRT", "trt": "TensorRT", "rtx": "TensorRT-RTX"
}
GLOSSARY = {
    "depth δ<1.25": "Share of pixels whose depth is within 25 % of the true one. Higher is better.",
    "AbsRel": "Mean of |depth − truth| / truth. Lower is better.",
    "normal error": "Mean angle between the surface direction that was read out and the true one. "
                    "Lower is better.",
    "mIoU": "Overlap of predicted and true class regions, averaged over classes. Higher is better.",
    "cosine": "Agreement of two feature vectors of one image patch: 1 is the same direction, 0 "
              "unrelated.",
    "recovery": "Where the student stands between semantic features alone (0 %) and the teacher "
                "(100 %), the teacher's heads unchanged.",
    "median, p90, p99": "Half, nine tenths and all but one hundredth of the calls were at least "
                        "this quick.",
    "faster": "Ratio of two medians taken in the same rounds of the same run, so that a drifting "
              "machine cancels out.",
    "interval, 95 %": "What the figure could be with other rooms: paired bootstrap over the "
                      "held-out rooms.",
    "peak memory": "Resident size, at its largest, of a process that only loads and runs this; "
                   "libraries included.",
}
ENVIRONMENT = {
    "cpu": "CPU", "memory_gb": "memory, GB", "cpu_mhz": "CPU clock, MHz",
    "load_1m": "load average before", "load_1m_after": "load average after", "gpu": "GPU",
    "gpu_count": "GPUs", "sm": "compute capability", "cuda": "CUDA"
}


def accuracy_label(row: Row) -> str:
    return FEATURES.get(row["features"], str(row["features"]))


def latency_label(row: Row, noise_draws: int = 1) -> str:
    """Such as "Student, ONNX INT8", or a teacher's stage."""
    stage = row["stage"]
    batch = f", batch {row['batch']}" if row["batch"] != 1 else ""
    place = ""
    if row["device"] == "cuda":
        place = " on the GPU, as a graph" if row.get("launch") == "graph" else " on the GPU"
    if stage == "student":
        backend = BACKENDS.get(row["backend"], row["backend"])
        return f"Student, {backend} {row['precision'].upper()}{batch}{place}"
    draws = f", {noise_draws} noise draws" if stage == "transformer" and noise_draws > 1 else ""
    return f"Teacher: {STAGES[stage]}{draws}{batch}{place}"


def colour(row: Row) -> str:
    """The CSS class of a row of either table."""
    if row.get("stage", "student") != "student" or row.get("features") == "teacher":
        return "teacher"
    if "int8" in (row.get("precision") or row.get("features", "")):
        return "int8"
    return "student" if "student" in row.get("features", "student") else "control"
