"""The arrangement of a rendered frame: maps or curves on the left, readings of time and safety on the right. Needs pygame."""

from __future__ import annotations

import math

import numpy as np
import pygame
from numpy.typing import NDArray

from mf_taxi_env.envs.canvas import GROUND, INK, LARGE, MEDIUM, MUTED, PAPER, RULE, Canvas, Colour, shortened
from mf_taxi_env.envs.viewer import Frame
from mf_taxi_env.grid import Grid
from mf_taxi_env.scenarios.city import box_km
from mf_taxi_env.scenarios.scenario import validated_box

Array = NDArray[np.floating]

#: Blue and vermilion of Okabe and Ito, told apart with any colour vision; signs and words say the same.
SAFE: Colour = (0, 114, 178)
UNSAFE: Colour = (213, 94, 0)
FLEET: Colour = (120, 183, 178)
STEPS: Colour = (49, 104, 142)

#: Where the parts stand.
HEAD = pygame.Rect(24, 14, 912, 40)
STAGE = pygame.Rect(24, 74, 680, 442)
SIDE = pygame.Rect(736, 74, 200, 442)

#: Where peaks drown the rest, the colours end at this percentile of the cells, which is so if the peak is this much higher.
PERCENTILE, PEAK_RATIO = 99.5, 2.0
#: At most so many arrows along an axis, and so many pixels long; shorter than the last they are not drawn.
ARROWS, LONGEST, SHORTEST = 13, 44.0, 4.0
#: The gauge is linear below this margin and logarithmic above, so that 0.1 lies half way from 0 to its end at 1.
GAUGE_LINEAR = 0.02


def paint(canvas: Canvas, frame: Frame, grid: Grid, title: str) -> None:
    """Draw ``frame`` over whatever was on the canvas."""
    canvas.clear()
    canvas.text(shortened(title, HEAD.width, LARGE), (HEAD.x, HEAD.centery), size=LARGE)
    canvas.line(HEAD.bottomleft, HEAD.bottomright)
    if grid.dimension == 2:
        _maps(canvas, frame, grid)
    else:
        _curves(canvas, frame, grid)
    _time(canvas, frame, pygame.Rect(SIDE.x, SIDE.y, SIDE.width, 40))
    _safety(canvas, frame, pygame.Rect(SIDE.x, SIDE.y + 54, SIDE.width, 270))
    _figures(canvas, frame, pygame.Rect(SIDE.x, SIDE.bottom - 84, SIDE.width, 84))


# Maps of a city


def _maps(canvas: Canvas, frame: Frame, grid: Grid) -> None:
    panels = [("Fleet", frame.mu)] if frame.target is None else [("Demand", frame.target), ("Fleet", frame.mu)]
    multiples = [np.asarray(values, np.float64).reshape(grid.cells, grid.cells) * grid.size for _, values in panels]
    top, peak = _scale(np.stack(multiples))
    across, up = (1.0, 1.0) if frame.box is None else box_km(validated_box(frame.box))
    slot = 328
    pixels = slot / max(across, up)
    width, height = round(across * pixels), round(up * pixels)
    y = STAGE.y + 24 + (slot - height) // 2
    # Two maps reach the edges of the stage unless that would tear them apart.
    gap = min(STAGE.width - 2 * width, 80)
    x = STAGE.centerx - (len(panels) * (width + gap) - gap) // 2
    for i, ((name, _), values) in enumerate(zip(panels, multiples, strict=True)):
        area = pygame.Rect(x + i * (width + gap), y, width, height)
        canvas.text(name, (area.x, y - 16), size=MEDIUM)
        canvas.cells(area, np.sqrt(values.clip(min=0) / top))
        canvas.outline(area)
        if i == 0 and frame.box is not None:
            _distances(canvas, area, across)
    unit = "side" if frame.box is None else "km"
    _moves(canvas, frame, grid, area, (across, up), unit)
    _legend(canvas, pygame.Rect(STAGE.x, STAGE.bottom - 46, STAGE.width, 12), top, peak)


def _scale(multiples: Array) -> tuple[float, float]:
    """A round end of the colours that changes rarely from frame to frame, and the highest value."""
    peak, percentile = float(multiples.max()), float(np.percentile(multiples, PERCENTILE))
    wanted = max(percentile if peak > PEAK_RATIO * percentile else peak, 2.0)
    return _round_up(wanted), peak


def _moves(canvas: Canvas, frame: Frame, grid: Grid, area: pygame.Rect, size: tuple[float, float], unit: str) -> None:
    """Arrows over the map of the fleet, one for each block of cells, and their key below."""
    row = area.bottom + 17
    if frame.actions is None:
        canvas.text("no move yet", (area.right, row), colour=MUTED, anchor="midright")
        return
    block = math.ceil(grid.cells / ARROWS)
    starts = np.arange(0, grid.cells, block)
    middles = (starts + np.append(starts[1:], grid.cells)) / (2 * grid.cells)
    x, y = np.meshgrid(area.x + middles * area.width, area.bottom - middles * area.height, indexing="ij")
    # Where no taxis are, the plain mean says what they would do.
    weights = np.asarray(frame.mu, np.float64).clip(min=0)[:, None] + 1e-3 / grid.size
    sums = _blocks(
        (weights * np.append(frame.actions, np.ones_like(weights), axis=1)).reshape(grid.cells, grid.cells, 3), starts
    )
    moves = (sums[..., :2] / sums[..., 2:] * [area.width, -area.height]).reshape(-1, 2)
    tails = np.stack([x, y], axis=-1).reshape(-1, 2)
    lengths = np.linalg.norm(moves, axis=1)
    longest = min(LONGEST, 1.2 * area.width * block / grid.cells)
    if lengths.max() < 0.5:
        canvas.text("no move to be seen", (area.right, row), colour=MUTED, anchor="midright")
        return
    zoom = longest / float(lengths.max())
    seen = lengths * zoom >= SHORTEST
    canvas.arrows(area, tails[seen], moves[seen] * zoom)
    per_pixel = size[0] / area.width / zoom
    key = _round_down(longest * per_pixel)
    label = canvas.text(f"last move, {key:g} {unit}", (area.right, row), colour=MUTED, anchor="midright")
    length = key / per_pixel
    key_area = pygame.Rect(label.left - 60, row - 8, 54, 16)
    canvas.arrows(key_area, np.array([[label.left - 8 - length, row]]), np.array([[length, 0.0]]), INK)


def _blocks(values: Array, starts: NDArray[np.intp]) -> Array:
    """Sums over blocks of cells ``[k, k, n]`` that begin at ``starts`` along both axes."""
    sums: Array = np.add.reduceat(np.add.reduceat(values, starts, axis=0), starts, axis=1)
    return sums


def _distances(canvas: Canvas, area: pygame.Rect, across: float) -> None:
    """A scale bar below a map, and where north is."""
    row, kilometres = area.bottom + 17, _round_down(across / 4)
    end = area.x + kilometres * area.width / across
    canvas.line((area.x, row), (end, row), INK, width=2)
    for x in (area.x, end):
        canvas.line((x, row - 4), (x, row + 4), INK)
    canvas.text(f"{kilometres:g} km", (end + 8, row), colour=MUTED)
    north = pygame.Rect(area.right - 32, row - 9, 16, 18)
    canvas.arrows(north, np.array([[north.centerx, north.bottom - 1]]), np.array([[0.0, -16.0]]), INK)
    canvas.text("N", (area.right, row), colour=MUTED, anchor="midright")


def _legend(canvas: Canvas, area: pygame.Rect, top: float, peak: float) -> None:
    canvas.cells(area, np.linspace(0, 1, 256)[:, None])
    canvas.outline(area)
    last = -1.0
    for tick in (0.0, *(digit * 10.0**power for power in range(-1, 5) for digit in (1, 2, 5)), top):
        place = math.sqrt(tick / top)
        if place > 1 or place - last < 0.06 or (tick != top and 1 - place < 0.06):
            continue
        last, x = place, area.x + place * (area.width - 1)
        canvas.line((x, area.bottom), (x, area.bottom + 5), MUTED)
        canvas.text(f"{tick:g}", (min(max(x, area.x + 5), area.right - 9), area.bottom + 14), colour=MUTED, anchor="center")
    beyond = f"; highest {peak:.{max(0, 2 - int(math.log10(peak)))}f}" if peak > top else ""
    label = f"multiples of a uniform fleet, square-root scale{beyond}"
    canvas.text(label, (area.centerx, area.bottom + 31), colour=MUTED, anchor="center")


# Curves on an interval


def _curves(canvas: Canvas, frame: Frame, grid: Grid) -> None:
    left = STAGE.x + 40
    upper = pygame.Rect(left, STAGE.y + 28, STAGE.right - left, 232)
    lower = pygame.Rect(left, upper.bottom + 48, upper.width, 100)
    mu = np.asarray(frame.mu, np.float64) * grid.size
    target = None if frame.target is None else np.asarray(frame.target, np.float64) * grid.size
    top = _round_up(max(float(np.max([mu, mu if target is None else target])) * 1.05, 1.0))
    canvas.text("Distribution, multiples of uniform", (left, upper.y - 18), size=MEDIUM)
    edges = _axes(canvas, upper, grid, [0.0, top / 2, top])
    canvas.steps(edges, upper.bottom - mu / top * upper.height, FLEET, base=upper.bottom)
    if target is not None:
        canvas.steps(edges, upper.bottom - target / top * upper.height, INK)
        text = canvas.text("target", (upper.right, upper.y - 18), colour=MUTED, anchor="midright")
        canvas.line((text.left - 30, text.centery), (text.left - 8, text.centery), INK, width=2)
    canvas.text("Last action, positive to the right", (left, lower.y - 18), size=MEDIUM)
    if frame.actions is None:
        _axes(canvas, lower, grid, [0.0])
        canvas.text("no action yet", (lower.right, lower.y - 18), colour=MUTED, anchor="midright")
    else:
        moves = np.asarray(frame.actions, np.float64)[:, 0]
        top = _round_up(max(float(np.abs(moves).max()), 0.01))
        _axes(canvas, lower, grid, [-top, 0.0, top])
        canvas.steps(edges, lower.centery - moves / top * (lower.height / 2), STEPS)
    for tick in (0, 0.25, 0.5, 0.75, 1):
        x = lower.x + tick * (lower.width - 1)
        canvas.line((x, lower.bottom), (x, lower.bottom + 5), MUTED)
        canvas.text(f"{tick:g}", (min(x, lower.right - 4), lower.bottom + 15), colour=MUTED, anchor="center")


def _axes(canvas: Canvas, area: pygame.Rect, grid: Grid, ticks: list[float]) -> Array:
    """Ground, frame and horizontal lines at the ticks, evenly spread over the height; returns the edges of the cells."""
    canvas.fill(area, GROUND)
    canvas.outline(area)
    places = np.linspace(area.bottom - 1, area.y, len(ticks)) if len(ticks) > 1 else [area.centery]
    for tick, y in zip(ticks, places, strict=True):
        canvas.line((area.x, y), (area.right - 1, y), RULE)
        canvas.text(_signed(f"{tick:g}"), (area.x - 8, y), colour=MUTED, anchor="midright")
    return np.linspace(area.x, area.right - 1, grid.cells + 1)


# Readings


def _time(canvas: Canvas, frame: Frame, area: pygame.Rect) -> None:
    canvas.text("Step", (area.x, area.y + 8), size=MEDIUM)
    canvas.text(f"{frame.t} of {frame.horizon}", (area.right, area.y + 8), size=MEDIUM, anchor="midright")
    _bar(canvas, pygame.Rect(area.x, area.y + 24, area.width, 8), frame.t / max(frame.horizon, 1), INK)


def _safety(canvas: Canvas, frame: Frame, area: pygame.Rect) -> None:
    canvas.text("Worst margin", (area.x, area.y + 8), size=MEDIUM)
    badge = pygame.Rect(area.x, area.y + 24, area.width, 36)
    if frame.margin == math.inf:
        canvas.fill(badge, GROUND, radius=3)
        canvas.text("No constraint", badge.center, size=MEDIUM, colour=MUTED, anchor="center")
        return
    # A margin that is no number is not safe.
    safe = frame.margin >= 0
    colour = SAFE if safe else UNSAFE
    canvas.fill(badge, colour, radius=3)
    _sign(canvas, (badge.x + 22, badge.centery), safe)
    canvas.text("SAFE" if safe else "VIOLATED", (badge.x + 42, badge.centery), size=MEDIUM, colour=PAPER)
    canvas.text(_margin(frame.margin), (badge.right - 12, badge.centery), size=MEDIUM, colour=PAPER, anchor="midright")
    _gauge(canvas, pygame.Rect(area.x, area.y + 82, area.width, 12), frame.margin, colour)
    y = area.y + 144
    canvas.text("Margins", (area.x, y), size=MEDIUM)
    # The worst first: what does not fit is safer than what does.
    rows = sorted(frame.margins.items(), key=lambda item: item[1])
    shown = rows if len(rows) <= 5 else rows[:4]
    for name, margin in shown:
        y += 21
        colour = INK if margin >= 0 else UNSAFE
        value = canvas.text(_margin(margin), (area.right, y), colour=colour, anchor="midright")
        canvas.text(shortened(name, value.left - area.x - 10), (area.x, y), colour=MUTED)
    if len(rows) > len(shown):
        canvas.text(f"and {len(rows) - len(shown)} more", (area.x, y + 21), colour=MUTED)


