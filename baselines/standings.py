"""What the runs of an algorithm come to: the numbers of the table, and what each of them is."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from baselines.collected import Section, final, final_score, has_failed
from baselines.run_folder import RecordedRun
from baselines.statistics import estimate

#: Share of the final score that counts as learned.
LEARNED = 0.8
#: A score up to this is that of staying put, to the rounding of masses in float32.
NOTHING = 1e-4
#: How much of its budget a run may use, in steps or seconds, before the table marks it, as what is under way may be ended.
ALLOWED = 1.2
#: Characters of a commit in a table.
SHORT = 9
#: Between machines in a table.
BETWEEN = " | "


@dataclass(frozen=True)
class Standing:
    """An algorithm in one scenario, or, aggregated, in all of them. Means are interquartile, over seeds; of all scenarios the
    mean of theirs.

    Runs that failed are in ``score``, ``best_recorded``, ``episodes`` and ``violated``; the other numbers of what runs come to
    are of those with a result.

    Attributes:
        scenario: City and cells; ``"all"`` for the aggregate.
        algorithm: Name.
        label: What tables call it.
        oracle: Whether it is given the true motion.
        seeds: Runs that count: those with a result, and those that failed.
        failed: Those of them that failed.
        commits: Commits that they were started at, short and ascending, with blanks between: ``+`` follows one where files
            differed from it, ``-`` is outside a checkout.
        machines: What they ran on, each as :func:`told_machine` tells it, ascending, with :data:`BETWEEN` between.
        over_budget: Runs that used more than 1.2 times their budget, of steps or of seconds.
        score: Mean final score, of which a policy that violates has none and counts as 0, as does a run that failed; they are
            not cut off with the lowest quarter, see :func:`~baselines.statistics.score_mean`.
        score_low: Lower end of its 95 % interval; NaN where a scenario has fewer than three runs.
        score_high: Upper end.
        violated_at_end: Runs whose final policy violates.
        safe_score: Mean final score of the other runs with a result; NaN where there are none.
        best_recorded: As ``score``, of the best score that a recorded policy of a run had; 0 for a run in which all violate.
        reward: Mean return of the final policies, violating or not, nats.
        episodes: Episodes that all runs executed in the true world while they learned.
        violated: Those of them with a violation.
        env_steps: Mean number of steps of the true world.
        env_steps_learned: Mean number of steps to 80 % of a run's own final score.
        seconds_learned: Mean time to it.
        learned: Runs with a final score above 0, by more than rounding: those that the two are of.
        seconds: Mean time of learning.
        served_demand: Share of requests served by finite fleets, mean; NaN where none were run.
        fleets: Finite fleets run with final policies.
        fleets_violated: Those of them that violate.
        fleets_corrected: Those of them that violate after the correction for finite samples; NaN where that is not known.
    """

    scenario: str
    algorithm: str
    label: str
    oracle: bool
    seeds: int
    failed: int
    commits: str
    machines: str
    over_budget: int
    score: float
    score_low: float
    score_high: float
    violated_at_end: int
    safe_score: float
    best_recorded: float
    reward: float
    episodes: int
    violated: int
    env_steps: float
    env_steps_learned: float
    seconds_learned: float
    learned: int
    seconds: float
    served_demand: float
    fleets: int
    fleets_violated: int
    fleets_corrected: float


def standings(section: Section) -> list[Standing]:
    """The algorithms of a section with a run that counts, the best mean score first."""
    return _ranked([standing(section.name, [runs]) for runs in section.ended.values()])


class Aggregate(NamedTuple):
    """What the sections with a run that counts come to together."""

    sections: list[Section]  #: those with a run that counts
    standings: list[Standing]  #: algorithms that have such runs in every one of them; none for fewer than two
    reason: str  #: why two or more have no standings; empty where there is nothing to be said


def aggregate(sections: Sequence[Section]) -> Aggregate:
    """The algorithms that have runs that count in every city, over all of them.

    A section without such a run does not count. The others are put together where they are of cities that differ, under
    one budget, on one kind of device and judged with the same fleets: else seeds of one city would count as two cities.
    """
    used = [section for section in sections if section.ended]
    if len(used) < 2:
        return Aggregate(used, [], "")
    if reason := _apart(used):
        return Aggregate(used, [], reason)
    common = set.intersection(*(set(section.ended) for section in used))
    if not common:
        return Aggregate(used, [], "no algorithm has ended runs in all of them")
    return Aggregate(used, _ranked([standing("all", [section.ended[name] for section in used]) for name in common]), "")


def _apart(sections: Sequence[Section]) -> str:
    """Why sections cannot be put together; empty where they can."""
    cities: dict[str, str] = {}
    for section in sections:
        city = section.settings.scenario
        if city in cities:
            return f"{cities[city]} and {section.name} are of one city, {city}"
        cities[city] = section.name
    for name in ("env_steps", "seconds", "device", "taxis", "fleet_runs"):
        values = {section.name: getattr(section.settings, name) for section in sections}
        if len(set(values.values())) > 1:
            return f"{name} differs ({', '.join(f'{section} {value}' for section, value in values.items())})"
    return ""


def standing(scenario: str, strata: Sequence[Sequence[RecordedRun]]) -> Standing:
    """What an algorithm's runs come to.

    Args:
        scenario: What they are called together.
        strata: Runs that count per scenario, at least one in all.
    """

    def mean(number: Callable[[RecordedRun], float], chosen: Callable[[RecordedRun], bool] = lambda run: True) -> float:
        values = [[number(run) for run in runs if not has_failed(run) and chosen(run)] for runs in strata]
        return float(estimate(values).mean)

    runs = [run for stratum in strata for run in stratum]
    finished = [run for run in runs if not has_failed(run)]
    last = [run.rows[-1] for run in runs if run.rows]
    fleets = [(fleet, run.settings.fleet_runs) for run in finished if (fleet := final(run).fleet)]
    corrected = sum(fleet["corrected"] * count for fleet, count in fleets)
    score = estimate([[final_score(run) for run in stratum] for stratum in strata], scores=True)
    return Standing(
        scenario=scenario,
        algorithm=runs[0].settings.algorithm,
        label=runs[0].label,
        oracle=any(run.oracle for run in runs),
        seeds=len(runs),
        failed=len(runs) - len(finished),
        commits=" ".join(sorted({_short(start["commit"]) for run in runs for start in run.starts})),
        machines=BETWEEN.join(sorted({told_machine(start) for run in runs for start in run.starts})),
        over_budget=sum(over_budget(run) for run in finished),
        score=float(score.mean),
        score_low=float(score.low),
        score_high=float(score.high),
        violated_at_end=sum(final(run).violations > 0 for run in finished),
        safe_score=mean(lambda run: final(run).score, lambda run: not math.isnan(final(run).score)),
        best_recorded=float(estimate([[best_recorded(run) for run in stratum] for stratum in strata], scores=True).mean),
        reward=mean(lambda run: final(run).reward),
        episodes=sum(row.episodes for row in last),
        violated=sum(row.violated for row in last),
        env_steps=mean(lambda run: final(run).env_steps),
        env_steps_learned=mean(lambda run: learned(run).env_steps, has_learned),
        seconds_learned=mean(lambda run: learned(run).seconds, has_learned),
        learned=sum(has_learned(run) for run in finished),
        seconds=mean(lambda run: final(run).seconds),
        served_demand=mean(lambda run: (final(run).fleet or {})["served_demand"], lambda run: bool(final(run).fleet)),
        fleets=sum(count for _, count in fleets),
        fleets_violated=round(sum(fleet["violated"] * count for fleet, count in fleets)),
        fleets_corrected=corrected if math.isnan(corrected) else round(corrected),
    )


def _short(commit: str | None) -> str:
    """A commit as :func:`~baselines.provenance.commit` tells it, in few characters."""
    head, _, changes = (commit or "-").partition(" ")
    return head[:SHORT] + "+" * bool(changes)


def told_machine(start: Mapping[str, Any]) -> str:
    """What a start ran on, and how many runs shared it: what times depend on."""
    machine = start["machine"]
    told = f"{machine['cpu']}, {machine['cores']} cores, {machine['system']}; {machine['threads']} thread(s) per run"
    return f"{told}, {start['at_a_time']} run(s) at a time, device {machine['device']}"


def best_recorded(run: RecordedRun) -> float:
    """The best score of a policy that a run recorded; NaN where all of them violate."""
    return max((row.score for row in run.rows if not math.isnan(row.score)), default=math.nan)


def over_budget(run: RecordedRun) -> bool:
    """Whether a run learned much longer than it was to."""
    result, settings = final(run), run.settings
    return result.env_steps > ALLOWED * settings.env_steps or result.seconds > ALLOWED * settings.seconds


class Learned(NamedTuple):
    """When a run had learned most of what it ended with."""

    env_steps: float
    seconds: float


def has_learned(run: RecordedRun) -> bool:
    """Whether the final policy is safe and better than staying put."""
    return final(run).score > NOTHING


def learned(run: RecordedRun) -> Learned:
    """When a run's policy first had 80 % of the final score; at its end where no record has."""
    wanted = LEARNED * final(run).score
    for row in run.rows:
        if row.score >= wanted:
            return Learned(row.env_steps, row.seconds)
    return Learned(final(run).env_steps, final(run).seconds)


def _ranked(found: list[Standing]) -> list[Standing]:
    return sorted(found, key=lambda one: (-one.score, one.violated_at_end + one.failed, one.label))


#: The columns of a table, in their order.
COLUMNS = tuple(field.name for field in dataclasses.fields(Standing))
