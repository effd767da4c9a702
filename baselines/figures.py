"""Pictures of the benchmark: a panel per algorithm, the others in grey behind it, so that twenty of them stay legible."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from baselines.collected import Section, final_score
from baselines.learning_curves import LearningCurve, learning_curve
from baselines.standings import Standing
from baselines.statistics import Values, performance_profile
from baselines.table import NO_INTERVAL, with_gaps
from mf_taxi_env.render import new_figure
from safe_m3_agent.figures.drawing import Drawing
from safe_m3_agent.figures.seeds import Summary
from safe_m3_agent.figures.style import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, RED, SKY, caption, clean

#: Panels side by side.
ACROSS = 4
#: Lower scores are drawn at the edge of a panel.
LOWEST = -0.25
#: Of Tol's palette for every kind of colour vision; that of the others has no sixth which is not kept for something.
INDIGO = "#332288"
#: One per family of several algorithms, by name; red is kept for what is unsafe.
HUES = (PURPLE, ORANGE, GREEN, INDIGO, BLUE, SKY)
#: Of an algorithm without a family, or whose family is one too many.
ALONE = BLACK
#: Levels of the score in a performance profile.
LEVELS = np.linspace(0.0, 1.0, 101)


def learning(section: Section, order: Sequence[Standing]) -> Drawing:
    """Score of the policy in hand, and share of the episodes executed so far that violate, against steps of the true world.

    Args:
        section: The runs.
        order: Its standings: the panels, in their order.
    """
    curves = [learning_curve(section.ended[one.algorithm]) for one in order]
    end = max(1.0, *(float(curve.env_steps[-1]) for curve in curves))
    begin = min([float(steps) for curve in curves for steps in curve.env_steps if steps > 0], default=end)
    figure, panels = _panels(order)
    for axes, one, curve in zip(panels, order, curves, strict=True):
        for other in curves:
            axes.step(*_held(other, end), where="post", color="0.85", linewidth=0.8, zorder=1)
        color = _hue(one, order)
        axes.step(*_held(curve, end), where="post", color=color, linestyle=":", linewidth=1.2, zorder=2)
        _line(axes, curve.env_steps, curve.score, color)
        axes.plot(curve.env_steps[-1], max(float(curve.score.mean[-1]), LOWEST), "o", color=color, markersize=4, zorder=4)
        axes.step(curve.env_steps, curve.violated, where="post", color=RED, linestyle="--", linewidth=1.3, zorder=4)
        axes.axhline(0.0, color=GREY, linewidth=0.6)
        axes.set_xscale("symlog", linthresh=begin, linscale=0.6)
        axes.set_xlim(-0.03 * begin, 1.3 * end)
        axes.set_ylim(LOWEST - 0.03, 1.05)
    _finish(figure, f"{section.name}: learning", "steps of the true world", "score")
    caption(
        figure,
        "Solid: score of the policy in hand, interquartile mean over seeds, band: its 95 % bootstrap interval; a policy that "
        f"violates counts as 0, untrimmed; scores below {LOWEST:g} are drawn there. Dot: end of learning. Red, dashed: share "
        "of the episodes executed so far that violate. Grey: the other algorithms."
        + _without_band([curve.score for curve in curves]),
    )
    columns = ["algorithm", "env_steps", "score", "score_low", "score_high", "episodes_violated"]
    rows = [
        [one.algorithm, *numbers]
        for one, curve in zip(order, curves, strict=True)
        for numbers in zip(curve.env_steps, *curve.score, curve.violated, strict=True)
    ]
    return Drawing(figure, {"": with_gaps(columns, rows)})


def profiles(sections: Sequence[Section], order: Sequence[Standing]) -> Drawing:
    """Share of the runs with a final score above each level, over all sections (arXiv 2108.13264, Section 4.2).

    Args:
        sections: The runs.
        order: Standings of algorithms that have runs in every section: the panels, in their order.
    """
    shares = []
    for one in order:
        scores = [[final_score(run) for run in section.ended[one.algorithm]] for section in sections]
        shares.append(performance_profile(scores, LEVELS))
    figure, panels = _panels(order)
    for axes, one, share in zip(panels, order, shares, strict=True):
        for other in shares:
            axes.step(LEVELS, other.mean, where="post", color="0.85", linewidth=0.8, zorder=1)
        _line(axes, LEVELS, share, _hue(one, order))
        axes.set_xlim(0.0, 1.0)
        axes.set_ylim(-0.03, 1.05)
    cities = ", ".join(section.name for section in sections)
    _finish(figure, f"{cities}: final scores", "level of the score", "share of runs above")
    caption(
        figure,
        "Share of the runs whose final policy keeps the constraints and scores above a level; band: its pointwise 95 % "
        f"interval by a bootstrap stratified by city. Grey: the other algorithms.{_without_band(shares)}",
    )
    columns = ["algorithm", "level", "share", "share_low", "share_high"]
    rows = [
        [one.algorithm, *numbers]
        for one, share in zip(order, shares, strict=True)
        for numbers in zip(LEVELS, *share, strict=True)
    ]
    return Drawing(figure, {"": with_gaps(columns, rows)})


def _panels(order: Sequence[Standing]) -> tuple[Figure, list[Axes]]:
    """A titled panel per algorithm."""
    across = min(ACROSS, len(order))
    down = -(-len(order) // across)
    figure = new_figure((max(6.0, 3.1 * across), 1.1 + 2.2 * down), "constrained")
    every = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).ravel().tolist()
    for axes, one in zip(every, order, strict=False):
        clean(axes)
        axes.set_title(f"{one.label}{' †' if one.oracle else ''}", loc="left", fontsize=9.5, parse_math=False)
        axes.tick_params(labelsize=8)
    for axes in every[len(order) :]:
        axes.set_visible(False)
    for axes in every[max(0, len(order) - across) : len(order)]:  # the last of every column
        axes.tick_params(labelbottom=True)
    return figure, every[: len(order)]


def _line(axes: Axes, at: Values, height: Summary, color: str) -> None:
    axes.step(at, np.maximum(height.mean, LOWEST), where="post", color=color, linewidth=2, zorder=3)
    if not np.isnan(height.low).any():
        low, high = (np.maximum(edge, LOWEST) for edge in (height.low, height.high))
        axes.fill_between(at, low, high, color=color, alpha=0.2, linewidth=0, step="post", zorder=2)


def _without_band(heights: Sequence[Summary]) -> str:
    """What a caption says of lines that have no interval."""
    return f" {NO_INTERVAL}" * any(np.isnan(height.low).any() for height in heights)


def _held(curve: LearningCurve, end: float) -> tuple[Values, Values]:
    """A curve that goes on at its last height."""
    height = np.maximum(curve.score.mean, LOWEST)
    return np.append(curve.env_steps, end), np.append(height, height[-1])


def _finish(figure: Figure, title: str, across: str, up: str) -> None:
    figure.suptitle(title, x=0.01, ha="left", fontsize="medium", parse_math=False)
    shown = [axes for axes in figure.axes if axes.get_visible()]
    columns = min(ACROSS, len(shown))
    for axes in shown[-columns:]:
        axes.set_xlabel(across, fontsize=8.5)
    for axes in shown[::columns]:
        axes.set_ylabel(up, fontsize=8.5)


def _hue(one: Standing, order: Sequence[Standing]) -> str:
    """The colour of an algorithm's family: what its name begins with, up to the first hyphen."""
    counts = Counter(other.algorithm.partition("-")[0] for other in order)
    families = sorted(name for name, count in counts.items() if count > 1)
    mine = one.algorithm.partition("-")[0]
    return dict(zip(families, HUES, strict=False)).get(mine, ALONE)
