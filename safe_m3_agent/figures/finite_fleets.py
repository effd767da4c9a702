"""From infinitely many taxis to finitely many: the objective by fleet size (figure 6a), the episode step by step (7)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator, PercentFormatter, StrMethodFormatter
from numpy.typing import NDArray

from mf_taxi_env import TaxiMDP
from mf_taxi_env.fleet_metrics import Estimate
from mf_taxi_env.information import kl_divergence
from mf_taxi_env.render import new_figure
from mf_taxi_env.scoring import stay_return
from safe_m3_agent.figures.curves import certified_return, safety_shown, step_axis
from safe_m3_agent.figures.drawing import Drawing, Table
from safe_m3_agent.figures.recorded import single_floor
from safe_m3_agent.figures.seeds import summary
from safe_m3_agent.figures.style import (
    BLACK,
    GREEN,
    GREY,
    LINES,
    RED,
    caption,
    clean,
    legend_below,
    logarithmic,
    unsafe_below,
)
from safe_m3_agent.fleet_evaluation import Subject, sufficient_taxis
from safe_m3_agent.fleet_summary import summarized
from safe_m3_agent.fleet_table import FleetEpisode
from safe_m3_agent.hallucination import FLEET_DEVIATIONS

#: Most fleet sizes of figure 7.
MOST_SIZES = 3
#: A size that is enough is a line up to this many times the largest fleet; a larger one would leave the axis empty.
FARTHEST = 10.0
#: Scores that the second axis of figure 6a names, where they are in sight.
SCORES = (0.0, 0.5, 0.8, 0.9, 1.0)


class FleetCurve(NamedTuple):
    """Policies that differ in nothing but the seed they were trained with, and their episodes with finite fleets."""

    label: str
    policies: Sequence[tuple[Subject, Sequence[FleetEpisode]]]

    @property
    def sizes(self) -> list[int]:
        """Fleet sizes at which all policies were evaluated, ascending."""
        return common_sizes([episodes for _, episodes in self.policies])


def common_sizes(evaluations: Sequence[Sequence[FleetEpisode]]) -> list[int]:
    """Fleet sizes that occur in each of some evaluations, at least one, ascending."""
    return sorted(set.intersection(*({one.taxis for one in episodes} for episodes in evaluations)))


def fleet_sizes(curves: Sequence[FleetCurve], title: str) -> Drawing:
    """What fleets of different size earn, against the mean field, and how many of them keep the constraints.

    Args:
        curves: At least one, all of one world, each with a size at which all its policies were evaluated.
        title: Title of the picture.
    """
    world = curves[0].policies[0][0].world
    figure = new_figure((8.5, 8.0 if world.constraints else 5.6), "constrained")
    panels: list[Axes] = figure.subplots(2 if world.constraints else 1, 1, sharex=True, squeeze=False)[:, 0].tolist()
    rows: list[list[object]] = []
    farthest = FARTHEST * max(taxis for curve in curves for taxis in curve.sizes)
    for curve, line in zip(curves, LINES, strict=False):
        limit = float(np.mean([-float(subject.executed.returns) / world.horizon for subject, _ in curve.policies]))
        enough = max(sufficient_taxis(subject) for subject, _ in curve.policies)
        mine = [_at_size(curve, taxis) for taxis in curve.sizes]
        sizes = [size.taxis for size in mine]
        style: dict[str, Any] = {
            "color": line.color,
            "linestyle": line.style,
            "marker": line.marker,
            "markersize": 6,
            "linewidth": 2,
        }
        told = f": {enough:,.0f} taxis are enough{', beyond the axis' * (enough > farthest)}" if math.isfinite(enough) else ""
        panels[0].plot(sizes, [size.kl.mean for size in mine], **style, label=curve.label + told)
        _band(panels[0], sizes, [size.kl for size in mine], line.color)
        panels[0].axhline(limit, color=line.color, linewidth=1.2, alpha=0.8)
        if world.constraints:
            _shares(panels[1], sizes, [size.kept for size in mine], **style)
            known = [size for size in mine if not math.isnan(size.corrected.mean)]
            _shares(
                panels[1], [size.taxis for size in known], [size.corrected for size in known], color=line.color, linestyle="",
                marker=line.marker, markersize=11, fillstyle="none",
            )  # fmt: skip
            if enough <= farthest:
                panels[1].axvline(enough, color=line.color, linestyle=line.style, linewidth=1.2, alpha=0.8)
        rows += [
            [
                curve.label,
                len(curve.policies),
                size.taxis,
                size.runs,
                *size.kl[:3],
                limit,
                *size.kept[:3],
                *size.corrected[:3],
                enough,
            ]
            for size in mine
        ]
    _objective_axis(panels[0], world)
    if world.constraints:
        panels[1].set_ylim(-0.04, 1.04)
        panels[1].yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
        panels[1].set_ylabel("runs without a violation")
    for axes in panels:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(numticks=12))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.xaxis.set_minor_locator(NullLocator())
        clean(axes)
    panels[0].set_title(title, loc="left", fontsize="medium", parse_math=False)
    panels[-1].set_xlabel("taxis in the fleet")
    legend_below(panels[-1], panels[0])
    caption(figure, _described(curves, constrained=bool(world.constraints)))
    columns = [
        "curve",
        "policies",
        "taxis",
        "runs",
        "kl",
        "kl_low",
        "kl_high",
        "kl_mean_field",
        "kept",
        "kept_low",
        "kept_high",
    ]
    columns += ["kept_corrected", "kept_corrected_low", "kept_corrected_high", "enough_taxis"]
    return Drawing(figure, {"": Table(columns, rows)})


class _AtSize(NamedTuple):
    taxis: int
    runs: int
    kl: Estimate
    kept: Estimate
    corrected: Estimate


def _at_size(curve: FleetCurve, taxis: int) -> _AtSize:
    """All policies at one size; of several, the interval is over policies, for these are what varies."""
    found, horizon = [], curve.policies[0][0].world.horizon
    for _, episodes in curve.policies:
        (size,) = summarized([one for one in episodes if one.taxis == taxis])
        low, high = -size.reward.high / horizon, -size.reward.low / horizon
        found.append(
            _AtSize(
                taxis, size.runs, Estimate(-size.reward.mean / horizon, low, high, size.runs), size.kept, size.kept_corrected
            )
        )
    if len(found) == 1:
        return found[0]

    def over(name: str) -> Estimate:
        values = summary(np.array([getattr(one, name).mean for one in found]))
        return Estimate(float(values.mean), float(values.low), float(values.high), len(found))

    return _AtSize(taxis, sum(one.runs for one in found), over("kl"), over("kept"), over("corrected"))


def _band(axes: Axes, sizes: Sequence[int], values: Sequence[Estimate], color: str) -> None:
    # Some fleets alone have no interval, and on a logarithmic axis none may reach below zero.
    low = [value.mean if math.isnan(value.low) else max(value.low, 1e-3 * value.mean) for value in values]
    high = [value.mean if math.isnan(value.high) else value.high for value in values]
    axes.fill_between(sizes, low, high, color=color, alpha=0.18, linewidth=0)


def _shares(axes: Axes, sizes: Sequence[int], values: Sequence[Estimate], **style: Any) -> None:
    ends = [[max(one.mean - one.low, 0.0) for one in values], [max(one.high - one.mean, 0.0) for one in values]]
    axes.errorbar(sizes, [one.mean for one in values], ends, **style, elinewidth=1.2, capsize=3, clip_on=False)


def _objective_axis(axes: Axes, world: TaxiMDP) -> None:
    """Divergence on a logarithmic axis, and on the right the scores that it stands for."""
    logarithmic(axes)
    axes.set_ylabel("KL to the demand, nats\n(minus the return, divided by the steps)")
    bound, stay = certified_return(world), -stay_return(world) / world.horizon
    axes.axhline(stay, color=GREY, linestyle=":", linewidth=1.2)
    edge: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "fontsize": 9, "ha": "right"}
    axes.annotate("staying put, mean field", (0.99, stay), xytext=(0, 4), va="bottom", color=GREY, **edge)
    if bound is None or -bound / world.horizon >= stay:
        return
    best = -bound / world.horizon
    axes.axhline(best, color=GREEN, linestyle="--", linewidth=1.2)
    axes.annotate("certified bound, mean field", (0.99, best), xytext=(0, -4), va="top", color=GREEN, **edge)
    low, high = axes.get_ylim()
    low = min(low, 0.6 * best)
    axes.set_ylim(low, high)
    at = {score: stay + score * (best - stay) for score in SCORES}
    shown = {score: value for score, value in at.items() if low < value < high}
    right = axes.secondary_yaxis("right")
    right.yaxis.set_major_locator(FixedLocator(list(shown.values())))
    right.yaxis.set_minor_locator(NullLocator())
    right.set_yticklabels([f"{score:g}" for score in shown])
    right.set_ylabel("score (0: staying put, 1: bound)")
    right.spines["right"].set_visible(False)


def _described(curves: Sequence[FleetCurve], *, constrained: bool) -> str:
    most = max(len(curve.policies) for curve in curves)
    line = (
        "Lines: mean over runs of one policy, with its 95 % interval"
        if most == 1
        else "Lines: mean over policies of different training seeds, with their range"
        if most < 4
        else "Lines: interquartile mean over policies of different training seeds, with its 95 % bootstrap interval"
    )
    kept = (
        " Below: full marks as the fleets are, open ones with margins of entropy floors raised by "
        "(K\u00a0-\u00a01)\u00a0/\u00a0(2\u00a0m), known from "
        f"K taxis on; right of the vertical line that shortfall and {FLEET_DEVIATIONS:g} standard deviations of single fleets "
        "are within the policy's margin at every step, to first order."
    )
    limits = "Horizontal lines: the policy in the mean field. Cells without a taxi count with a mass of 1e-30."
    return f"{line}. {limits}{kept * constrained}"


# -- along the episode ----------------------------------------------------------------------------------------------------


def along_the_episode(curve: FleetCurve, title: str) -> Drawing:
    """Every step of the episode in the mean field and with finite fleets: closeness to the demand, and safety.

    Args:
        curve: Policies and their episodes; one policy, the one of the median return, is shown.
        title: Title of the picture.
    """
    subject, episodes = sorted(curve.policies, key=lambda one: float(one[0].executed.returns))[(len(curve.policies) - 1) // 2]
    world, executed = subject.world, subject.executed
    floor, constrained = single_floor(world), bool(world.constraints)
    figure = new_figure((8.5, 7.6 if constrained else 4.8), "constrained")
    panels: list[Axes] = figure.subplots(2 if constrained else 1, 1, sharex=True, squeeze=False)[:, 0].tolist()
    steps = np.arange(1, world.horizon + 1)
    kl = np.array([float(kl_divergence(world.demand(t), executed.mu[t + 1])) for t in range(world.horizon)])
    margin = executed.margins.double().cpu().numpy().min(-1, initial=math.inf)
    rows: list[list[object]] = []
    for taxis, line in zip(_telling_sizes(episodes, world.grid.size), LINES, strict=False):
        same = [one for one in episodes if one.taxis == taxis]
        divergence, margins = (np.array([getattr(one, name) for one in same]) for name in ("step_kl", "step_margin"))
        unsafe = int((margins < 0).any(1).sum())
        label = f"{taxis:,} taxis ({len(same)} run{'s' * (len(same) > 1)})"
        label += f": {unsafe} with a violation" if constrained else ""
        style: dict[str, Any] = {
            "color": line.color,
            "linestyle": line.style,
            "marker": line.marker,
            "markersize": 5,
            "linewidth": 2,
        }
        shown = safety_shown(margins, world, floor)
        for axes, values in zip(panels, (divergence, shown), strict=False):
            low, high = np.quantile(values, (0.025, 0.975), axis=0)
            axes.plot(steps, values.mean(0), **style, label=label)
            axes.fill_between(steps, low, high, color=line.color, alpha=0.18, linewidth=0)
        violated = (margins < 0).sum(0)
        at = violated.nonzero()[0]
        if constrained and len(at):
            panels[1].plot(steps[at], shown.min(0)[at], "x", color=RED, markersize=7)
        ranges = [np.quantile(values, (0.025, 0.975), axis=0) for values in (divergence, margins)]
        for i, step in enumerate(steps.tolist()):
            spread = [*_row(divergence, ranges[0], i), *_row(margins, ranges[1], i)]
            rows.append([taxis, len(same), step, *spread, int(violated[i]), float(kl[i]), float(margin[i])])
    for axes, values in zip(panels, (kl, safety_shown(margin, world, floor)), strict=False):
        axes.plot(steps, values, color=BLACK, linestyle=(0, (1, 1)), linewidth=2.4, label="mean field: infinitely many taxis")
        clean(axes)
    logarithmic(panels[0])
    panels[0].set_ylabel("KL to the demand (nats)")
    panels[0].set_title(title, loc="left", fontsize="medium", parse_math=False)
    if constrained:
        lowest, highest = panels[1].get_ylim()
        limit = 0.0 if floor is None else floor
        highest = max(highest, limit + 0.05 * (limit - lowest))  # the floor is to be seen, also from far below
        panels[1].set_ylim(min(lowest, limit - 0.15 * (highest - limit)), highest)
        name = "smallest margin" if floor is None else "entropy of the fleet\n(share of the maximum)"
        panels[1].set_ylabel(name)
        unsafe_below(panels[1], limit, "unsafe" if floor is None else f"unsafe: below the floor of {100 * floor:g} %")
    panels[-1].set_xlabel(step_axis(world))
    panels[-1].set_xlim(0.8, world.horizon + 0.2)
    legend_below(panels[-1], panels[0])
    crosses = " Crosses: the worst run of a step at which some run violates." if constrained else ""
    caption(figure, f"Lines: mean over runs; bands: the middle 95 % of the runs.{crosses} As the fleets are, not corrected.")
    columns = ["taxis", "runs", "step", "kl", "kl_low", "kl_high", "margin", "margin_low", "margin_high", "runs_violating"]
    return Drawing(figure, {"": Table([*columns, "kl_mean_field", "margin_mean_field"], rows)})


def _row(values: NDArray[np.float64], ends: NDArray[np.float64], step: int) -> list[float]:
    return [float(values[:, step].mean()), float(ends[0, step]), float(ends[1, step])]


def _telling_sizes(episodes: Sequence[FleetEpisode], cells: int) -> list[int]:
    """The smallest fleets of at least one taxi per cell, for larger ones cannot be told from the mean field; or the largest."""
    sizes = sorted({one.taxis for one in episodes})
    return ([size for size in sizes if size >= cells] or sizes[-1:])[:MOST_SIZES]
