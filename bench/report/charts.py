"""The report's charts: accuracy against latency and size, gain and recovery, what the teacher's
stages cost."""

from collections.abc import Sequence

from bench.report.axes import WIDTH, Scale, bar, chart, labels, line, number, padded, text, whisker
from bench.report.html import Html, el, join
from bench.report.labels import accuracy_label, colour, latency_label
from records.results import Results, Row

LEFT, RIGHT = 44, WIDTH - 14


def scatter(results: Results) -> Html | None:
    """Every timed student and the generator: ms a frame, depth accuracy (or cosine to the teacher),
    size as area."""
    points = _points(results)
    if len(points) < 2:
        return None
    depth = "delta1" in points[0]
    key, unit = ("delta1", 100) if depth else ("cosine_mean", 1)
    base = next(
        (row for row in results.of("accuracy") if row["features"] == "semantic_only" and depth),
        None)
    values = [unit * p[key] for p in points] + ([unit * base[key]] if base else [])
    times = [p["frame_ms"] for p in points]
    x = Scale(min(times) / 1.8, max(times) * 1.8, LEFT, RIGHT, log=True)
    y = Scale(*padded(values, 0.25), 250, 14)
    parts = _grid(x, y, 250)
    parts += [
        text(LEFT, 292, "milliseconds a frame (logarithmic; left is faster)", "muted"),
        text(LEFT, 10,
             "% of pixels with depth within 25 %" if depth else "mean cosine to the teacher",
             "muted")
    ]
    if base:
        parts += [line(LEFT, y(unit * base[key]), RIGHT, y(unit * base[key]), "reference"),
                  text(RIGHT, y(unit * base[key]) + 14, "semantic only", "muted", "end")]
    parts += _front(points, key, unit, x, y)
    largest = max(p["size_mb"] for p in points)
    parts += [
        el("circle", cx=x(p["frame_ms"]), cy=y(unit * p[key]),
           r=6 + 18 * (p["size_mb"] / largest)**0.5, class_=f"bubble {colour(p)}")
        for p in sorted(points, key=lambda p: -p["size_mb"])
    ]
    marks = _apart([(x(p["frame_ms"]), y(unit * p[key])) for p in points])
    parts += [text(a, b + 4.5, str(i), "mark", "middle") for i, (a, b) in enumerate(marks, 1)]
    facts = [
        f"{number(p['frame_ms'])} ms, {f'{unit * p[key]:.1f} %' if depth else f'{p[key]:.3f}'}, "
        f"{number(p['size_mb'])} MB" for p in points
    ]
    said = "; ".join(f"{p['label']}: {fact}" for p, fact in zip(points, facts, strict=True))
    legend = el("ol", *(el("li", el("span", p["label"], class_=f"ink {colour(p)}"), f" {fact}")
                        for p, fact in zip(points, facts, strict=True)), class_="legend")
    return join([chart("Accuracy against latency and size", said, 300, parts), legend])


def recovery(results: Results) -> Html | None:
    """For each student, the share of the generator's gain it keeps, in depth and in normals, with
    95 % intervals."""
    rows = [row for row in results.of("accuracy") if row.get("recovery_delta1_low") is not None
            or row.get("recovery_normal_deg_low") is not None]
    if not rows:
        return None
    ends = [
        row[f"recovery_{m}_{end}"] for row in rows for m in ("delta1", "normal_deg")
        for end in ("low", "high") if row.get(f"recovery_{m}_{end}") is not None
    ]
    x = Scale(max(-0.5, min(0, *ends)), min(1.6, max(1.1, *ends)), 66, RIGHT - 48)
    parts: list[Html] = []
    y = 34
    for row in rows:
        parts.append(text(8, y, accuracy_label(row)))
        for metric, name in (("delta1", "depth"), ("normal_deg", "normals")):
            y += 17
            parts += [*(line(x(at), y - 14, x(at), y + 4, "edge") for at in (0, 1)),
                      text(8, y, name, "muted"), *_share(row, metric, x, y)]
        y += 27
    heads = [
        text(x(0), 11, "semantic only", "muted", "middle"),
        text(x(1), 11, "teacher", "muted", "middle")
    ]
    said = "; ".join(f"{accuracy_label(r)}: {100 * r['recovery']:.0f} %" for r in rows
                     if r.get("recovery") is not None)
    return chart("Share of the generator's gain that each student keeps", said, y - 12,
                 [*heads, *parts])


def gains(results: Results) -> Html | None:
    """Points of depth delta1 over semantic only: teacher, controls, students; with 95 %
    intervals."""
    rows = [row for row in results.of("accuracy") if row.get("delta1_vs_semantic_low") is not None]
    if not rows:
        return None
    ends = [100 * row[f"delta1_vs_semantic_{end}"] for row in rows for end in ("low", "high")]
    x = Scale(*padded([0, *ends], 0.06), 8, RIGHT - 48)
    parts: list[Html] = []
    for i, row in enumerate(rows):
        y, (gain, low, high) = 34 + 38 * i, (100 * row[f"delta1_vs_semantic{end}"]
                                             for end in ("", "_low", "_high"))
        parts += [text(8, y, accuracy_label(row)), bar(x, gain, y + 5, 12, colour(row)),
                  line(x(0), y + 3, x(0), y + 19, "edge"), *whisker(x, low, high, y + 11),
                  text(RIGHT, y + 15, f"{gain:+.1f}", "", "end")]
    bottom = 34 + 38 * len(rows) - 14
    head = text(x(0), 11, "semantic only", "muted", "middle" if x(0) > 60 else "start")
    said = "; ".join(f"{accuracy_label(row)}: {100 * row['delta1_vs_semantic']:+.1f} points"
                     for row in rows)
    return chart("Gain in depth accuracy over semantic features alone", said, bottom + 4,
                 [head, *parts])


