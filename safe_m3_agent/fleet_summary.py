"""What many episodes with finite fleets say together: means with intervals per fleet size, as a table for a person."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from itertools import groupby, takewhile
from typing import NamedTuple

import numpy as np
from scipy import stats

from mf_taxi_env.information import entropy_fraction
from safe_m3_agent.fleet_evaluation import Subject, entropy_bias, entropy_margin, taxis_for_certificate
from safe_m3_agent.fleet_table import FleetEpisode

#: Share of repetitions in which an interval holds what it is of.
CONFIDENCE = 0.95
#: Share of the runs without a violation that counts as safe in a statement about fleet sizes.
OFTEN = 0.95


class Estimate(NamedTuple):
    """A number with its 95 % interval; both ends are NaN where there is none."""

    mean: float
    low: float
    high: float


def mean_of(values: Sequence[float]) -> Estimate:
    """The mean with Student's interval, which a single value has not, nor have infinite ones."""
    mean, spread = float(np.mean(values)), math.nan
    if len(values) > 1 and math.isfinite(mean):
        deviation = float(np.std(values, ddof=1)) / math.sqrt(len(values))
        spread = deviation * float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1))
    return Estimate(mean, mean - spread, mean + spread)


def share_of(kept: Sequence[bool]) -> Estimate:
    """The share of those that hold, with Wilson's interval, which makes sense for none and all as well."""
    interval = stats.binomtest(sum(kept), len(kept)).proportion_ci(CONFIDENCE, "wilson")
    return Estimate(sum(kept) / len(kept), float(interval.low), float(interval.high))


class SizeSummary(NamedTuple):
    """The episodes of one fleet size; units as in :class:`~safe_m3_agent.fleet_table.FleetEpisode`."""

    taxis: int
    runs: int
    reward: Estimate
    kl: Estimate
    entropy: Estimate
    min_margin: Estimate
    kept: Estimate  #: share of the episodes without a violation
    kept_corrected: Estimate  #: the same with corrected margins; NaN where these are
    occupied: Estimate
    travelled_km: Estimate
    gap: Estimate


def summarized(episodes: Sequence[FleetEpisode]) -> list[SizeSummary]:
    """One summary per fleet size, ascending.

    Args:
        episodes: Episodes of one policy.
    """
    unknown = Estimate(math.nan, math.nan, math.nan)
    found = []
    for taxis, group in groupby(sorted(episodes, key=lambda one: one.taxis), key=lambda one: one.taxis):
        same = list(group)
        corrected = [one.corrected_violations for one in same]
        found.append(
            SizeSummary(
                taxis,
                len(same),
                reward=mean_of([one.reward for one in same]),
                kl=mean_of([one.kl for one in same]),
                entropy=mean_of([one.entropy for one in same]),
                min_margin=mean_of([one.min_margin for one in same]),
                kept=share_of([one.violations == 0 for one in same]),
                kept_corrected=unknown if math.isnan(sum(corrected)) else share_of([count == 0 for count in corrected]),
                occupied=mean_of([one.occupied for one in same]),
                travelled_km=mean_of([one.travelled_km for one in same]),
                gap=mean_of([one.gap for one in same]),
            )
        )
    return found


def fleet_report(subject: Subject, episodes: Sequence[FleetEpisode]) -> str:
    """A table per fleet size beside the mean field, and from which size on the certificate carries over.

    Args:
        subject: The policy.
        episodes: Its episodes, at least one.
    """
    world, executed = subject.world, subject.executed
    constrained = len(world.constraints) > 0
    head = ["taxis", "runs", "return", "entropy", "margin", "kept", "corrected", "occupied", "km", "to mean field"]
    rows = [head]
    sizes = summarized(episodes)
    for size in sizes:
        numbers = [_told(size.reward, 3), f"{size.entropy.mean:.4f}"]
        safety = [_told(size.min_margin, 4), _percent(size.kept), _percent(size.kept_corrected)] if constrained else ["-"] * 3
        rest = [f"{100 * size.occupied.mean:.1f} %", f"{size.travelled_km.mean:.3f}", _told(size.gap, 4)]
        rows.append([f"{size.taxis:,}", str(size.runs), *numbers, *safety, *rest])
    worst, violations = float(executed.worst_margin), int(executed.violations)
    entropy = float(entropy_fraction(executed.mu[1:]).min())
    limit = [f"{float(executed.returns):.3f}", f"{entropy:.4f}"]
    limit += [f"{worst:.4f}", "yes" if violations == 0 else "no", "-"] if constrained else ["-"] * 3
    rows.append(["mean field", "", *limit, "", "", ""])
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    note = (
        "Means over runs with 95 % intervals. return in nats; entropy (share of its maximum) and margin (nats) at the worst "
        "step of a run; kept: runs without a violation; km: repositioning per taxi and step; to mean field: total variation."
    )
    return "\n".join(
        [*lines, "", *(textwrap.fill(text, 110) for text in (note, *_carries_over(subject), *_measured(sizes, constrained)))]
    )


def _carries_over(subject: Subject) -> list[str]:
    """From which fleet size on a certificate of the mean field says something, as sentences."""
    cells, margin = subject.world.grid.size, entropy_margin(subject)
    if math.isnan(margin):
        return ["No entropy floor here: for other constraints no finite-sample correction is known, and none is made."]
    told = [
        f"Corrected: margins of entropy floors raised by (K - 1) / (2 m) nats, K = {cells} cells, by which m taxis fall short "
        "(from K taxis on; other constraints as they are)."
    ]
    fewest = taxis_for_certificate(cells, margin)
    if fewest is None:
        return [*told, f"The mean field itself has no margin ({margin:.4f} nats): there is nothing to carry over."]
    bias = entropy_bias(cells, fewest)
    return [
        *told,
        f"The certificate carries over from {fewest:,} taxis on, on average: they fall short by {bias:.4f} nats, within the "
        f"mean field's margin of {margin:.4f} nats. Single fleets scatter about that, which a small margin does not bear.",
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
