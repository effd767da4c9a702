"""Curves over episodes: how runs learn (figures 3a and 5b), and what a constraint costs and buys (3b)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from mf_taxi_env import TaxiMDP, certified_bound
from mf_taxi_env.fleet_metrics import step_minutes
from mf_taxi_env.render import new_figure
from mf_taxi_env.scoring import stay_return
from safe_m3_agent.figures.drawing import Drawing, Table
from safe_m3_agent.figures.recorded import Group
from safe_m3_agent.figures.seeds import Summary, described, summary
from safe_m3_agent.figures.style import GREEN, GREY, LINES, RED, Line, caption, clean, legend_below, logarithmic, unsafe_below

#: A bound below this, in nats, is no line on a logarithmic axis but its lower end.
LEAST_KL_DRAWN = 1e-3

#: A curve: its label and the runs behind it.
Curve = tuple[str, Group]


def learning(curves: Sequence[Curve], title: str, *, with_doubt: bool = False) -> Drawing:
    """Return per episode over seeds, against the certified bound and against staying put.

    Args:
        curves: Labels and runs, at least one, all of one world.
        title: Title of the picture.
        with_doubt: Add a panel with the model's epistemic standard deviation.
    """
    world = curves[0][1].world
    bound, stay = certified_return(world), stay_return(world)
    figure = new_figure((8.5, 7.6 if with_doubt else 5.2), "constrained")
    shape = {"height_ratios": (3, 2)} if with_doubt else {}
    panels: list[Axes] = figure.subplots(1 + with_doubt, 1, sharex=True, squeeze=False, gridspec_kw=shape)[:, 0].tolist()
    top = panels[0]
    ends, columns, rows = [stay], ["curve", "seeds", "episode", "return", "low", "high", "runs_with_violation"], []
    for (label, group), line in zip(curves, LINES, strict=False):
        returns, violated = summary(group.column("reward")), (group.column("violations") > 0).sum(0)
        _draw(top, returns, line, f"{label} ({_seeds(group)})")
        at = violated.nonzero()[0]
        top.plot(at, returns.mean[at], "x", color=RED, markersize=7, label=f"violation, {label}" if len(at) else None)
        ends += [float(returns.low.min()), float(returns.high.max())]
        row = zip(*returns, violated.tolist(), strict=True)
        rows += [[label, len(group.runs), episode, *numbers] for episode, numbers in enumerate(row)]
        if with_doubt:
            doubt = summary(group.column("epistemic"))
            _draw(panels[1], doubt, line, None)
            for last, number in zip(rows[-group.episodes :], zip(*doubt, strict=True), strict=True):
                last += number
    if with_doubt:
        columns += ["epistemic", "epistemic_low", "epistemic_high"]
        logarithmic(panels[1])
        panels[1].set_ylabel("epistemic std. deviation\n(sides of the city)")
    _reference(top, stay, "staying put", GREY, ":")
    if bound is not None:
        _reference(top, bound, f"certified bound: no safe policy earns more ({bound:.2f} nats)", GREEN, "--")
        ends.append(bound)
    spread = max(ends) - min(ends) or 1.0
    top.set_ylim(min(ends) - 0.08 * spread, max(ends) + 0.09 * spread)  # room for the note above the bound
    top.set_ylabel("return of the episode, nats\n(minus KL to the demand, summed)")
    if bound is not None and bound > stay and world.reward_timing == "next":
        score = top.secondary_yaxis("right", functions=_scale(stay, bound))
        score.set_ylabel("score (0: staying put, 1: bound)")
        score.spines["right"].set_visible(False)
    _finish(panels, title)
    legend_below(panels[-1], top)
    caption(figure, described([len(group.runs) for _, group in curves]))
    extra = [stay, math.nan if bound is None else bound]
    return Drawing(figure, {"": Table([*columns, "staying_put", "bound"], [[*row, *extra] for row in rows])})


def trade_off(curves: Sequence[Curve], title: str) -> Drawing:
    """Divergence from the demand and spread of the fleet, per episode: what the constraint costs, and what it buys.

    Args:
        curves: Labels and runs, all of one world.
        title: Title of the picture.
    """
    group = curves[0][1]
    world, floor = group.world, group.floor
    figure = new_figure((8.5, 7.0), "constrained")
    top, bottom = panels = figure.subplots(2, 1, sharex=True)
    rows: list[list[object]] = []
    for (label, runs), line in zip(curves, LINES, strict=False):
        divergence = summary(-runs.column("reward") / world.horizon)
        safety = summary(safety_shown(runs.column("min_margin"), world, floor))
        violated = runs.column("violations") > 0
        _draw(top, divergence, line, f"{label} ({_seeds(runs)}): {violated.sum()} of {violated.size} episodes violate")
        _draw(bottom, safety, line, None)
        numbers = zip(*divergence, *safety, violated.sum(0).tolist(), strict=True)
        rows += [[label, len(runs.runs), episode, *values] for episode, values in enumerate(numbers)]
    logarithmic(top)  # early episodes of an unconstrained agent may be far off
    bound = certified_return(world)
    if bound is not None and (least := -bound / world.horizon) > LEAST_KL_DRAWN:
        top.axhline(
            least, color=GREEN, linestyle="--", linewidth=1.2, label=f"no safe policy comes below {least:.3f} (certified)"
        )
    top.set_ylabel("KL to the demand\n(nats, mean over steps)")
    name = "margin" if floor is None else "entropy"
    bottom.set_ylabel(
        "smallest margin\nof the episode" if floor is None else "entropy at its worst step\n(share of the maximum)"
    )
    lowest, highest = bottom.get_ylim()
    limit = 0.0 if floor is None else floor
    highest = max(highest, limit + 0.05 * (limit - lowest))  # the floor is to be seen, also from far below
    bottom.set_ylim(min(lowest, limit - 0.12 * (highest - limit)), highest)
    unsafe_below(bottom, limit, "unsafe" if floor is None else f"unsafe: below the floor of {100 * floor:g} %")
    _finish(panels, title)
    legend_below(bottom, top)
    caption(figure, described([len(runs.runs) for _, runs in curves]))
    columns = [
        "curve",
        "seeds",
        "episode",
        "kl",
        "kl_low",
        "kl_high",
        name,
        f"{name}_low",
        f"{name}_high",
        "runs_with_violation",
    ]
    return Drawing(figure, {"": Table(columns, rows)})


def safety_shown(margins: NDArray[np.float64], world: TaxiMDP, floor: float | None) -> NDArray[np.float64]:
    """Entropy as a share of its maximum where that is what is constrained, else the margins as they are.

    Args:
        margins: Margins in nats, of any shape.
        world: The world.
        floor: Its entropy floor, a share of ``log K``; None where it is not the only constraint.
    """
    return margins if floor is None else floor + margins / math.log(world.grid.size)


def _scale(stay: float, bound: float) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """From a return to a score, and back."""
    return lambda value: (value - stay) / (bound - stay), lambda value: stay + value * (bound - stay)


def step_axis(city: TaxiMDP) -> str:
    """What a horizontal axis of steps says."""
    minutes = step_minutes(city)
    return f"step of the episode, {'a quarter of an hour' if minutes == 15 else f'{minutes:g} minutes'} each"


def certified_return(world: TaxiMDP) -> float | None:
    """The certified bound on the return in a world; None where there is none."""
    try:
        # Timed "current", an episode counts its uniform start instead of its end, which the bound covers as well.
        return certified_bound(world).reward
    except (TypeError, ValueError):  # not convex, or nothing is safe
        return None


def _draw(axes: Axes, values: Summary, line: Line, label: str | None) -> None:
    episodes = np.arange(len(values.mean))
    every = max(1, len(episodes) // 12)
    axes.plot(
        episodes, values.mean, color=line.color, linestyle=line.style, marker=line.marker, markevery=every, markersize=5,
        linewidth=2, drawstyle="steps-post", label=label,
    )  # fmt: skip
    axes.fill_between(episodes, values.low, values.high, color=line.color, alpha=0.18, linewidth=0, step="post")


def _reference(axes: Axes, level: float, note: str, color: str, style: str) -> None:
    axes.axhline(level, color=color, linestyle=style, linewidth=1.2)
    axes.annotate(
        note, (0.01, level), xytext=(0, 4), xycoords=("axes fraction", "data"), textcoords="offset points", va="bottom",
        color=color, fontsize=9,
    )  # fmt: skip


def _finish(panels: Sequence[Axes], title: str) -> None:
    for axes in panels:
        clean(axes)
    panels[0].set_title(title, loc="left", fontsize="medium", parse_math=False)
    panels[-1].set_xlabel("episode")
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True))


def _seeds(group: Group) -> str:
    return f"{len(group.runs)} seed{'s' * (len(group.runs) > 1)}"
