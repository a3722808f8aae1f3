"""The drawing of `resshift schedule --plot`: sqrt(eta_t) of given settings against the trained curve (the paper's fig. 3h)."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image, ImageDraw

from ..lettering import font
from ..schedule import ShiftSchedule

SIZE = (960, 620)
FINER = 3  # everything is drawn this much larger and scaled down, which smooths every edge
LEFT, TOP, RIGHT, BOTTOM = 92, 64, 28, 84  # margins of the axes
PAPER, INK, FAINT, GRID = (255, 255, 255), (34, 34, 38), (104, 104, 112), (228, 228, 232)
TRAINED, ASKED = (120, 130, 148), (214, 84, 22)
MARKED_STEPS = 60  # more steps than this are a line without marks


@dataclass(frozen=True)
class _Curve:
    """One schedule as it is drawn."""

    schedule: ShiftSchedule
    label: str
    color: tuple[int, int, int]
    hollow: bool  # marks

    def points(self, by_step: bool) -> list[tuple[float, float]]:
        """(x, sqrt(eta_t)) for t = 1..T; x = t, or (t - 1) / (T - 1) where lengths differ (a single step is at 1)."""
        values, steps = self.schedule.sqrt_eta, self.schedule.steps
        if by_step:
            return [(t, float(values[t - 1])) for t in range(1, steps + 1)]
        return [((t - 1) / (steps - 1) if steps > 1 else 1.0, float(values[t - 1])) for t in range(1, steps + 1)]


class _Axes:
    """Maps values to fine pixels, and draws in them."""

    def __init__(self, first: float, last: float):
        self.image = Image.new("RGB", (SIZE[0] * FINER, SIZE[1] * FINER), PAPER)
        self.draw = ImageDraw.Draw(self.image)
        self.first, self.last = first, last

    def place(self, x: float, y: float) -> tuple[float, float]:
        share = (x - self.first) / (self.last - self.first)
        across = LEFT + share * (SIZE[0] - LEFT - RIGHT)
        return across * FINER, (SIZE[1] - BOTTOM - y * (SIZE[1] - TOP - BOTTOM)) * FINER

    def line(self, points, color, width: float) -> None:
        """Width in pixels of the finished picture."""
        self.draw.line([self.place(*point) for point in points], fill=color, width=round(width * FINER), joint="curve")

    def mark(self, point: tuple[float, float], curve: _Curve) -> None:
        """A dot at a place in fine pixels; hollow or filled."""
        self.dot(point, 5.5, curve.color)
        if curve.hollow:
            self.dot(point, 3.2, PAPER)

    def dot(self, point: tuple[float, float], radius: float, color) -> None:
        x, y = point
        self.draw.ellipse((x - radius * FINER, y - radius * FINER, x + radius * FINER, y + radius * FINER), fill=color)

    def text(self, x: float, y: float, text: str, size: int, color=INK, anchor: str = "la") -> None:
        """x, y in pixels of the finished picture."""
        self.draw.text((x * FINER, y * FINER), text, fill=color, font=font(size * FINER), anchor=anchor)


def plot_schedule(trained: ShiftSchedule, asked: ShiftSchedule) -> Image.Image:
    """RGB picture of both curves; of one where nothing is changed."""
    same = (trained.steps, trained.p) == (asked.steps, asked.p)
    curves = [_Curve(trained, f"trained: {_settings(trained)}", TRAINED, True)]
    if same and trained.kappa == asked.kappa:
        curves = [_Curve(trained, f"as trained: {_settings(trained)}", ASKED, False)]
    else:
        curves.append(_Curve(asked, f"asked: {_settings(asked)}", ASKED, False))
    by_step = trained.steps == asked.steps and trained.steps > 1
    axes = _Axes(1, trained.steps) if by_step else _Axes(0, 1)
    _draw_frame(axes, by_step)
    for curve in curves:
        _draw_curve(axes, curve, by_step)
    _draw_legend(axes, curves, by_step)
    return axes.image.resize(SIZE, Image.Resampling.LANCZOS)


def _settings(schedule: ShiftSchedule) -> str:
    return f"T = {schedule.steps}, kappa = {schedule.kappa:g}, p = {schedule.p:g}"


def _draw_frame(axes: _Axes, by_step: bool) -> None:
    """Grid, ticks and words."""
    axes.text(LEFT, 20, "How far the picture is shifted towards the input", 19)
    for tenth in range(0, 11, 2):
        y = tenth / 10
        axes.line([(axes.first, y), (axes.last, y)], GRID, 1)
        axes.text(LEFT - 12, axes.place(0, y)[1] / FINER, f"{y:.1f}", 15, FAINT, "rm")
    for x in _ticks(axes.last) if by_step else (0, 0.25, 0.5, 0.75, 1):
        axes.line([(x, 0), (x, 1)], GRID, 1)
        axes.text(axes.place(x, 0)[0] / FINER, SIZE[1] - BOTTOM + 10, f"{x:g}", 15, FAINT, "ma")
    axes.line([(axes.first, 1), (axes.first, 0), (axes.last, 0)], INK, 1.5)
    word = "step t" if by_step else "(t - 1) / (T - 1)"
    middle = (LEFT + SIZE[0] - RIGHT) / 2
    axes.text(middle, SIZE[1] - 42, word, 17, INK, "ma")
    axes.text(LEFT, SIZE[1] - 40, "result", 15, FAINT)
    axes.text(SIZE[0] - RIGHT, SIZE[1] - 40, "input with noise", 15, FAINT, "ra")
    _draw_upright(axes)


def _ticks(last: float) -> list[int]:
    """Round numbers between 1 and `last`, about a dozen, and these two."""
    stride = next((nice for nice in (1, 2, 5, 10, 20, 50, 100, 200, 500) if nice >= last / 15), 1000)
    between = [t for t in range(stride, int(last), stride) if t - 1 >= stride / 2 and last - t >= stride / 2]
    return [1, *between, int(last)]


def _draw_upright(axes: _Axes) -> None:
    """sqrt(eta) with a small t, along the vertical axis."""
    large, small = font(18 * FINER), font(12 * FINER)
    words = (("sqrt(eta", large, 0), ("t", small, 9), (")", large, 0))
    label = Image.new("RGB", (120 * FINER, 34 * FINER), PAPER)
    draw, x = ImageDraw.Draw(label), 0.0
    for word, letters, drop in words:
        draw.text((x, (4 + drop) * FINER), word, fill=INK, font=letters)
        x += letters.getlength(word) + FINER
    upright = label.crop((0, 0, round(x), label.height)).rotate(90, expand=True)
    middle = (TOP + SIZE[1] - BOTTOM) / 2 * FINER
    axes.image.paste(upright, (round(14 * FINER), round(middle - upright.height / 2)))


def _draw_curve(axes: _Axes, curve: _Curve, by_step: bool) -> None:
    points = curve.points(by_step)
    if len(points) > 1:
        axes.line(points, curve.color, 2.6)
    if len(points) <= MARKED_STEPS:
        for point in points:
            axes.mark(axes.place(*point), curve)


def _draw_legend(axes: _Axes, curves: list[_Curve], by_step: bool) -> None:
    """In the upper left corner, or in the lower right one if a curve passes through the upper left."""
    width = max(font(16 * FINER).getlength(curve.label) for curve in curves) / FINER + 76
    height = 12 + 28 * len(curves)
    left, top = LEFT + 16, TOP + 14
    within = ((x, y) for curve in curves for x, y in _fine(axes, curve.points(by_step)))
    if any(x < (left + width + 8) * FINER and y < (top + height + 8) * FINER for x, y in within):
        left, top = SIZE[0] - RIGHT - width - 16, SIZE[1] - BOTTOM - height - 14
    box = [value * FINER for value in (left, top, left + width, top + height)]
    axes.draw.rounded_rectangle(box, radius=6 * FINER, fill=PAPER, outline=GRID, width=FINER)
    for row, curve in enumerate(curves):
        y = top + 20 + 28 * row
        ends = ((left + 14) * FINER, y * FINER, (left + 50) * FINER, y * FINER)
        axes.draw.line(ends, fill=curve.color, width=round(2.6 * FINER))
        axes.mark(((left + 32) * FINER, y * FINER), curve)
        axes.text(left + 60, y, curve.label, 16, INK, "lm")


def _fine(axes: _Axes, points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Places of a curve's line in fine pixels, close enough together that it cannot jump over a corner."""
    dense = []
    for (x0, y0), (x1, y1) in zip(points, points[1:]):
        dense += [axes.place(x0 + (x1 - x0) * i / 16, y0 + (y1 - y0) * i / 16) for i in range(17)]
    return dense
