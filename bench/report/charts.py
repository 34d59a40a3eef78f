"""The report's charts: accuracy against latency and size, gain, recovery, and stage latencies."""
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from bench.report.axes import (
    WIDTH,
    Scale,
    bar,
    chart,
    circle,
    line,
    number,
    padded,
    path,
    text,
    tick_labels,
    whisker,
)
from bench.report.labels import accuracy_label, colour, latency_label
from records.results import Results, Row

LEFT, RIGHT, BOTTOM = 44, WIDTH - 14, 250


@dataclass(frozen=True)
class Point:
    """A timed student or generator in the scatter chart."""
    label: str
    colour: str
    ms: float     # a frame
    score: float  # in the unit of the axis
    size_mb: float
    facts: str    # for the legend


def scatter(results: Results) -> tuple[Markup, list[Point]] | None:
    """ms a frame against depth accuracy (or cosine to the teacher), size as area; and its legend.

    None for fewer than two points.
    """
    points, depth = _points(results)
    if len(points) < 2:
        return None
    semantic = next((100 * row["delta1"] for row in results.of("accuracy")
                     if depth and row["features"] == "semantic_only"), None)
    scores = [point.score for point in points] + ([] if semantic is None else [semantic])
    times = [point.ms for point in points]
    x = Scale(min(times) / 1.8, max(times) * 1.8, LEFT, RIGHT, log=True)
    y = Scale(*padded(scores, 0.25), BOTTOM, 14)
    axis = "% of pixels with depth within 25 %" if depth else "mean cosine to the teacher"
    parts = _grid(x, y)
    parts += [text(LEFT, 292, "milliseconds a frame (logarithmic; left is faster)", "muted"),
              text(LEFT, 10, axis, "muted")]
    if semantic is not None:
        parts += [line(LEFT, y(semantic), RIGHT, y(semantic), "reference"),
                  text(RIGHT, y(semantic) + 14, "semantic only", "muted", "end")]
    parts.append(_front_line(points, x, y))
    largest = max(point.size_mb for point in points)
    for point in sorted(points, key=lambda point: -point.size_mb):
        radius = 6 + 18 * (point.size_mb / largest)**0.5
        parts.append(circle(x(point.ms), y(point.score), radius, f"bubble {point.colour}"))
    marks = _spread_marks([(x(point.ms), y(point.score)) for point in points])
    parts += [text(a, b + 4.5, str(i), "mark", "middle") for i, (a, b) in enumerate(marks, 1)]
    description = "; ".join(f"{point.label}: {point.facts}" for point in points)
    return chart("Accuracy against latency and size", description, 300, parts), points


def recovery(results: Results) -> Markup | None:
    """The share of the generator's gain that each student keeps, with 95 % intervals."""
    rows = [row for row in results.of("accuracy") if row.get("recovery_delta1_low") is not None
            or row.get("recovery_normal_deg_low") is not None]
    if not rows:
        return None
    fields = [f"recovery_{metric}_{end}" for metric in ("delta1", "normal_deg")
              for end in ("low", "high")]
    ends = [row[field] for row in rows for field in fields if row.get(field) is not None]
    x = Scale(max(-0.5, min(0, *ends)), min(1.6, max(1.1, *ends)), 66, RIGHT - 48)
    parts = [text(x(0), 11, "semantic only", "muted", "middle"),
             text(x(1), 11, "teacher", "muted", "middle")]
    y = 34
    for row in rows:
        parts.append(text(8, y, accuracy_label(row)))
        for metric, name in (("delta1", "depth"), ("normal_deg", "normals")):
            y += 17
            parts += [*(line(x(at), y - 14, x(at), y + 4, "edge") for at in (0, 1)),
                      text(8, y, name, "muted"), *_share(row, metric, x, y)]
        y += 27
    shares = "; ".join(f"{accuracy_label(row)}: {100 * row['recovery']:.0f} %" for row in rows
                       if row.get("recovery") is not None)
    return chart("Share of the generator's gain that each student keeps", shares, y - 12, parts)


def gains(results: Results) -> Markup | None:
    """Points of depth delta1 over semantic only, with 95 % intervals."""
    rows = [row for row in results.of("accuracy") if row.get("delta1_vs_semantic_low") is not None]
    if not rows:
        return None
    ends = [100 * row[f"delta1_vs_semantic_{end}"] for row in rows for end in ("low", "high")]
    x = Scale(*padded([0, *ends], 0.06), 8, RIGHT - 48)
    parts = [text(x(0), 11, "semantic only", "muted", "middle" if x(0) > 60 else "start")]
    for i, row in enumerate(rows):
        y = 34 + 38 * i
        gain, low, high = (100 * row[f"delta1_vs_semantic{end}"] for end in ("", "_low", "_high"))
        parts += [text(8, y, accuracy_label(row)), bar(x, gain, y + 5, 12, colour(row)),
                  line(x(0), y + 3, x(0), y + 19, "edge"), *whisker(x, low, high, y + 11),
                  text(RIGHT, y + 15, f"{gain:+.1f}", "", "end")]
    description = "; ".join(f"{accuracy_label(row)}: {100 * row['delta1_vs_semantic']:+.1f} points"
                            for row in rows)
    return chart("Gain in depth accuracy over semantic features alone", description,
                 34 + 38 * len(rows) - 10, parts)


