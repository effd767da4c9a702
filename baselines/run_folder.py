"""The folder of one run of the benchmark: settings, learning curve, result. A kill costs no more than what was under way."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

from baselines.curve import Curve, Row
from mf_taxi_env.atomic import replacing

if sys.platform != "win32":
    import fcntl

RUN_FILE, CURVE_FILE, RESULT_FILE, ERROR_FILE = "run.json", "curve.csv", "result.json", "error.txt"
DISTRIBUTIONS_FILE, WORK_FOLDER, LOCK_FILE = "distributions.npz", "work", ".lock"

FORMAT, FORMAT_VERSION = "safe-m3-taxi benchmark run", 1


@dataclass(frozen=True)
class Settings:
    """What a run's numbers are determined by, but for machine and versions: a run goes on only under the same.

    Attributes:
        algorithm: Name of the algorithm.
        source: SHA-256 of the script that the algorithm is from and of the settings it is registered with; None without both.
        scenario: Name of the city.
        world: What tells the world from others: cells, horizon, noise, constraints, the city's fingerprint and so on, see
            :func:`~safe_m3_agent.worlds.world_facts`.
        seed: Seed of the run.
        env_steps: Budget, see :class:`~baselines.algorithm.Budget`.
        seconds: Budget.
        device: Kind of device, such as ``"cpu"``.
        taxis: Size of the fleets that the final policy is judged with; 0 for none.
        fleet_runs: How many of them; 0 for none.
    """

    algorithm: str
    source: str | None
    scenario: str
    world: dict[str, Any]
    seed: int
    env_steps: int
    seconds: float
    device: str
    taxis: int
    fleet_runs: int


@dataclass(frozen=True)
class Result:
    """What came of a run: the policy that the algorithm returned, judged; and what learning it took.

    Attributes:
        score: As in :class:`~baselines.curve.Row`, of the policy returned; so are ``reward`` to ``violations``.
        bound: Return that scores 1: the certified bound, nats.
        stay: Return of staying put, which scores 0.
        env_steps: Of the last record; so are ``episodes`` and ``violated``.
        seconds: Time of learning until the algorithm returned.
        fleet: Means over the fleets by the names of :data:`~mf_taxi_env.fleet_metrics.METRICS`, and the shares of fleets
            ``violated`` and ``corrected``, see :func:`~baselines.judgement.judge_fleets`; None where none were run.
        stay_margin: Smallest margin of staying put, see :func:`~baselines.judgement.stay_margin`: below 0, a score of 0 is that
            of an unsafe fleet. None in results from before it was recorded, and where the world has no constraint.
        gap: By how many nats the true optimum may exceed ``bound`` at most, over all steps, by the bound's certificate. None in
            results from before it was recorded.
    """

    score: float
    reward: float
    min_margin: float
    kl: float
    entropy: float
    violations: int
    bound: float
    stay: float
    env_steps: int
    episodes: int
    violated: int
    seconds: float
    fleet: dict[str, float] | None
    stay_margin: float | None = None
    gap: float | None = None


@dataclass(frozen=True)
class RecordedRun:
    """A run as its folder tells it.

    Attributes:
        folder: The folder.
        settings: What it was run with.
        label: What tables call the algorithm.
        oracle: Whether the algorithm is given the true motion.
        asked: What was asked for at the shell: ``algorithm``, ``scenario``, ``cells``.
        starts: Machine, its load, versions and commit of every start.
        rows: The learning curve so far.
        result: None while the run is unfinished.
        error: Why its last start failed, a traceback; None where it did not.
    """

    folder: Path
    settings: Settings
    label: str
    oracle: bool
    asked: dict[str, Any]
    starts: list[dict[str, Any]]
    rows: list[Row]
    result: Result | None
    error: str | None


def read_run(folder: Path) -> RecordedRun:
    """A run, finished or not.

    Raises:
        ValueError: If a file is not readable, or of another version.
    """
    facts = _read_facts(folder)
    error = folder / ERROR_FILE
    return RecordedRun(
        folder,
        facts["settings"],
        facts["label"],
        facts["oracle"],
        facts["asked"],
        facts["starts"],
        Curve(folder / CURVE_FILE).rows,
        read_result(folder),
        error.read_text(encoding="utf-8") if error.exists() else None,
    )


def read_result(folder: Path) -> Result | None:
    """What came of a run; None while it is unfinished.

    Raises:
        ValueError: If the file is not readable.
    """
    path = folder / RESULT_FILE
    if not path.exists():
        return None
    try:
        facts = json.loads(path.read_text())
        facts = {"stay_margin": None, "gap": None} | facts  # not in older results
        hints = get_type_hints(Result)
        return Result(**{name: _number(facts[name], hints[name] is float) for name in hints})
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no readable result: {error!r}") from error


def check_settings(folder: Path, settings: Settings) -> None:
    """Whether a folder may hold a run of these settings: it is empty, or its run has them.

    Raises:
        ValueError: If it holds another run, naming what differs, or one that is not readable.
    """
    if not (folder / RUN_FILE).exists():
        return
    there = _flat(dataclasses.asdict(_read_facts(folder)["settings"]))
    here = _flat(json.loads(json.dumps(dataclasses.asdict(settings))))
    different = [
        f"{name} ({there.get(name)!r} there, {here.get(name)!r} now)"
        for name in {**there, **here}
        if there.get(name) != here.get(name)
    ]
    if different:
        raise ValueError(
            f"{folder} holds a run of other settings: {', '.join(different)}; run those, or choose another folder with --out"
        )


def write_start(
    folder: Path, settings: Settings, *, label: str, oracle: bool, asked: Mapping[str, Any], start: Mapping[str, Any]
) -> None:
    """Write ``run.json``, or add a start to it.

    Args:
        folder: The run's folder, there already.
        settings: What the run is of.
        label: What tables call the algorithm.
        oracle: Whether it is given the true motion.
        asked: What was asked for at the shell.
        start: Time, machine, its load, versions and commit.

    Raises:
        ValueError: If the folder holds a run of other settings.
    """
    check_settings(folder, settings)
    before = _read_facts(folder)["starts"] if (folder / RUN_FILE).exists() else []
    facts = {
        "format": FORMAT, "version": FORMAT_VERSION, "settings": dataclasses.asdict(settings),
        "label": label, "oracle": oracle, "asked": dict(asked), "starts": [*before, dict(start)],
    }  # fmt: skip
    _write_json(folder / RUN_FILE, facts)


def write_result(folder: Path, result: Result) -> None:
    """Write ``result.json``, whole or not at all: the run is finished by it."""
    _write_json(folder / RESULT_FILE, _strict(dataclasses.asdict(result)))


class LockedError(ValueError):
    """Another process is at the run."""


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """While the block runs no other process may do so for the same folder, but on Windows; a killed process lets go.

    Two benchmarks may be told to write one folder, from two machines even.

    Raises:
        LockedError: If another process is at it.
    """
    with (folder / LOCK_FILE).open("a") as file:
        if sys.platform != "win32":
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError) as error:  # which of them is up to the system
                raise LockedError(f"{folder} is being written by another process: wait for it, or end it") from error
            except OSError:  # a disk without locks: nothing is known
                pass
        yield


def _read_facts(folder: Path) -> dict[str, Any]:
    path = folder / RUN_FILE
    try:
        facts: dict[str, Any] = json.loads(path.read_text())
        if (facts["format"], facts["version"]) != (FORMAT, FORMAT_VERSION):
            raise ValueError(f"format {facts['format']!r}, version {facts['version']!r}; this is version {FORMAT_VERSION}")
        missing = {"label", "oracle", "asked", "starts"} - facts.keys()
        if missing:
            raise ValueError(f"it lacks {sorted(missing)}")
        return {**facts, "settings": Settings(**facts["settings"])}
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{path} is no readable run of the benchmark: {error}") from error


def _write_json(path: Path, facts: Mapping[str, Any]) -> None:
    text = json.dumps(facts, indent=2, allow_nan=False) + "\n"
    with replacing(path) as temporary:
        temporary.write_text(text)


def _strict(value: Any) -> Any:
    """As strict JSON has it: null for what is no finite number."""
    if isinstance(value, dict):
        return {name: _strict(one) for name, one in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _number(value: Any, is_float: bool) -> Any:
    """What :func:`_strict` wrote, NaN for null."""
    if isinstance(value, dict):
        return {name: _number(one, True) for name, one in value.items()}
    return math.nan if value is None and is_float else value


def _flat(facts: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested facts by their dotted names."""
    flat: dict[str, Any] = {}
    for name, value in facts.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat
