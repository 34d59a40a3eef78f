"""What the numbers say, in one sentence each; every figure in them is a field of a row."""
from collections.abc import Sequence
from dataclasses import dataclass

from records.results import Results, Row
from records.timing import MIN_SPEEDUP

COSINE = 0.99       # to FP32: the export gate's own floor for INT8
DROP_POINTS = 1.0   # of depth delta1


@dataclass(frozen=True)
class Verdict:
    """A question, its answer as a figure, and the sentence that says what the figure means."""
    title: str
    figure: str
    sentence: str


def verdicts(results: Results) -> list[Verdict]:
    """Those that the results can answer: the generator's gain, the student's share, its cost,
    INT8."""
    accuracy, latency = results.of("accuracy"), results.of("latency")
    found = (_gain(accuracy), _kept(accuracy), _speed(latency), int8_verdict(accuracy, latency))
    return [verdict for verdict in found if verdict]


def int8_verdict(accuracy: Sequence[Row], latency: Sequence[Row]) -> Verdict | None:
    """Whether INT8 is worth it on this machine's CPU: faster for sure, close to FP32, depth
    kept."""
    fast = _find(latency, stage="student", backend="ort-cpu", precision="int8", device="cpu",
                 batch=1)
    plain = _find(latency, stage="student", backend="ort-cpu", precision="fp32", device="cpu",
                  batch=1)
    kept = _find(accuracy, features="student_int8_cpu")
    if not (fast and plain and kept):
        return None
    reasons = []
    if fast["vs_fp32"] < MIN_SPEEDUP or fast["vs_fp32_low"] < 1:
        reasons.append("it is not clearly faster")
    if kept["fp32_cosine_mean"] < COSINE:
        reasons.append("its features drift too far")
    if kept.get("delta1_vs_fp32", 0) * 100 < -DROP_POINTS:
        reasons.append("it loses too much depth")
    depth = f", depth {kept['delta1_vs_fp32'] * 100:+.2f} points" if "delta1_vs_fp32" in kept else ""
    advice = f"use FP32 here: {' and '.join(reasons)}" if reasons else "use INT8 here"
    return Verdict(
        "INT8 or not", f"{fast['vs_fp32']:.2f}x",
        f"INT8 takes {fast['latency_ms']:.1f} ms a frame against {plain['latency_ms']:.1f} ms for "
        f"FP32, in {fast['size_mb']:.1f} MB against {plain['size_mb']:.1f} MB; token cosine "
        f"{kept['fp32_cosine_mean']:.4f}{depth}: {advice}.")


def gain_is_real(accuracy: Sequence[Row], metric: str) -> bool:
    """Whether the teacher's gain over semantic only lies on one side of zero with 95 % confidence,
    the good one."""
    teacher = _find(accuracy, features="teacher") or {}
    low, high = teacher.get(f"{metric}_vs_semantic_low"), teacher.get(f"{metric}_vs_semantic_high")
    if low is None or high is None:
        return False
    return low > 0 if metric == "delta1" else high < 0


def _gain(accuracy: Sequence[Row]) -> Verdict | None:
    teacher = _find(accuracy, features="teacher")
    if not teacher or "delta1_vs_semantic" not in teacher:
        return None
    points, degrees = 100 * teacher["delta1_vs_semantic"], teacher["normal_deg_vs_semantic"]
    bounds = [teacher[f"delta1_vs_semantic_{side}"] for side in ("low", "high")]
    sure = f" (95 %: {100 * bounds[0]:+.1f} to {100 * bounds[1]:+.1f})" if None not in bounds else ""
    surely = "" if gain_is_real(
        accuracy, "delta1") else " This interval does not exclude zero: more rooms would tell."
    return Verdict(
        "What the generator adds", f"{points:+.1f} points",
        f"of pixels with depth within 25 % of the truth, against semantic features alone{sure}, on "
        f"{teacher['rooms']} unseen rooms; the error of surface normals changes by "
        f"{degrees:+.1f}°.{surely}"
    )


def _kept(accuracy: Sequence[Row]) -> Verdict | None:
    row = next((r for name in ("student_int8_cpu", "student_int8", "student_fp32")
                if (r := _find(accuracy, features=name))), None)
    if row is None:
        return None
    kind = "FP32" if row["features"] == "student_fp32" else "INT8"
    if row.get("recovery_low") is None:
        cosine = f"{row['cosine_mean']:.3f}"
        return Verdict(
            "What the student keeps", cosine,
            f"is the mean cosine between the {kind} student's tokens and "
            "the teacher's; its share of the gain is only defined where the generator has one for "
            "certain."
        )
    return Verdict("What the student keeps", f"{100 * row['recovery']:.0f} %",
                   f"of the generator's gain is left with the {kind} student in its place (95 %: "
                   f"{100 * row['recovery_low']:.0f} to {100 * row['recovery_high']:.0f} %), "
                   "the lower of depth and normals.")


def _speed(latency: Sequence[Row]) -> Verdict | None:
    students = [
        row for row in latency
        if row["stage"] == "student" and row.get("speedup") and row["batch"] == 1
    ]
    if not students:
        return None
    best = max(students, key=lambda row: row["speedup"])
    teacher = _find(latency, stage="generator", device=best["device"]) or {}
    where = f"{best['threads']} CPU thread{'s' * (best['threads'] > 1)}" if best[
        "device"] == "cpu" else "the GPU"
    return Verdict(
        "What it costs", f"{best['speedup']:.0f}x faster",
        f"a frame takes the {best['precision'].upper()} student {best['frame_ms']:.1f} ms where "
        f"the generator needs {teacher['frame_ms']:.0f} ms, on {where}; the file is "
        f"{best['size_mb']:.1f} MB. The semantic encoder runs beside either.")


def _find(rows: Sequence[Row], **wanted: object) -> Row | None:
    """The first row with these values: of several seeds, the one that was exported."""
    return next(
        (row for row in rows if all(row.get(key) == value for key, value in wanted.items())), None)
