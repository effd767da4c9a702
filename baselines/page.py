"""The leaderboard as a page: tables, pictures, and what it takes to make the same numbers again."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from baselines.collected import Section, final
from baselines.standings import Aggregate, Standing
from baselines.table import markdown, unfinished

INTRODUCTION = """\
Every algorithm has the same budget: it learns until it has made that many steps of the true world or used up the time,
whichever comes first; evaluation does not count. What is under way then is carried to its end; runs that used more than 1.2
times their steps or seconds that way are marked *over budget*. The last policy is judged in the true mean field and with
finite fleets.

- **score**: share of the possible, 0 = staying put, 1 = certified bound; interquartile mean over seeds with its 95 % bootstrap
  interval. A final policy that violates a constraint has no score and counts as 0, what the fleet earns if it is not used
  and everybody stays put, which has to be safe itself; *violate at the end* says how many do.
- **episodes violated**: of the episodes executed in the true world while learning, over all seeds.
- **steps**, **seconds to 80 %**: until the policy in hand first had 80 % of the run's own final score; of runs that end above
  0.
- † An oracle: it is given the true motion, which no operator knows. It says what is possible, not who learns best.
"""


def page_text(
    sections: Sequence[Section],
    ranked: dict[str, list[Standing]],
    overall: Aggregate,
    images: dict[str, str],
    more: str,
) -> str:
    """The leaderboard in Markdown.

    Args:
        sections: All runs.
        ranked: Standings by the name of their section.
        overall: Standings over all cities, or why there are none.
        images: Paths of pictures from where the page lies, by the name of their section; ``"profiles"`` is that of the
            performance profiles.
        more: Where the columns are defined, in Markdown.
    """
    parts = ["# Leaderboard", INTRODUCTION + f"\nAll columns: {more}."]
    if overall.standings:
        pooled = "Runs of all cities pooled; the bootstrap draws seeds within each city."
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
        parts += ["## Not finished", "These runs do not count:", "\n".join(f"- {line}" for line in left)]
    parts += ["## How this was measured", "```sh\n" + "\n".join(commands(sections)) + "\n```", _machines(sections)]
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


def commands(sections: Sequence[Section]) -> list[str]:
    """Commands for a shell that make the finished runs again, one per set of seeds that some algorithms share.

    Each section has a folder of its own, which runs in one world under two budgets need.
    """
    lines = []
    for section in sections:
        by_seeds: dict[tuple[int, int], list[str]] = {}
        for runs in section.finished.values():
            for stretch in _stretches([run.settings.seed for run in runs]):
                by_seeds.setdefault(stretch, []).append(runs[0].asked["algorithm"])
        settings, asked = section.settings, section.runs[0].asked
        for (first, count), names in by_seeds.items():
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
                "--out": f"runs/{section.name}",
            }
            words = ["python", "-m", "baselines", "run", "--algorithms", *names]
            lines.append(shlex.join(words + [str(word) for option in options.items() for word in option]))
    return lines


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
    if finished := [run for runs in section.finished.values() for run in runs]:
        result = final(finished[0])
        told.append(f"Staying put earns {result.stay:.3f} nats, the certified bound is {result.bound:.3f}.")
        unsafe = [run for run in section.finished.get("stay", []) if final(run).violations]
        told += ["**Staying put violates a constraint here: the zero of the scores is unsafe itself.**"] * bool(unsafe)
    if shown.fleet_runs:
        told.append(f"Finite fleets: {shown.fleet_runs} of {shown.taxis:,} taxis per run.")
    return " ".join(told)


def _machines(sections: Sequence[Section]) -> str:
    """Machines, versions and commits of all starts of finished runs, and how many runs have each to their account."""
    runs = [run for section in sections for finished in section.finished.values() for run in finished]
    if not runs:
        return "No run is finished."
    kinds: dict[str, Counter[str]] = {"Machine": Counter(), "Versions": Counter(), "Commit": Counter()}
    for run in runs:
        for kind, told in {fact for start in run.starts for fact in _told(start).items()}:
            kinds[kind][told] += 1
    lines = [
        f"- {kind}: {told} ({count} of {len(runs)} runs)"
        for kind, found in kinds.items()
        for told, count in sorted(found.items())
    ]
    again = sum(len(run.starts) > 1 for run in runs)
    return "\n".join([*lines, *([f"- Went on after a kill: {again} of {len(runs)} runs"] if again else [])])


def _told(start: dict[str, Any]) -> dict[str, str]:
    """A start in words."""
    machine = start["machine"]
    told = f"{machine['cpu']}, {machine['cores']} cores, {machine['system']}; {machine['threads']} thread(s) per run"
    versions = ", ".join(f"{name} {version}" for name, version in start["versions"].items() if version)
    return {
        "Machine": f"{told}, {start['at_a_time']} run(s) at a time, device {machine['device']}",
        "Versions": versions,
        "Commit": start["commit"] or "not from a checkout",
    }
