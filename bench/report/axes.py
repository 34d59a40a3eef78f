"""Scales and SVG elements of the charts, in chart units; page.html styles their classes."""
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

WIDTH = 400  # chart units: about a phone's width, so that text stays readable there


@dataclass(frozen=True)
class Scale:
    """Maps [low, high] to [start, end] in chart units; logarithmic where ratios matter."""
    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round values inside the ends: 1 2 5 10 … or evenly spaced."""
        if self.log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            steps = (1, 2, 5) if self.high / self.low < 200 else (1,)
            values = [step * 10.0**power for power in powers for step in steps]
        else:
            step = _round_step((self.high - self.low) / 5)
            first, last = math.ceil(self.low / step), math.floor(self.high / step)
            values = [i * step for i in range(first, last + 1)]
        return [value for value in values if self.low <= value <= self.high]


def padded(values: Sequence[float], share: float = 0.12) -> tuple[float, float]:
    """Ends that leave a margin around the values."""
    low, high = min(values), max(values)
    pad = (high - low) * share or abs(high) * share or 1.0
    return low - pad, high + pad


def chart(title: str, description: str, height: float, parts: Sequence[Markup]) -> Markup:
    """An SVG that scales with its column; a screen reader reads title and description."""
    return Markup(
        '<svg role="img" viewBox="0 0 {} {}" aria-label="{}" xmlns="http://www.w3.org/2000/svg">'
        "<title>{}</title><desc>{}</desc>{}</svg>").format(
            WIDTH, f"{height:g}", f"{title}. {description}", typeset(title), typeset(description),
            Markup("").join(parts))


def text(x: float, y: float, words: str, class_: str = "", anchor: str = "start") -> Markup:
    return Markup('<text x="{}" y="{}" class="{}" text-anchor="{}">{}</text>').format(
        _unit(x), _unit(y), class_, anchor, typeset(words))


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    return Markup('<line x1="{}" y1="{}" x2="{}" y2="{}" class="{}"/>').format(
        _unit(x1), _unit(y1), _unit(x2), _unit(y2), class_)


def rect(x: float, y: float, width: float, height: float, radius: float, class_: str) -> Markup:
    return Markup('<rect x="{}" y="{}" width="{}" height="{}" rx="{}" class="{}"/>').format(
        _unit(x), _unit(y), _unit(width), _unit(height), _unit(radius), class_)


def circle(x: float, y: float, radius: float, class_: str) -> Markup:
    return Markup('<circle cx="{}" cy="{}" r="{}" class="{}"/>').format(
        _unit(x), _unit(y), _unit(radius), class_)


def path(points: Sequence[tuple[float, float]], class_: str) -> Markup:
    corners = " L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return Markup('<path d="M{}" class="{}"/>').format(corners, class_)


def bar(x: Scale, value: float, y: float, height: float, class_: str) -> Markup:
    """From zero to the value."""
    left, right = sorted((x(0), x(value)))
    return rect(left, y, max(right - left, 0.5), height, 2, f"fill {class_}")


def whisker(x: Scale, low: float, high: float, y: float) -> list[Markup]:
    """An interval: a line with two ends."""
    left, right = x(low), x(high)
    ends = [line(end, y - 4, end, y + 4, "whisker") for end in (left, right)]
    return [line(left, y, right, y, "whisker"), *ends]


def number(value: float) -> str:
    """Two significant digits at least: 0.25, 3.1, 42, 1200."""
    digits = max(0, 1 - math.floor(math.log10(abs(value)))) if value else 0
    shown = f"{value:.{min(digits, 4)}f}"
    return shown.rstrip("0").rstrip(".") if "." in shown else shown


def tick_labels(ticks: Sequence[float]) -> list[str]:
    """With as many decimals as tell neighbours apart: 53.2, 53.4, not 53, 53."""
    gaps = [b - a for a, b in pairwise(ticks)]
    if not gaps:
        return [number(value) for value in ticks]
    digits = max(0, -math.floor(math.log10(min(gaps)) + 1e-9))
    return [f"{value:.{digits}f}" for value in ticks]


def typeset(words: str) -> str:
    """A number keeps its unit on its line, and a true minus."""
    words = re.sub(r"(\d) (%|ms|MB|GB|M|m|px|points)(?!\w)", "\\1\u00a0\\2", words)
    return re.sub(r"(?<![\w-])-(?=\d)", "\u2212", words)


def _unit(value: float) -> str:
    """A length in chart units."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _round_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= rough)
