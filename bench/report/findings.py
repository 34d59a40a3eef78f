"""What the numbers say, in one sentence each; every figure in them is a field of a row."""
from collections.abc import Sequence
from dataclasses import dataclass

from export.parity import THRESHOLDS
from records.results import Results, Row
from records.timing import MIN_SPEEDUP

DROP_POINTS = 1.0  # of depth delta1


@dataclass(frozen=True)
class Finding:
    """A question, its answer as a figure, and the sentence that says what the figure means."""
    title: str
    figure: str
    sentence: str


def findings(results: Results) -> list[Finding]:
    """Those that the rows allow: generator's gain, student's share, cost, INT8."""
    accuracy, latency = results.of("accuracy"), results.of("latency")
    found = (_gain(accuracy), _recovery(accuracy), _speed(latency),
             int8_finding(accuracy, latency))
    return [finding for finding in found if finding]


def int8_finding(accuracy: Sequence[Row], latency: Sequence[Row]) -> Finding | None:
    """Whether INT8 pays on this machine's CPU: certainly faster, close to FP32, depth kept."""
    facts = {"stage": "student", "backend": "ort-cpu", "device": "cpu", "batch": 1}
    int8, fp32 = (_find(latency, precision=name, **facts) for name in ("int8", "fp32"))
    score = _find(accuracy, features="student_int8_cpu")
    if not (int8 and fp32 and score):
        return None
    reasons = []
    if int8["vs_fp32"] < MIN_SPEEDUP or int8["vs_fp32_low"] < 1:
        reasons.append("it is not clearly faster")
    if score["fp32_cosine_mean"] < THRESHOLDS["int8"].cosine_mean:
        reasons.append("its features drift too far")
    if score.get("delta1_vs_fp32", 0) * 100 < -DROP_POINTS:
        reasons.append("it loses too much depth")
    depth = ""
    if "delta1_vs_fp32" in score:
        depth = f", depth {score['delta1_vs_fp32'] * 100:+.2f} points"
    advice = f"use FP32 here: {' and '.join(reasons)}" if reasons else "use INT8 here"
    return Finding(
        "INT8 or not", f"{int8['vs_fp32']:.2f}x",
        f"INT8 takes {int8['latency_ms']:.1f} ms a frame against {fp32['latency_ms']:.1f} ms for "
        f"FP32, in {int8['size_mb']:.1f} MB against {fp32['size_mb']:.1f} MB; token cosine "
        f"{score['fp32_cosine_mean']:.4f}{depth}: {advice}.")


def gain_is_real(accuracy: Sequence[Row], metric: str) -> bool:
    """Whether the 95 % interval of the teacher's gain lies on the better side of zero."""
    teacher = _find(accuracy, features="teacher") or {}
    if metric == "delta1":
        return (teacher.get("delta1_vs_semantic_low") or 0) > 0
    return (teacher.get(f"{metric}_vs_semantic_high") or 0) < 0


def _gain(accuracy: Sequence[Row]) -> Finding | None:
    teacher = _find(accuracy, features="teacher")
    if not teacher or "delta1_vs_semantic" not in teacher:
        return None
    points, degrees = 100 * teacher["delta1_vs_semantic"], teacher["normal_deg_vs_semantic"]
    low, high = (teacher[f"delta1_vs_semantic_{end}"] for end in ("low", "high"))
    interval, caution = "", ""
    if low is not None and high is not None:
        interval = f" (95 %: {100 * low:+.1f} to {100 * high:+.1f})"
    if not gain_is_real(accuracy, "delta1"):
        caution = " This interval does not exclude zero: more rooms would tell."
    return Finding(
        "What the generator adds", f"{points:+.1f} points",
        f"of pixels with depth within 25 % of the truth, against semantic features alone{interval},"
        f" on {teacher['rooms']} unseen rooms; the error of surface normals changes by "
        f"{degrees:+.1f}°.{caution}")


def _recovery(accuracy: Sequence[Row]) -> Finding | None:
    names = ("student_int8_cpu", "student_int8", "student_fp32")
    row = next((row for name in names if (row := _find(accuracy, features=name))), None)
    if row is None:
        return None
    title = "What the student keeps"
    precision = "FP32" if row["features"] == "student_fp32" else "INT8"
    if row.get("recovery_low") is None:
        return Finding(
            title, f"{row['cosine_mean']:.3f}",
            f"is the mean cosine between the {precision} student's tokens and the teacher's; its "
            "share of the gain is only defined where the generator has one for certain.")
    return Finding(
        title, f"{100 * row['recovery']:.0f} %",
        f"of the generator's gain is left with the {precision} student in its place (95 %: "
        f"{100 * row['recovery_low']:.0f} to {100 * row['recovery_high']:.0f} %), the lower of "
        "depth and normals.")


def _speed(latency: Sequence[Row]) -> Finding | None:
    students = [row for row in latency
                if row["stage"] == "student" and row.get("speedup") and row["batch"] == 1]
    if not students:
        return None
    best = max(students, key=lambda row: row["speedup"])
    teacher = _find(latency, stage="generator", device=best["device"]) or {}
    device = "the GPU"
    if best["device"] == "cpu":
        device = f"{best['threads']} CPU thread{'s' * (best['threads'] > 1)}"
    return Finding(
        "What it costs", f"{best['speedup']:.0f}x faster",
        f"than the generator: the {best['precision'].upper()} student takes "
        f"{best['frame_ms']:.1f} ms a frame, the generator {teacher['frame_ms']:.0f} ms, on "
        f"{device}; the file is {best['size_mb']:.1f} MB. The semantic encoder runs beside either.")


def _find(rows: Sequence[Row], **wanted: object) -> Row | None:
    """The first row with these values: of several seeds, the one that was exported."""
    return next((row for row in rows if wanted.items() <= row.items()), None)
