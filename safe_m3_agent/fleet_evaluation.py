"""Trained policies with finite fleets: many sizes, many episodes each, on many processes; and what they say together."""

from __future__ import annotations

import math
import time
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mf_taxi_env import EntropyFloor, FleetRollout, FleetSimulator, TaxiMDP, Trajectory
from mf_taxi_env.checks import whole_number
from mf_taxi_env.finite_samples import fleet_size_for
from mf_taxi_env.fleet import Resolution
from mf_taxi_env.fleet_metrics import episode_metrics, fleet_metrics
from mf_taxi_env.safety import scatter
from safe_m3_agent.fleet_table import FleetEpisode, FleetKey, FleetTable
from safe_m3_agent.hallucination import FLEET_DEVIATIONS
from safe_m3_agent.jobs import RETRIES, Job, JobsError, Outcome, run_jobs
from safe_m3_agent.policy import Policy, fingerprint


class Subject(NamedTuple):
    """What is evaluated: a policy in its world."""

    world: TaxiMDP
    policy: Policy
    executed: Trajectory  #: its episode in the mean field

    @classmethod
    def of(cls, world: TaxiMDP, policy: Policy) -> Subject:
        """A policy with its episode in the mean field."""
        with torch.no_grad():
            return cls(world, policy, world.rollout(policy))


def sufficient_taxis(subject: Subject) -> float:
    """The smallest fleet that keeps entropy floors as it is, uncorrected, but for scatter beyond ``FLEET_DEVIATIONS``.

    The smallest ``m``, at least ``K``, with ``(K - 1) / (2 m) + 3.5 sqrt(V(mu_t) / m)`` at most the margin of the mean field's
    ``mu_t`` at every step (:func:`~mf_taxi_env.finite_samples.fleet_size_for`, :func:`~mf_taxi_env.safety.scatter`): to first
    order, for taxis that are drawn from ``mu_t`` independently, and for entropy floors alone.

    Args:
        subject: The policy and its episode in the mean field.

    Returns:
        The fleet size; infinite where a margin is not positive, NaN in a world without an entropy floor.
    """
    world, after = subject.world, subject.executed.mu[1:]
    of = _floors(world)
    if not of:
        return math.nan
    spread = FLEET_DEVIATIONS * scatter([world.constraints[i] for i in of], after)
    cases = zip(subject.executed.margins[:, of].flatten().tolist(), spread.flatten().tolist(), strict=True)
    return max(fleet_size_for(margin, world.grid.size, deviation) for margin, deviation in cases)


def entropy_margin(subject: Subject) -> float:
    """The smallest margin of entropy floors in the mean field, in nats; NaN in a world without."""
    of = _floors(subject.world)
    return float(subject.executed.margins[:, of].min()) if of else math.nan


def _floors(world: TaxiMDP) -> list[int]:
    return [i for i, constraint in enumerate(world.constraints) if isinstance(constraint, EntropyFloor)]


@torch.no_grad()
def measure(subjects: dict[str, Subject], name: str, taxis: int, seed: int, resolution: Resolution) -> FleetEpisode:
    """One episode of a finite fleet. Large fleets are gone when this returns: what it keeps has no entry per taxi.

    Args:
        subjects: Policies by name.
        name: Which of them.
        taxis: Fleet size.
        seed: Seed of the fleet.
        resolution: Where a taxi acts and departs from.
    """
    world, policy, executed = subjects[name]
    start = time.perf_counter()
    rollout = FleetSimulator(world, taxis, seed=seed, resolution=resolution).rollout(policy)
    seconds = time.perf_counter() - start
    return _measured(FleetKey(fingerprint(policy), resolution, taxis, seed), world, rollout, executed, seconds)