def stages(results: Results) -> Html | None:
    """Milliseconds a frame: the teacher's stages, then the students, on one linear scale."""
    rows = [
        row for row in results.of("latency") if row["stage"] != "generator" and row["batch"] == 1
    ]
    devices = {row["device"] for row in rows if row["stage"] != "student"}
    rows = [row for row in rows if row["device"] in devices]
    if not rows:
        return None
    draws = next((row["noise_draws"] for row in results.of("run")), 1)
    x = Scale(0, max(row["frame_ms"] for row in rows) * 1.02, 8, RIGHT - 62)
    parts: list[Html] = []
    for i, row in enumerate(rows):
        y = 16 + 42 * i
        parts += [
            text(8, y, latency_label(row, draws)),
            bar(x, row["frame_ms"], y + 6, 14, colour(row)),
            text(x(row["frame_ms"]) + 6, y + 18, f"{number(row['frame_ms'])} ms")
        ]
    said = "; ".join(f"{latency_label(row, draws)}: {row['frame_ms']:.1f} ms" for row in rows)
    return chart("Milliseconds a frame, stage by stage", said, 42 * len(rows) + 4, parts)


def front(points: Sequence[Row], key: str) -> list[Row]:
    """Those that no other one beats in both time and accuracy, quickest first (the Pareto
    front)."""
    best: list[Row] = []
    for point in sorted(points, key=lambda p: (p["frame_ms"], -p[key])):
        if not best or point[key] > best[-1][key]:
            best.append(point)
    return best


def _apart(places: Sequence[tuple[float, float]], least: float = 15) -> list[tuple[float, float]]:
    """Where the numbers go: on their discs, or above and below where another number is there
    already."""
    taken: list[tuple[float, float]] = []
    for a, b in places:
        steps = (b + sign * k * least for k in range(len(places)) for sign in (-1, 1))
        taken.append(
            next((a, c) for c in steps if all(
                abs(a - x) + 2 * abs(c - y) >= 2 * least - 0.01 or abs(a - x) >= least
                for x, y in taken)))
    return taken


def _front(points: Sequence[Row], key: str, unit: float, x: Scale, y: Scale) -> list[Html]:
    """The front as steps: whatever lies below or right of them is beaten."""
    corners: list[tuple[float, float]] = []
    for point in front(points, key):
        if corners:
            corners.append((x(point["frame_ms"]), corners[-1][1]))
        corners.append((x(point["frame_ms"]), y(unit * point[key])))
    corners = [(corners[0][0], y.start), *corners, (x.end, corners[-1][1])]
    return [el("path", d="M" + " L".join(f"{a:.1f} {b:.1f}" for a, b in corners), class_="front")]


def _points(results: Results) -> list[Row]:
    """Latency rows at batch 1 joined to the accuracy of the very same file (by SHA-256), or to the
    teacher's."""
    scores = {row["sha256"]: row for row in results.of("accuracy") if "sha256" in row}
    own: Row = {"features": "teacher", "cosine_mean": 1.0}
    teacher = next((row for row in results.of("accuracy") if row["features"] == "teacher"), own)
    points = []
    for row in results.of("latency"):
        score = teacher if row["stage"] == "generator" else scores.get(row["sha256"])
        if row["batch"] == 1 and row["stage"] in ("generator", "student") and score:
            known: Row = {key: score[key] for key in ("delta1", "cosine_mean") if key in score}
            points.append({**row, **known, "label": latency_label(row)})
    return points


def _share(row: Row, metric: str, x: Scale, y: float) -> list[Html]:
    value, low, high = (row.get(f"recovery_{metric}{end}") for end in ("", "_low", "_high"))
    if value is None or low is None or high is None:
        return [text(x(0) + 6, y, "undefined: the teacher's gain is not certain", "muted")]
    shown = [max(x.low, min(x.high, v)) for v in (value, low, high)]
    return [bar(x, shown[0], y - 11, 12, colour(row)), *whisker(x, shown[1], shown[2], y - 5),
            text(RIGHT, y - 1, f"{100 * value:.0f} %", "", "end")]


def _grid(x: Scale, y: Scale, bottom: float) -> list[Html]:
    parts = []
    for value, label in zip(y.ticks(), labels(y.ticks()), strict=True):
        parts += [
            line(LEFT, y(value), RIGHT, y(value), "grid"),
            text(LEFT - 6,
                 y(value) + 4.5, label, "muted", "end")
        ]
    for value in x.ticks():
        parts += [line(x(value), 14, x(value), bottom, "grid"),
                  text(x(value), bottom + 18, number(value), "muted", "middle")]
    return parts
