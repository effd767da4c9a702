"""The leaderboard as a page: tables, pictures, and what it takes to make the same numbers again."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from baselines.collected import Section
from baselines.run_folder import RecordedRun
from baselines.standings import Aggregate, Standing, told_machine
from baselines.table import markdown, unfinished
from mf_taxi_env.scoring import MARGIN_TOLERANCE

INTRODUCTION = """\
Every algorithm has the same budget: it learns until it has made that many steps of the true world or used up the time,
whichever comes first; evaluation does not count. What learns nothing ends at once: staying put, a random field and the
classical oracles. What is under way when the budget ends is carried to its end; runs that used more than 1.2 times their
steps or seconds that way are marked *over budget*. The final policy is judged in the true mean field and with finite fleets.

- **score**: the normalised return (0 = staying put, 1 = certified bound) as the interquartile mean over seeds, with its 95 %
  bootstrap interval; in one city, of three or four seeds, that is simply their range. A final policy that violates a
  constraint counts as 0, the score of staying put, and so does a run that failed; such zeros are not cut off with the lowest
  quarter. *Violate at the end* counts violating final policies, and *score of the others* is the mean over the rest.
- **best safe record**: the score if each run kept the best safe policy that it recorded (0 where all violate), as is common
  practice. It takes evaluations in the true mean field, in which rejected policies may violate, and it favours algorithms
  that record often.
- **episodes violated**: of the episodes executed in the true world while learning, over all seeds, as the algorithms report
  them. Exploration is not the same for all: model-free algorithms explore with the whole fleet. Agents and classical peers
  are told demand, trips and constraints, and learn how taxis move from single ones that carry no mass. While a peer learns,
  the fleet stays put, so that none of its episodes can violate where staying put does not.
- **demand served**: the share of requests that finite fleets serve; **fleets that violate**: those of them that break a
  constraint at some step (every final policy is given the same fleets); **corrected**: those that still do after the
  correction for what few taxis lack in entropy. An agent that is planned for the mean field keeps the constraint there, while
  finite fleets scatter about it; `Config.fleet` (`safe-m3-fleet`) plans for fleets of a size.
- **steps**, **seconds to 80 %**: when the current policy first reached 80 % of the run's own final score, so that a run that
  ends low gets there early. Only runs that end above 0 count; where these are not all, the cell says how many.
