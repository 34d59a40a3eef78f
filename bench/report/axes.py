"""Scales and the pieces of a chart: SVG elements placed in chart units, styled by the page
(bench/page.html)."""
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from bench.report.html import Html, el

WIDTH = 400  # chart units: about a phone's width, so that text stays readable there


@dataclass(frozen=True)
class Scale:
    """A value's place between two ends in chart units; logarithmic where ratios are what counts."""
    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = (math.log(x) for x in (self.low, self.high, value)) if self.log else (
            self.low, self.high, value)
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round values inside the ends: 1 2 5 10 … or evenly spaced."""
        if self.log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            steps = (1, 2, 5) if self.high / self.low < 200 else (1,)
            found = [step * 10.0**power for power in powers for step in steps]
        else:
            step = _round_step((self.high - self.low) / 5)
            found = [
                i * step for i in range(math.ceil(self.low / step),
                                        math.floor(self.high / step) + 1)
            ]
        return [value for value in found if self.low <= value <= self.high]


def padded(values: Sequence[float], share: float = 0.12) -> tuple[float, float]:
    """Ends that leave room around the values."""
    low, high = min(values), max(values)
    pad = (high - low) * share or abs(high) * share or 1.0
    return low - pad, high + pad


def chart(title: str, description: str, height: float, parts: Sequence[Html]) -> Html:
    """An SVG that scales with its column. Title and description are what a screen reader says."""
    return el("svg", el("title", title), el("desc", description), *parts, role="img",
              viewBox=f"0 0 {WIDTH} {height:g}", aria_label=f"{title}. {description}",
              xmlns="http://www.w3.org/2000/svg")


def text(x: float, y: float, words: str, class_: str = "", anchor: str = "start") -> Html:
    return el("text", words, x=x, y=y, class_=class_ or None, text_anchor=anchor)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Html:
    return el("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def bar(x: Scale, value: float, y: float, height: float, class_: str) -> Html:
    """From zero to the value."""
    left, right = sorted((x(0), x(value)))
    return el("rect", x=left, y=y, width=max(right - left, 0.5), height=height, rx=2,
              class_=f"fill {class_}")


def whisker(x: Scale, low: float, high: float, y: float) -> list[Html]:
    """An interval: a line with two ends."""
    left, right = x(low), x(high)
    return [
        line(left, y, right, y, "whisker"),
        *(line(end, y - 4, end, y + 4, "whisker") for end in (left, right))
    ]


def number(value: float) -> str:
    """As few digits as tell it: 0.25, 3.1, 42, 1200."""
    digits = max(0, 1 - math.floor(math.log10(abs(value)))) if value else 0
    shown = f"{value:.{min(digits, 4)}f}"
    return shown.rstrip("0").rstrip(".") if "." in shown else shown


def labels(ticks: Sequence[float]) -> list[str]:
    """Tick values with as many decimals as tell neighbours apart: 53.2, 53.4, not 53, 53."""
    gaps = [b - a for a, b in pairwise(ticks)]
    digits = max(0, -math.floor(math.log10(min(gaps)) + 1e-9)) if gaps else 0
    return [f"{value:.{digits}f}"
            for value in ticks] if gaps else [number(value) for value in ticks]


def _round_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= rough)
