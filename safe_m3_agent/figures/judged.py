"""Policies trained at one entropy floor, judged at another (figure 5a)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mf_taxi_env import TaxiMDP, certified_bound, score
from mf_taxi_env.information import entropy_fraction
from mf_taxi_env.render import new_figure
from mf_taxi_env.scoring import as_judged, demand_match, kept
from safe_m3_agent.figures.curves import step_axis
from safe_m3_agent.figures.drawing import Drawing, Table
from safe_m3_agent.figures.recorded import Group, with_floor
from safe_m3_agent.figures.seeds import described, summary
from safe_m3_agent.figures.style import GREEN, LINES, RED, caption, clean, legend_below, unsafe_below

#: Points of the curve of what is possible.
FRONTIER_POINTS = 16


def judged(curves: Sequence[tuple[str, Group]], floor: float, title: str) -> Drawing:
    """The last policies of runs, step by step against a floor that they were not all trained for, and what they earn by it.

    Args:
        curves: Labels and runs, alike but for their entropy floors.
        floor: Floor to judge at, a share of ``log K`` in (0, 1).
        title: Title of the picture.
    """
    world = curves[0][1].world
    judge = with_floor(world, floor)
    figure = new_figure((11.0, 5.4), "constrained")
    left, right = figure.subplots(1, 2)
    rows: list[list[object]] = []
    points = []
    for (label, group), line in zip(curves, LINES, strict=False):
        for run in group.runs:
            mu = run.executed.mu[1:]
            violations = int((~kept(judge.margins(as_judged(mu)))).any(-1).sum())
            shares = entropy_fraction(mu).double().cpu().numpy()
            kl = -demand_match(as_judged(mu), world) / world.horizon
            points.append((float(shares.min()), kl))
            rows.append([group.floor, run.seed, violations, score(mu, judge), kl, float(shares.min()), *shares.tolist()])
        mine = points[-len(group.runs) :]
        path = summary(np.array([row[6:] for row in rows[-len(group.runs) :]], dtype=np.float64))
        steps = np.arange(1, world.horizon + 1)
        left.plot(steps, path.mean, color=line.color, linestyle=line.style, marker=line.marker, markersize=5, linewidth=2)
        left.fill_between(steps, path.low, path.high, color=line.color, alpha=0.18, linewidth=0)
        unsafe = sum(int(str(row[2])) for row in rows[-len(group.runs) :])
        verdict = f"{unsafe} of {world.horizon * len(group.runs)} steps violate {100 * floor:g} %"
        right.scatter(
            *zip(*mine, strict=True), color=line.color, marker=line.marker, s=55, zorder=3, label=f"{label}: {verdict}"
        )
    shares, best = frontier(world, min([floor, *(share for share, _ in points)]))
    right.plot(
        shares, best, color=GREEN, linestyle="--", linewidth=1.4, label="least KL possible with that entropy (certified)"
    )
    lowest = min(float(np.min(np.array([row[6:] for row in rows], dtype=np.float64))), floor)
    left.set_ylim(lowest - 0.12 * (1.0 - lowest), 1.0 + 0.03 * (1.0 - lowest))
    unsafe_below(left, floor, f"unsafe at a floor of {100 * floor:g} %")
    right.set_xlim(float(shares[0]), 1.0)
    right.set_ylim(0.0, 1.1 * max([*best, *(kl for _, kl in points)]))
    right.axvspan(float(shares[0]), floor, color=RED, alpha=0.10, linewidth=0)
    right.axvline(floor, color=RED, linewidth=1.2)
    left.set_xlabel(step_axis(world))
    left.set_ylabel("entropy of the fleet (share of the maximum)")
    left.set_title("Is the fleet spread out enough?", loc="left", fontsize="medium")
    right.set_xlabel("entropy at the worst step (share of the maximum)")
    right.set_ylabel("KL to the demand (nats, mean over steps)")
    right.set_title("What does it earn? (lower is better)", loc="left", fontsize="medium")
    for axes in (left, right):
        clean(axes)
    legend_below(left, right)
    figure.suptitle(title, parse_math=False)
    caption(figure, described([len(group.runs) for _, group in curves]) + " Points: one per seed.")
    names = ["trained_floor", "seed", "steps_violating", "score_judged", "kl", "smallest_entropy"]
    columns = [*names, *(f"entropy_{t}" for t in range(1, world.horizon + 1))]
    possible = Table(["floor", "least_kl"], list(zip(shares.tolist(), best.tolist(), strict=True)))
    return Drawing(figure, {"": Table(columns, rows), "possible": possible})


def frontier(world: TaxiMDP, lowest: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The least mean KL to the demand that any policy can reach whose entropy stays above a floor, for some floors.

    Args:
        world: The world; its constraints do not enter.
        lowest: Where the floors begin, but for a margin; they end close to 1.

    Returns:
        Floors, and the least KL in nats, each ``[FRONTIER_POINTS]``.
    """
    start = max(0.0, lowest - 0.15 * (1.0 - lowest))
    # Closer and closer together, for the curve becomes steep at the upper end.
    floors = start + 0.99 * (1.0 - start) * np.sin(np.linspace(0.0, np.pi / 2, FRONTIER_POINTS))
    return floors, np.array([certified_bound(with_floor(world, float(floor))).kl for floor in floors])
