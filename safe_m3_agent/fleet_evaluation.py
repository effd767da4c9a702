"""Trained policies with finite fleets: many sizes, many episodes each, on many processes; and what they say together."""

from __future__ import annotations

import hashlib
import math
import time
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from mf_taxi_env import EntropyFloor, FleetRollout, FleetSimulator, TaxiMDP, Trajectory
from mf_taxi_env.checks import whole_number
from mf_taxi_env.fleet import Resolution
from mf_taxi_env.information import entropy_fraction, kl_divergence
from safe_m3_agent.fleet_table import FleetEpisode, FleetKey, FleetTable
from safe_m3_agent.jobs import RETRIES, Job, JobsError, Outcome, run_jobs
from safe_m3_agent.policy import Policy


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


def fingerprint(policy: Policy) -> str:
    """Twelve digits that tell a policy from others: of all its parameters, bit by bit."""
    digest = hashlib.sha256()
    for name, value in policy.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


def entropy_bias(cells: int, taxis: int) -> float:
    """How far, in nats, the entropy of ``m`` samples falls short of that of their distribution: about ``(K - 1) / (2 m)``.

    The first term of an expansion for many samples per cell (Miller 1955). With fewer taxis than cells it says nothing: it
    would exceed what the entropy can be off by, and call every fleet safe.

    Args:
        cells: Number of cells ``K``.
        taxis: Fleet size ``m``.

    Returns:
        The shortfall; NaN for ``m < K``.
    """
    return (cells - 1) / (2 * taxis) if taxis >= cells else math.nan


def taxis_for_certificate(cells: int, margin: float) -> int | None:
    """The smallest fleet whose :func:`entropy_bias` is at most a policy's margin in the mean field.

    Args:
        cells: Number of cells ``K``.
        margin: Smallest margin of entropy floors in the mean field, in nats.

    Returns:
        The fleet size, at least ``K``; None where there is no margin.
    """
    return max(cells, math.ceil((cells - 1) / (2 * margin))) if margin > 0 else None


def entropy_margin(subject: Subject) -> float:
    """The smallest margin of entropy floors in the mean field, in nats; NaN in a world without."""
    floors = [isinstance(constraint, EntropyFloor) for constraint in subject.world.constraints]
    return float(subject.executed.margins[:, floors].min()) if any(floors) else math.nan


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
    fleets, taxis = rollout.distributions[1:], key.taxis
    kl = kl_divergence(torch.stack([world.demand(t) for t in range(world.horizon)]), fleets)
    margins = world.margins(fleets)
    floors = torch.tensor([isinstance(constraint, EntropyFloor) for constraint in world.constraints], dtype=torch.bool)
    corrected = margins.clone()
    corrected[:, floors] += entropy_bias(world.grid.size, taxis)
    known = not bool(corrected.isnan().any())
    # A world's reward is of distributions alone: what a city pays for does not depend on the moves.
    still = world.centers.new_zeros(world.grid.size, world.action_dim)
    rewards = [
        float(world.reward(rollout.distributions[t], still, rollout.distributions[t + 1], t)) for t in range(world.horizon)
    ]
    return FleetEpisode(
        *key,
        reward=sum(rewards),
        kl=float(kl.mean()),
        entropy=float(entropy_fraction(fleets).min()),
        min_margin=min(_worst(margins)),
        corrected_margin=min(_worst(corrected)) if known else math.nan,
        violations=_violations(margins),
        corrected_violations=float(_violations(corrected)) if known else math.nan,
        occupied=float(rollout.occupied.mean()),
        travelled_km=float(rollout.travelled_km.mean()),
        gap=float(0.5 * (fleets - executed.mu[1:]).abs().sum(-1).mean()),
        seconds=seconds,
        step_kl=tuple(kl.tolist()),
        step_margin=tuple(_worst(margins)),
    )


def _worst(margins: Tensor) -> list[float]:
    """The smallest margin of every step, from ``[T, n_constraints]``."""
    worst: list[float] = torch.cat([margins, margins.new_full((len(margins), 1), math.inf)], -1).amin(-1).tolist()
    return worst


def _violations(margins: Tensor) -> int:
    return int((~(margins >= 0)).any(-1).sum())  # a margin that is no number is not kept


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
