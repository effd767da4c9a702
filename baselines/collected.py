"""The runs in the benchmark's folders, put together by what may be compared."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from baselines.run_folder import RESULT_FILE, RUN_FILE, RecordedRun, Result, Settings, read_run
from mf_taxi_env.bound import RETURN_TOLERANCE, BoundExceededError


@dataclass(frozen=True)
class Section:
    """Runs in one world, under one budget, judged alike, on one kind of device.

    Attributes:
        name: City and cells, such as ``"shenzhen-k25"``; no two sections share one.
        ended: Runs that count, with a result or failed, by algorithm; by seed.
        unfinished: All others: killed, or still running.
    """

    name: str
    ended: dict[str, list[RecordedRun]]
    unfinished: list[RecordedRun]

    @property
    def counting(self) -> list[RecordedRun]:
        """Runs that count."""
        return [run for runs in self.ended.values() for run in runs]

    @property
    def runs(self) -> list[RecordedRun]:
        """All runs."""
        return [*self.counting, *self.unfinished]

    @property
    def settings(self) -> Settings:
        """Settings of one of the runs; but for algorithm and seed they are those of all."""
        return self.runs[0].settings


def collect(folders: Sequence[Path]) -> list[Section]:
    """Read all runs, ``FOLDER/CITY/ALGORITHM/seed-N``, finished or not.

    Args:
        folders: Folders of the benchmark, as ``--out`` of ``run`` named them.

    Raises:
        ValueError: If there are none, a file is not readable, the same run is there twice, or an algorithm's runs are of
            different versions of its script.
        BoundExceededError: If a final policy that keeps the constraints earned more than is possible.
    """
    found = [path.parent for folder in folders for path in sorted(folder.glob(f"*/*/seed-*/{RUN_FILE}"))]
    if not found:
        raise ValueError(f"no runs of the benchmark (CITY/ALGORITHM/seed-N/{RUN_FILE}) in {', '.join(map(str, folders))}")
    groups: dict[str, dict[tuple[str, int], RecordedRun]] = {}
    for path in found:
        run = read_run(path)
        _check_bound(run)
        same, key = groups.setdefault(_compared(run.settings), {}), (run.settings.algorithm, run.settings.seed)
        if key in same:
            raise ValueError(f"{same[key].folder} and {path} hold the same run: name one of them")
        same[key] = run
    sections, names = [], Counter[str]()
    for group in groups.values():
        section = _section([group[key] for key in sorted(group)], names)
        sections.append(section)
    return sorted(sections, key=lambda section: section.name)


def _check_bound(run: RecordedRun) -> None:
    """The judge lets no such result pass: one that is there nevertheless is of another bound, or was written by hand."""
    result = run.result
    if result is None or result.violations:
        return
    most = result.bound + (result.gap or 0.0) + run.settings.world["horizon"] * RETURN_TOLERANCE
    if result.reward > most:
        raise BoundExceededError(
            f"{run.folder / RESULT_FILE} has a reward of {result.reward:.6f} nats without a violation, and none above "
            f"{most:.6f} is possible: world, constraint or bound is wrong, or the file is not what the benchmark wrote"
        )


def _compared(settings: Settings) -> str:
    """What runs must share to be compared, as text."""
    facts = (settings.world, settings.env_steps, settings.seconds, settings.device, settings.taxis, settings.fleet_runs)
    return json.dumps(facts, sort_keys=True)


def _section(runs: Sequence[RecordedRun], names: Counter[str]) -> Section:
    ended: dict[str, list[RecordedRun]] = {}
    for run in runs:
        if run.result is not None or has_failed(run):
            ended.setdefault(run.settings.algorithm, []).append(run)
    for mine in ended.values():
        if len({run.settings.source for run in mine}) > 1:
            raise ValueError(
                f"{mine[0].settings.algorithm}: its runs are of different versions of its script or settings: "
                f"{', '.join(str(run.folder) for run in mine)}"
            )
    name = runs[0].folder.parent.parent.name
    names[name] += 1
    unique = name if names[name] == 1 else f"{name}-{names[name]}"  # another budget, for instance
    return Section(unique, ended, [run for run in runs if run.result is None and not has_failed(run)])


def has_failed(run: RecordedRun) -> bool:
    """Whether the last start of a run ended with an error, and not with a result."""
    return run.result is None and bool(run.error)


def final(run: RecordedRun) -> Result:
    """The result of a finished run."""
    assert run.result is not None
    return run.result


def final_score(run: RecordedRun) -> float:
    """The score of a run that counts; NaN where the final policy violates, and where it failed and left none."""
    return math.nan if run.result is None else run.result.score