def _measured(key: FleetKey, world: TaxiMDP, rollout: FleetRollout, executed: Trajectory, seconds: float) -> FleetEpisode:
    steps = fleet_metrics(rollout, world)
    summed: dict[str, Any] = {**episode_metrics(steps)}
    # A world's reward is of distributions alone: what a city pays for does not depend on the moves.
    still = world.centers.new_zeros(world.grid.size, world.action_dim)
    mu = rollout.distributions
    rewards = [float(world.reward(mu[t], still, mu[t + 1], t)) for t in range(world.horizon)]
    return FleetEpisode(
        *key,
        reward=sum(rewards),
        gap=float(0.5 * (mu[1:] - executed.mu[1:]).abs().sum(-1).mean()),
        seconds=seconds,
        step_kl=tuple(steps["kl"].tolist()),
        step_margin=tuple(steps["margin"].tolist()),
        **summed,
    )


def evaluate_fleets(
    subjects: dict[str, Subject],
    taxis: Sequence[int],
    runs: int,
    *,
    seed: int = 0,
    resolution: Resolution = "cell",
    progress: Callable[[int], object] = lambda taxis: None,
    workers: int | None = None,
    ray: str | None = None,
    retries: int = RETRIES,
) -> None:
    """Evaluate policies at fleet sizes and record every episode in ``fleet.csv`` of the policy's folder as soon as it is over.

    Episodes that are recorded there are not simulated again: a call that was interrupted goes on with what is missing.

    Args:
        subjects: Policies by their folder.
        taxis: Fleet sizes.
        runs: Episodes of every size, with the seeds ``seed``, ``seed + 1``, ...
        seed: The first seed.
        resolution: Where a taxi acts and departs from.
        progress: Called with the size of every fleet that is over.
        workers: Processes, see :func:`~safe_m3_agent.jobs.run_jobs`.
        ray: Address of a Ray cluster that runs the episodes instead.
        retries: How often an episode is tried again whose worker was lost.

    Raises:
        ValueError: If an argument is out of range, or a table is not readable.
        JobsError: If some episodes failed; all others are recorded.
    """
    sizes = sorted({whole_number("taxis", size, least=1) for size in taxis})
    seeds = range(whole_number("seed", seed, least=0), seed + whole_number("runs", runs, least=1))
    if not sizes:
        raise ValueError("taxis must name at least one fleet size, got none")
    tables = {name: FleetTable(Path(name), subject.world.horizon) for name, subject in subjects.items()}
    wanted = [
        (name, FleetKey(fingerprint(subject.policy), resolution, size, one))
        for size in sizes  # small fleets first: something can be read early
        for name, subject in subjects.items()
        for one in seeds
    ]
    missing = [(name, key) for name, key in wanted if key not in tables[name]]
    for _, key in set(wanted) - set(missing):
        progress(key.taxis)
    jobs = [Job((name, key.taxis, key.seed), measure, (name, key.taxis, key.seed, resolution)) for name, key in missing]
    failed: list[Outcome] = []
    for outcome in run_jobs(jobs, shared=(subjects,), workers=workers, ray=ray, retries=retries):
        name, size, _ = typing.cast("tuple[str, int, int]", outcome.key)
        if outcome.error is None:
            tables[name].append(outcome.value)
        else:
            failed.append(outcome)
        progress(size)
    if failed:
        raise JobsError(failed)


def recorded_fleets(
    folder: Path, subject: Subject, resolution: Resolution, taxis: Sequence[int] = (), seeds: Sequence[int] = ()
) -> list[FleetEpisode]:
    """What is recorded in a folder of a policy with finite fleets, by fleet size and seed.

    Args:
        folder: The run's folder.
        subject: The policy: episodes of another one, from before training went on, do not count.
        resolution: Where a taxi acts and departs from.
        taxis: Fleet sizes; all where empty.
        seeds: Seeds; all where empty.

    Raises:
        ValueError: If the table is not readable.
    """
    found = FleetTable(folder, subject.world.horizon).episodes(fingerprint(subject.policy), resolution)
    return [one for one in found if (not taxis or one.taxis in taxis) and (not seeds or one.seed in seeds)]
