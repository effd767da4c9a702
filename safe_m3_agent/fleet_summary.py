"""What many episodes with finite fleets say together: means with intervals per fleet size, as a table for a person."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from itertools import groupby, takewhile
from typing import NamedTuple

import torch
from scipy import stats

from mf_taxi_env.fleet_metrics import Estimate, episode_metrics, estimate, mean_field_metrics
from safe_m3_agent.fleet_evaluation import Subject, entropy_margin, sufficient_taxis
from safe_m3_agent.fleet_table import FleetEpisode
from safe_m3_agent.hallucination import FLEET_DEVIATIONS

#: Share of repetitions in which an interval holds what it is of.
CONFIDENCE = 0.95
#: Share of the runs without a violation that counts as safe in a statement about fleet sizes.
OFTEN = 0.95


def share_of(kept: Sequence[bool]) -> Estimate:
    """The share of those that hold, with Wilson's interval, which makes sense for none and all as well."""
    interval = stats.binomtest(sum(kept), len(kept)).proportion_ci(CONFIDENCE, "wilson")
    return Estimate(sum(kept) / len(kept), float(interval.low), float(interval.high), len(kept))


class SizeSummary(NamedTuple):
    """The episodes of one fleet size; units as in :class:`~safe_m3_agent.fleet_table.FleetEpisode`."""

    taxis: int
    runs: int
    reward: Estimate
    kl: Estimate
    entropy: Estimate
    margin: Estimate
    kept: Estimate  #: share of the episodes without a violation
    kept_corrected: Estimate  #: the same with corrected margins; NaN where these are
    served_demand: Estimate
    empty_km: Estimate
    gap: Estimate


def summarized(episodes: Sequence[FleetEpisode]) -> list[SizeSummary]:
    """One summary per fleet size, ascending.

    Args:
        episodes: Episodes of one policy.
    """
    found = []
    for taxis, group in groupby(sorted(episodes, key=lambda one: one.taxis), key=lambda one: one.taxis):
        same = list(group)
        corrected = [one.corrected_violations for one in same]
        unknown = Estimate(math.nan, math.nan, math.nan, len(same))
        found.append(
            SizeSummary(
                taxis,
                len(same),
                reward=estimate([one.reward for one in same]),
                kl=estimate([one.kl for one in same]),
                entropy=estimate([one.entropy for one in same]),
                margin=estimate([one.margin for one in same]),
                kept=share_of([one.violations == 0 for one in same]),
                kept_corrected=unknown if math.isnan(sum(corrected)) else share_of([count == 0 for count in corrected]),
                served_demand=estimate([one.served_demand for one in same]),
                empty_km=estimate([one.empty_km for one in same]),
                gap=estimate([one.gap for one in same]),
            )
        )
    return found


def fleet_report(subject: Subject, episodes: Sequence[FleetEpisode]) -> str:
    """A table per fleet size beside the mean field, and which size is enough to keep the constraints.

    Args:
        subject: The policy.
        episodes: Its episodes, at least one.
    """
    world, executed = subject.world, subject.executed
    constrained = len(world.constraints) > 0
    head = ["taxis", "runs", "return", "entropy", "margin", "kept", "corrected", "served", "empty km", "to mean field"]
    rows = [head]
    sizes = summarized(episodes)
    for size in sizes:
        numbers = [_told(size.reward, 3), f"{size.entropy.mean:.4f}"]
        safety = [_told(size.margin, 4), _percent(size.kept), _percent(size.kept_corrected)] if constrained else ["-"] * 3
        rest = [f"{100 * size.served_demand.mean:.1f} %", f"{size.empty_km.mean:.2f}", _told(size.gap, 4)]
        rows.append([f"{size.taxis:,}", str(size.runs), *numbers, *safety, *rest])
    with torch.no_grad():
        field = episode_metrics(mean_field_metrics(executed, world))
    limit = [f"{float(executed.returns):.3f}", f"{field['entropy']:.4f}"]
    limit += [f"{field['margin']:.4f}", "yes" if field["violations"] == 0 else "no", "-"] if constrained else ["-"] * 3
    rows.append(["mean field", "", *limit, f"{100 * field['served_demand']:.1f} %", "", ""])
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    note = (
        "Means over runs with 95 % intervals. return in nats; entropy (share of its maximum) and margin (of an entropy floor "
        "in nats) at the worst step of a run; kept: runs without a violation; served: requests met, of as many per step as "
        "there are taxis; empty km: per taxi and episode, without a passenger; to mean field: total variation."
    )
    return "\n".join(
        [*lines, "", *(textwrap.fill(text, 110) for text in (note, *_enough(subject), *_measured(sizes, constrained)))]
    )


def _enough(subject: Subject) -> list[str]:
    """From which fleet size on a certificate of the mean field says something, as sentences."""
    if not subject.world.constraints:
        return []
    cells, margin = subject.world.grid.size, entropy_margin(subject)
    if math.isnan(margin):
        return ["No entropy floor here: for other constraints no finite-sample correction is known, and none is made."]
    told = (
        f"Corrected: margins of entropy floors raised by (K - 1) / (2 m) nats, K = {cells} cells, by which m taxis fall short "
        "(from K taxis on; other constraints as they are)."
    )
    fewest = sufficient_taxis(subject)
    if math.isinf(fewest):
        return [told, f"The mean field itself has no margin ({margin:.4f} nats): there is nothing to carry over to fleets."]
    return [
        told,
        f"Enough for entropy floors, to first order: {fewest:,.0f} taxis. From there on the shortfall and {FLEET_DEVIATIONS:g} "
        "standard deviations of single fleets are, together, within the mean field's margin at every step (at its worst "
        f"{margin:.4f} nats), so nearly all fleets keep the floor as they are.",
    ]


def safe_from(sizes: Sequence[SizeSummary], share: float = OFTEN) -> int | None:
    """The smallest of the sizes evaluated from which on fleets keep the constraints, uncorrected, in most runs.

    Args:
        sizes: Summaries, ascending.
        share: How many runs of that size, and of every larger one, have to be without a violation.

    Returns:
        The size; None where the largest one does not suffice.
    """
    enough = list(takewhile(lambda size: size.kept.mean >= share, reversed(sizes)))
    return enough[-1].taxis if enough else None


def _measured(sizes: Sequence[SizeSummary], constrained: bool) -> list[str]:
    if not constrained:
        return []
    fewest = safe_from(sizes)
    where = "at none of these sizes" if fewest is None else f"from {fewest:,} taxis on, of these sizes"
    return [f"Measured: as they are, fleets keep the constraints in at least {100 * OFTEN:.0f} % of the runs {where}."]


def _told(value: Estimate, digits: int) -> str:
    spread = "" if math.isnan(value.low) else f" ± {value.high - value.mean:.{digits}f}"
    return f"{value.mean:.{digits}f}{spread}"


def _percent(value: Estimate) -> str:
    if math.isnan(value.mean):
        return "-"
    return f"{100 * value.mean:.0f} % ({100 * value.low:.0f}\u2013{100 * value.high:.0f})"
