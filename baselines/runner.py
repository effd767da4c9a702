"""Carries out the runs of the benchmark: here, on local processes or on a Ray cluster, each as if it were alone."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Hashable, Iterator, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

import numpy as np
import torch

from baselines.algorithm import Algorithm, Budget, Task, find_algorithm
from baselines.curve import Curve
from baselines.judgement import Judge, judge_fleets, stay_margin
from baselines.plans import Plan, city_world, digest
from baselines.provenance import commit, load, machine, reference_seconds, versions
from baselines.recorder import CurveRecorder
from baselines.run_folder import (
    CURVE_FILE,
    DISTRIBUTIONS_FILE,
    ERROR_FILE,
    WORK_FOLDER,
    LockedError,
    Result,
    locked,
    read_result,
    write_result,
    write_start,
)
from mf_taxi_env import Scenario
from mf_taxi_env.atomic import replacing
from safe_m3_agent.jobs import RETRIES, Job, cpus, run_jobs

#: What learning imports when it first needs it, torch's optimizers as well: a clock that runs meanwhile would call it learning.
LIBRARIES = ("torch._dynamo", "torch.utils.tensorboard", "safetensors.torch", "gpytorch", "ot", "stable_baselines3")


class Refused(NamedTuple):
    """A run that was not carried out: another process is at it, or its algorithm has changed. What is recorded is as it was."""

    reason: str


def run_all(
    plans: Sequence[Plan],
    cities: dict[str, Scenario],
    device: str,
    *,
    workers: int | None = None,
    ray: str | None = None,
    retries: int = RETRIES,
    isolated: bool = True,
) -> Iterator[tuple[Plan, Result | Refused | None]]:
    """Carry out runs; one that fails leaves its traceback in its folder, and the others go on.

    Args:
        plans: Runs that are not finished.
        cities: The cities that they are in.
        device: torch device.
        workers: Runs at a time, see :func:`~safe_m3_agent.jobs.run_jobs`, as for the next two.
        ray: Address of a Ray cluster that carries them out instead.
        retries: How often a run is tried again whose worker was lost.
        isolated: Whether each run has a process of its own, so that none meets what another has left in it, or ends with it.

    Yields:
        Each run, as soon as it is over, with its result; None where it failed, a refusal where it was not carried out.
    """
    by_folder: dict[Hashable, Plan] = {plan.folder: plan for plan in plans}
    at_a_time = "ray" if ray else min(workers or cpus(), len(plans))
    jobs = [Job(plan.folder, carry_out, (plan, device, at_a_time)) for plan in plans]
    for outcome in run_jobs(jobs, shared=(cities,), workers=workers, ray=ray, retries=retries, isolated=isolated):
        plan = by_folder[outcome.key]
        if isinstance(outcome.value, Refused):
            yield plan, outcome.value
            continue
        error = outcome.error
        if error is None and not plan.finished:
            error = f"its result is not in {plan.folder}: the machines of a cluster need one disk for the benchmark's folder"
        if error is not None:
            _leave(error, plan)
        yield plan, None if error is not None else read_result(plan.folder)


def _leave(error: str, plan: Plan) -> None:
    """Write a traceback to the run's folder; where the disk refuses, which is no reason to end other runs, to stderr."""
    try:
        plan.folder.mkdir(parents=True, exist_ok=True)
        with replacing(plan.folder / ERROR_FILE) as temporary:
            temporary.write_text(error.rstrip() + "\n", encoding="utf-8", errors="backslashreplace")
    except OSError as refusal:
        print(f"baselines: {plan.name} failed, and {ERROR_FILE} cannot be written: {refusal}\n{error}", file=sys.stderr)


def carry_out(cities: dict[str, Scenario], plan: Plan, device: str, at_a_time: int | str) -> Refused | None:
    """One run from its start, or from where it was killed, to its result.

    Args:
        cities: All cities of the benchmark.
        plan: The run.
        device: torch device.
        at_a_time: Runs at a time on this machine, for the record.

    Returns:
        Why it was not carried out, where another process is at it, or the algorithm is not the one that was planned; else
        nothing: the result is in its folder.

    Raises:
        ValueError: If the algorithm recorded nothing.
    """
    (plan.folder / WORK_FOLDER).mkdir(parents=True, exist_ok=True)
    try:
        with locked(plan.folder):
            if not plan.finished:  # by another process meanwhile
                algorithm = find_algorithm(plan.algorithm)
                if digest(plan.algorithm, algorithm) != plan.settings.source:
                    return Refused(
                        f"{plan.name}: {plan.algorithm} is not what it was when the benchmark was started: its script has "
                        "changed since, or the settings that it is registered with have a repr that is another in every "
                        "process; run it with another --out"
                    )
                _carry_out(algorithm, cities[plan.scenario], plan, torch.device(device), at_a_time)
    except LockedError as error:
        return Refused(str(error))
    return None


def _import_libraries() -> None:
    for name in LIBRARIES:
        with contextlib.suppress(Exception):  # not installed, or not working: the algorithm that needs it will say so
            importlib.import_module(name)


def _carry_out(algorithm: Algorithm, city: Scenario, plan: Plan, place: torch.device, at_a_time: int | str) -> None:
    folder, settings = plan.folder, plan.settings
    (folder / ERROR_FILE).unlink(missing_ok=True)
    start = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"), "commit": commit(), "at_a_time": at_a_time,
        "load": load(), "reference_seconds": reference_seconds(), "machine": machine(place), "versions": versions(),
    }  # fmt: skip
    write_start(folder, settings, label=plan.label, oracle=plan.oracle, asked=plan.asked, start=start)
    budget = Budget(settings.env_steps, settings.seconds)
    judge, curve = Judge(city_world(city, place)), Curve(folder / CURVE_FILE)
    _import_libraries()
    task = Task(city_world(city, place), settings.seed, budget, folder / WORK_FOLDER, place)
    record = CurveRecorder(judge, curve, budget, resumed=any(task.folder.iterdir()))
    policy = algorithm.train(task, record)
    seconds = record.seconds
    if not curve.rows:
        raise ValueError(f"{plan.algorithm} returned without a record: it must call its recorder at least once")
    judgement, mu = judge(policy)
    fleet, fleets = None, mu.new_zeros(0, *mu.shape)
    if settings.fleet_runs:
        fleet, fleets = judge_fleets(policy, judge.world, settings.taxis, settings.fleet_runs)
    with replacing(folder / DISTRIBUTIONS_FILE) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, mean_field=mu.cpu().numpy(), fleets=fleets.cpu().numpy())
    last = curve.rows[-1]
    write_result(
        folder,
        Result(
            **judgement._asdict(),
            bound=judge.bound.reward,
            stay=judge.stay,
            env_steps=last.env_steps,
            episodes=last.episodes,
            violated=last.violated,
            seconds=seconds,
            fleet=fleet,
            stay_margin=stay_margin(judge.world),
            gap=judge.bound.upper - judge.bound.reward,
        ),
    )