def _sign(canvas: Canvas, centre: tuple[int, int], safe: bool) -> None:
    """A tick or a cross."""
    x, y = centre
    strokes = [((-7, 0), (-2, 5)), ((-2, 5), (7, -6))] if safe else [((-6, -6), (6, 6)), ((-6, 6), (6, -6))]
    for (x0, y0), (x1, y1) in strokes:
        canvas.line((x + x0, y + y0), (x + x1, y + y1), PAPER, width=4)


def _gauge(canvas: Canvas, area: pygame.Rect, margin: float, colour: Colour) -> None:
    """Unsafe on the left of the line in the middle, safe on its right."""
    left, right = area.copy(), area.copy()
    left.width = right.width = area.width // 2
    right.x = area.centerx
    canvas.fill(left, _pale(UNSAFE))
    for x in range(left.x + 6, left.right, 8):  # hatched, for those who see no difference in hue
        canvas.line((x, left.bottom - 1), (min(x + 11, left.right - 1), left.y), UNSAFE)
    canvas.fill(right, _pale(SAFE))
    canvas.line((area.centerx, area.y - 4), (area.centerx, area.bottom + 3), INK, width=2)
    for tick in (-1.0, -0.1, 0.0, 0.1, 1.0):
        at = area.centerx + _gauge_place(tick) * area.width / 2
        at = min(max(at, area.x + 7), area.right - 4)
        canvas.text(_signed(f"{tick:g}"), (at, area.bottom + 14), colour=MUTED, anchor="center")
    if not math.isnan(margin):
        tip = area.centerx + _gauge_place(margin) * area.width / 2
        canvas.polygon(np.array([[tip, area.y + 5.0], [tip - 7, area.y - 9.0], [tip + 7, area.y - 9.0]]), colour, PAPER)


def _gauge_place(margin: float) -> float:
    """From -1 to 1."""
    return min(max(math.asinh(margin / GAUGE_LINEAR) / math.asinh(1 / GAUGE_LINEAR), -1.0), 1.0)


def _figures(canvas: Canvas, frame: Frame, area: pygame.Rect) -> None:
    canvas.text("Entropy / log K", (area.x, area.y + 8), colour=MUTED)
    canvas.text(f"{100 * frame.entropy:.1f} %", (area.right, area.y + 8), anchor="midright")
    _bar(canvas, pygame.Rect(area.x, area.y + 22, area.width, 8), frame.entropy, INK)
    if frame.kl is not None:
        canvas.text("KL from target", (area.x, area.y + 52), colour=MUTED)
        canvas.text(f"{frame.kl:.3f} nats", (area.right, area.y + 52), anchor="midright")


def _bar(canvas: Canvas, area: pygame.Rect, share: float, colour: Colour) -> None:
    canvas.fill(area, GROUND)
    done = pygame.Rect(area.x, area.y, round(area.width * min(max(share, 0.0), 1.0)), area.height)
    canvas.fill(done, colour)


def _margin(value: float) -> str:
    return _signed(f"{value:+.3g}")


def _signed(number: str) -> str:
    return number.replace("-", "−")  # noqa: RUF001 - as wide as a plus


def _pale(colour: Colour) -> Colour:
    red, green, blue = ((255 * 3 + channel) // 4 for channel in colour)
    return red, green, blue


def _round_up(value: float) -> float:
    """The next number of one digit, or of 1.5 times a power of ten, not below ``value`` > 0."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(digit * power for digit in (1, 1.5, 2, 3, 4, 5, 6, 8, 10) if digit * power >= value * (1 - 1e-9))


def _round_down(value: float) -> float:
    """The largest of 1, 2 or 5 times a power of ten that is not above ``value`` > 0."""
    power = 10.0 ** math.floor(math.log10(value))
    return max(digit * power for digit in (1, 2, 5) if digit * power <= value * (1 + 1e-9))