- † An oracle: it is given the true motion, which no operator knows. It says what is possible, not who learns best.
"""


def page_text(
    sections: Sequence[Section],
    ranked: dict[str, list[Standing]],
    overall: Aggregate,
    images: dict[str, str],
    *,
    in_docs: bool = False,
    notes: str = "",
    options: Sequence[str] = (),
) -> str:
    """The leaderboard in Markdown.

    Args:
        sections: All runs.
        ranked: Standings by the name of their section.
        overall: Standings over all cities, or why there are none.
        images: Paths of pictures from where the page lies, by the name of their section; ``"profiles"`` is that of the
            performance profiles.
        in_docs: Whether it lies among the pages of the documentation, and may link to them.
        notes: Remarks by hand, in Markdown, that follow the introduction.
        options: Further options of the command that makes this page.
    """
    parts = ["# Leaderboard", INTRODUCTION + f"\nAll columns: {_link('Benchmark', 'benchmark.md', in_docs)}."]
    if notes.strip():
        parts.append(notes)
    if overall.standings:
        pooled = "Means over the cities, each of which has the same weight; the bootstrap draws seeds within each city."
        parts += ["## All cities", pooled, markdown(overall.standings)]
    elif overall.reason:
        parts += ["## All cities", f"There is no table of all cities: {overall.reason}."]
    if "profiles" in images:
        parts.append(f"![Performance profiles]({images['profiles']})")
    for section in sections:
        parts += [f"## {section.name}", _world(section)]
        if ranked[section.name]:
            parts.append(markdown(ranked[section.name]))
        if section.name in images:
            parts.append(f"![Learning curves, {section.name}]({images[section.name]})")
    if left := unfinished(sections):
        parts += ["## Without a result", "\n".join(f"- {line}" for line in left)]
    shown = "\n".join([*commands(sections), _table_command(sections, options)])
    parts += ["## How this was measured", f"```sh\n{shown}\n```", *_files(sections, in_docs), _machines(sections)]
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


def commands(sections: Sequence[Section]) -> list[str]:
    """Commands for a shell that make the runs that count again, one per set of seeds that some algorithms share.

    As many run at a time as there were at most; a Ray cluster is taken to be running. Each section has a folder of its own,
    which runs in one world under two budgets need.
    """
    lines = []
    for section in sections:
        by_seeds: dict[tuple[int, int], list[RecordedRun]] = {}
        for runs in section.ended.values():
            for first, count in _stretches([run.settings.seed for run in runs]):
                mine = [run for run in runs if first <= run.settings.seed < first + count]
                by_seeds.setdefault((first, count), []).extend(mine)
        settings, asked = section.settings, section.runs[0].asked
        for (first, count), runs in by_seeds.items():
            options = {
                "--scenarios": asked["scenario"],
                "--cells": asked["cells"],
                "--seeds": count,
                "--first-seed": first,
                "--env-steps": settings.env_steps,
                "--seconds": f"{settings.seconds:g}",
                "--taxis": settings.taxis,
                "--fleet-runs": settings.fleet_runs,
                "--device": settings.device,
                **_at_a_time(runs),
                "--out": _folder(section),
            }
            names = dict.fromkeys(run.asked["algorithm"] for run in runs)
            words = ["python", "-m", "baselines", "run", "--algorithms", *names]
            lines.append(shlex.join(words + [str(word) for option in options.items() for word in option]))
    return lines


def _at_a_time(runs: Sequence[RecordedRun]) -> dict[str, Any]:
    """How many at a time, as options of ``run``."""
    found = [start["at_a_time"] for run in runs for start in run.starts]
    local = [count for count in found if count != "ray"]
    return {"--workers": max(local)} if local else {"--ray": "auto"}


def _folder(section: Section) -> str:
    return f"runs/{section.name}"


def _table_command(sections: Sequence[Section], options: Sequence[str]) -> str:
    """The command that makes the leaderboard of such runs."""
    folders = [_folder(section) for section in sections if section.ended]
    return shlex.join(["python", "-m", "baselines", "table", *folders, "--out", "runs/table", *options])


def _files(sections: Sequence[Section], in_docs: bool) -> list[str]:
    """How the files of cities are made that the commands name."""
    files = sorted({name for section in sections if (name := section.runs[0].asked["scenario"]).endswith(".npz")})
    if not files:
        return []
    real, own = _link("Results", "results.md", in_docs), _link("Your own city", "own_city.md", in_docs)
    return [f"How {', '.join(f'`{name}`' for name in files)} is built: {real} for the real city, else {own}."]


def _link(title: str, page: str, in_docs: bool) -> str:
    """A page of the documentation, from inside of it or from elsewhere."""
    return f"[{title}]({page})" if in_docs else f"docs/{page}"


def _stretches(seeds: Sequence[int]) -> list[tuple[int, int]]:
    """Seeds as first ones and how many follow each other: 0, 1, 2, 5 is (0, 3), (5, 1)."""
    found = []
    for _, group in groupby(enumerate(sorted(seeds)), key=lambda pair: pair[1] - pair[0]):
        stretch = [seed for _, seed in group]
        found.append((stretch[0], len(stretch)))
    return found


def _world(section: Section) -> str:
    """What the runs of a section have in common."""
    shown = section.settings
    world = shown.world
    floors = [one["fraction"] for one in world["constraints"] if one["kind"] == "EntropyFloor"]
    told = [
        f"{shown.scenario}, {world['cells']} x {world['cells']} cells, {world['horizon']} steps per episode"
        + (f", entropy of the fleet at least {100 * floors[0]:g} % of its maximum" if floors else "")
        + f". Budget: {shown.env_steps:,} steps, {shown.seconds:,g} s."
    ]
    if results := [run.result for run in section.counting if run.result is not None]:
        gaps = [result.gap for result in results if result.gap is not None]
        proven = f" (gap of its certificate: {max(gaps):.1g} nats)" if gaps else ""
        told.append(f"Staying put earns {results[0].stay:.3f} nats, the certified bound is {results[0].bound:.3f}{proven}.")
        if any(result.stay_margin is not None and result.stay_margin < -MARGIN_TOLERANCE for result in results):
            told.append("**Staying put violates a constraint here: the zero of the scores is unsafe itself.**")
    if shown.fleet_runs:
        told.append(f"Finite fleets: {shown.fleet_runs} of {shown.taxis:,} taxis per run.")
    return " ".join(told)


def _machines(sections: Sequence[Section]) -> str:
    """Machines, versions and commits of all starts of runs that count, and which runs used each."""
    runs = [run for section in sections for run in section.counting]
    if not runs:
        return "No run has ended."
    kinds: dict[str, dict[str, list[str]]] = {"Machine": {}, "Versions": {}, "Commit": {}}
    for run in runs:
        for kind, told in {fact for start in run.starts for fact in _told(start).items()}:
            kinds[kind].setdefault(told, []).append(run.settings.algorithm)
    lines = [
        f"- {kind}: {told} ({len(names)} of {len(runs)} runs{_whose(names) if len(names) < len(runs) else ''})"
        for kind, found in kinds.items()
        for told, names in sorted(found.items())
    ]
    if speeds := [start["reference_seconds"] for run in runs for start in run.starts if "reference_seconds" in start]:
        shortest, longest = (1000 * seconds for seconds in (min(speeds), max(speeds)))
        lines.append(
            f"- A reference computation took {shortest:.0f} to {longest:.0f} ms when runs started ({len(speeds)} starts): "
            "times compare no better than that"
        )
    again = sum(len(run.starts) > 1 for run in runs)
    return "\n".join([*lines, *([f"- Started more than once: {again} of {len(runs)} runs"] if again else [])])


def _whose(names: Sequence[str]) -> str:
    return f": {', '.join(f'{count} of {name}' for name, count in sorted(Counter(names).items()))}"


def _told(start: dict[str, Any]) -> dict[str, str]:
    """A start in words."""
    versions = ", ".join(f"{name} {version}" for name, version in start["versions"].items() if version)
    return {"Machine": told_machine(start), "Versions": versions, "Commit": start["commit"] or "not from a checkout"}
