"""The table of the benchmark: for people in Markdown, for programs as CSV."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from baselines.collected import Section
from baselines.standings import BETWEEN, COLUMNS, Standing
from baselines.statistics import FEWEST
from safe_m3_agent.figures.drawing import Table

NOTHING = "-"
#: Marks rows of several commits.
MIXED = "‡"
#: Marks rows of several machines, or of one that was shared differently.
ELSEWHERE = "§"
#: Said of tables whose rows are of several machines.
SEVERAL = "Machines, threads or runs at a time differ in this table: what a budget of time allows does not compare."
#: Said of tables and pictures in which an algorithm has too few runs for one, in one of the cities at least.
NO_INTERVAL = f"There is no interval where a city has fewer than {FEWEST} seeds."


class Column(NamedTuple):
    """A column for people."""

    heading: str
    cell: Callable[[Standing], str]


#: The columns in their order.
SHOWN = (
    Column("algorithm", lambda one: one.label.replace("|", "\\|") + (" †" if one.oracle else "")),
    Column("runs", lambda one: _runs(one)),
    Column("score", lambda one: _with_interval(one.score, one.score_low, one.score_high)),
    Column("violate at the end", lambda one: _of(one.violated_at_end, one.seeds - one.failed)),
    Column("score of the others", lambda one: _number(one.safe_score, 3)),
    Column("best safe record", lambda one: _number(one.best_recorded, 3)),
    Column("episodes violated", lambda one: _of(one.violated, one.episodes)),
    Column("env steps", lambda one: _number(one.env_steps, 0)),
    Column("steps to 80 %", lambda one: _of_learned(_number(one.env_steps_learned, 0), one)),
    Column("seconds to 80 %", lambda one: _of_learned(_number(one.seconds_learned, 1), one)),
    Column("seconds", lambda one: _number(one.seconds, 1)),
)
#: What follows them where finite fleets were run.
SHOWN_OF_FLEETS = (
    Column("demand served, %", lambda one: _number(100 * one.served_demand, 1)),
    Column("fleets that violate", lambda one: _of(one.fleets_violated, one.fleets)),
    Column("corrected", lambda one: _of(one.fleets_corrected, one.fleets)),
)


def markdown(standings: Sequence[Standing]) -> str:
    """A table for people, one row per algorithm."""
    columns = SHOWN + (SHOWN_OF_FLEETS if any(one.fleets for one in standings) else ())
    rows = [[column.heading for column in columns], *([column.cell(one) for column in columns] for one in standings)]
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    rows.insert(1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
    lines = ([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in rows)
    return "\n".join([*(f"| {' | '.join(line)} |" for line in lines), *(f"\n{note}" for note in footnotes(standings))])


def footnotes(standings: Sequence[Standing]) -> list[str]:
    """What has to be said of some rows."""
    said = {
        f"{MIXED} The runs are of more than one commit.": any(map(_mixed, standings)),
        f"{ELSEWHERE} The runs differ in machine, threads or runs at a time: their seconds do not compare.": any(
            map(_elsewhere, standings)
        ),
        SEVERAL: len({machine for one in standings for machine in one.machines.split(BETWEEN)}) > 1,
        NO_INTERVAL: any(math.isnan(one.score_low) for one in standings),
    }
    return [note for note, holds in said.items() if holds]


def as_table(standings: Sequence[Standing]) -> Table:
    """All numbers, for programs."""
    return with_gaps(COLUMNS, [[getattr(one, name) for name in COLUMNS] for one in standings])


def with_gaps(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """A table in which nothing stands for what is no number."""
    return Table(columns, [["" if cell != cell else cell for cell in row] for row in rows])


def unfinished(sections: Sequence[Section]) -> list[str]:
    """A line per run without a result, whether it counts, and why."""
    lines = []
    for section in sections:
        for run in filter(lambda run: run.result is None, section.runs):
            reached = f"{run.rows[-1].env_steps:,} steps" if run.rows else "no record"
            failure = f"counts as 0, failed: {run.error.strip().splitlines()[-1]}" if run.error else ""
            why = failure or "does not count, killed or still running"
            lines.append(f"{section.name}, {run.label}, seed {run.settings.seed} ({reached}) {why}")
    return lines


def _runs(one: Standing) -> str:
    told = [f"{count} {what}" for count, what in ((one.failed, "failed"), (one.over_budget, "over budget")) if count]
    marks = [f"({', '.join(told)})"] * bool(told) + [MIXED] * _mixed(one) + [ELSEWHERE] * _elsewhere(one)
    return " ".join([f"{one.seeds}", *marks])


def _mixed(one: Standing) -> bool:
    return len(one.commits.split()) > 1


def _elsewhere(one: Standing) -> bool:
    return BETWEEN in one.machines


def _of_learned(told: str, one: Standing) -> str:
    """A mean that is not of all runs, with how many it is of."""
    return f"{told} ({one.learned} of {one.seeds})" if 0 < one.learned < one.seeds else told


def _number(value: float, digits: int) -> str:
    return NOTHING if math.isnan(value) else f"{value:,.{digits}f}"


def _of(count: float, total: int) -> str:
    return f"{count:,} of {total:,}" if total and not math.isnan(count) else NOTHING


def _with_interval(value: float, low: float, high: float) -> str:
    """A number with its interval, which few runs, or runs that are all alike, do not have."""
    ends = [f"{end:.3f}" for end in (low, high)]
    return f"{value:.3f} [{', '.join(ends)}]" if low < high and ends[0] != ends[1] else f"{value:.3f}"