def stages(results: Results) -> Markup | None:
    """Milliseconds a frame: the teacher's stages, then the students, on one linear scale."""
    rows = [row for row in results.of("latency")
            if row["stage"] != "generator" and row["batch"] == 1]
    devices = {row["device"] for row in rows if row["stage"] != "student"}
    rows = [row for row in rows if row["device"] in devices]
    if not rows:
        return None
    draws = next((row["noise_draws"] for row in results.of("run")), 1)
    x = Scale(0, max(row["frame_ms"] for row in rows) * 1.02, 8, RIGHT - 62)
    parts: list[Markup] = []
    for i, row in enumerate(rows):
        y, ms = 16 + 42 * i, row["frame_ms"]
        parts += [text(8, y, latency_label(row, draws)), bar(x, ms, y + 6, 14, colour(row)),
                  text(x(ms) + 6, y + 18, f"{number(ms)} ms")]
    description = "; ".join(f"{latency_label(row, draws)}: {row['frame_ms']:.1f} ms"
                            for row in rows)
    return chart("Milliseconds a frame, stage by stage", description, 42 * len(rows) + 4, parts)


def front(points: Sequence[Point]) -> list[Point]:
    """The Pareto front: points that no other one beats in both time and score, fastest first."""
    best: list[Point] = []
    for point in sorted(points, key=lambda point: (point.ms, -point.score)):
        if not best or point.score > best[-1].score:
            best.append(point)
    return best


def _points(results: Results) -> tuple[list[Point], bool]:
    """Latency rows at batch 1 joined to the accuracy of the same file (by SHA-256) or the teacher.

    Scores are percent of depth delta1, or cosines where the first point has no depth (False).
    """
    scores = {row["sha256"]: row for row in results.of("accuracy") if "sha256" in row}
    perfect: Row = {"features": "teacher", "cosine_mean": 1.0}
    teacher = next((row for row in results.of("accuracy") if row["features"] == "teacher"), perfect)
    pairs = []
    for row in results.of("latency"):
        score = teacher if row["stage"] == "generator" else scores.get(row["sha256"])
        if row["batch"] == 1 and row["stage"] in ("generator", "student") and score:
            pairs.append((row, score))
    depth = bool(pairs) and "delta1" in pairs[0][1]
    points = []
    for row, score in pairs:
        value = 100 * score["delta1"] if depth else score["cosine_mean"]
        shown = f"{value:.1f} %" if depth else f"{value:.3f}"
        facts = f"{number(row['frame_ms'])} ms, {shown}, {number(row['size_mb'])} MB"
        points.append(Point(latency_label(row), colour(row), row["frame_ms"], value,
                            row["size_mb"], facts))
    return points, depth


def _grid(x: Scale, y: Scale) -> list[Markup]:
    parts = []
    for value, label in zip(y.ticks(), tick_labels(y.ticks()), strict=True):
        parts += [line(LEFT, y(value), RIGHT, y(value), "grid"),
                  text(LEFT - 6, y(value) + 4.5, label, "muted", "end")]
    for value in x.ticks():
        parts += [line(x(value), 14, x(value), BOTTOM, "grid"),
                  text(x(value), BOTTOM + 18, number(value), "muted", "middle")]
    return parts


def _front_line(points: Sequence[Point], x: Scale, y: Scale) -> Markup:
    """The front as steps: what lies below or right of them is beaten."""
    corners: list[tuple[float, float]] = []
    for point in front(points):
        if corners:
            corners.append((x(point.ms), corners[-1][1]))
        corners.append((x(point.ms), y(point.score)))
    return path([(corners[0][0], y.start), *corners, (x.end, corners[-1][1])], "front")


def _spread_marks(places: Sequence[tuple[float, float]],
                  least: float = 15) -> list[tuple[float, float]]:
    """Where the numbers go: on their discs, or above or below where another number is there."""
    taken: list[tuple[float, float]] = []

    def free(a: float, b: float) -> bool:
        return all(abs(a - x) + 2 * abs(b - y) >= 2 * least - 0.01 or abs(a - x) >= least
                   for x, y in taken)

    for a, b in places:
        steps = (b + sign * k * least for k in range(len(places)) for sign in (-1, 1))
        taken.append(next((a, step) for step in steps if free(a, step)))
    return taken


def _share(row: Row, metric: str, x: Scale, y: float) -> list[Markup]:
    value, low, high = (row.get(f"recovery_{metric}{end}") for end in ("", "_low", "_high"))
    if value is None or low is None or high is None:
        return [text(x(0) + 6, y, "undefined: the teacher's gain is not certain", "muted")]
    value_at, low_at, high_at = (max(x.low, min(x.high, v)) for v in (value, low, high))
    return [bar(x, value_at, y - 11, 12, colour(row)), *whisker(x, low_at, high_at, y - 5),
            text(RIGHT, y - 1, f"{100 * value:.0f} %", "", "end")]
