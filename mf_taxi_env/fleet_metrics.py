"""What operators measure of a fleet, per step, per episode and over runs. The page on the fleet in ``docs/`` defines each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, cast

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from mf_taxi_env.checks import finite_number, whole_number
from mf_taxi_env.finite_samples import corrected_margins
from mf_taxi_env.fleet import FleetRollout
from mf_taxi_env.grid import Grid
from mf_taxi_env.information import MASS_FLOOR, entropy_fraction
from mf_taxi_env.mdp import Field, Trajectory, broken, worst
from mf_taxi_env.scenarios.city import box_km
from mf_taxi_env.scenarios.trips import slice_minutes
from mf_taxi_env.taxi import TaxiMDP

__all__ = [
    "METRICS",
    "STEP_MINUTES",
    "Estimate",
    "Metric",
    "MetricSettings",
    "Steps",
    "episode_metrics",
    "estimate",
    "fleet_metrics",
    "gini",
    "mean_field_metrics",
    "over_runs",
    "step_minutes",
]

#: Length of a step, as in the paper, in a city whose trips were not cut into slices of time.
STEP_MINUTES = 15.0


class Metric(NamedTuple):
    """How a metric is read."""

    unit: str
    episode: Literal["mean", "sum", "min"]  #: what an episode makes of its steps


#: Every metric by its name.
METRICS: Mapping[str, Metric] = {
    "served_demand": Metric("share of requests", "mean"),
    "occupancy": Metric("share of taxis", "mean"),
    "waiting_minutes": Metric("minutes per request", "mean"),
    "repositioning_km": Metric("km per taxi", "sum"),
    "empty_km": Metric("km per taxi", "sum"),
    "carried_km": Metric("km per taxi", "sum"),
    "coverage": Metric("share of cells", "mean"),
    "residents_in_reach": Metric("share of residents", "mean"),
    "gini": Metric("0 to 1", "mean"),
    "entropy": Metric("share of log K", "min"),
    "kl": Metric("nats", "mean"),
    "margin": Metric("unit of the constraint", "min"),
    "violations": Metric("steps", "sum"),
    "corrected_margin": Metric("unit of the constraint", "min"),
    "corrected_violations": Metric("steps", "sum"),
}

Steps = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class MetricSettings:
    """What some metrics leave open.

    Attributes:
        coverage_floor: A cell is covered from this share of an even fleet's mass ``1 / K`` on; positive.
        districts: Districts per axis that the Gini coefficient compares; ``k`` where that is less.
        residents: Residents per cell ``[K]``, in any unit; ``None`` leaves them out.
        reach_km: A resident is in reach of a covered cell whose centre is this near to that of the resident's; at least 0.
    """

    coverage_floor: float = 0.1
    districts: int = 5
    residents: ArrayLike | Tensor | None = None
    reach_km: float = 1.0

    def __post_init__(self) -> None:
        whole_number("districts", self.districts, least=1)
        finite_number("coverage_floor", self.coverage_floor, positive=True)
        finite_number("reach_km", self.reach_km)


def fleet_metrics(rollout: FleetRollout, city: TaxiMDP, settings: MetricSettings | None = None) -> Steps:
    """Metrics of each step of a fleet's episode, ``[T]`` each.

    Args:
        rollout: The episode.
        city: Where it happened.
        settings: What is left open.

    Returns:
        By the names of :data:`METRICS`; without residents, ``residents_in_reach`` is left out.

    Raises:
        ValueError: If the settings do not fit the city's grid.
    """
    steps = _of_distributions(rollout.distributions, city, settings or MetricSettings(), len(rollout.positions))
    return steps | {
        "occupancy": rollout.occupied,
        "repositioning_km": rollout.travelled_km,
        "empty_km": rollout.empty_km,
        "carried_km": rollout.carried_km,
    }


def mean_field_metrics(
    path: Trajectory, city: TaxiMDP, settings: MetricSettings | None = None, *, policy: Field | None = None
) -> Steps:
    """The same of the mean field, an infinite fleet, where they make sense.

    Args:
        path: One episode, without batch dimensions.
        city: Where it happened.
        settings: What is left open.
        policy: What the fleet did; without it ``repositioning_km`` is left out.

    Returns:
        By the names of :data:`METRICS`, without ``empty_km`` and ``carried_km``, which are of single taxis.
    """
    steps = _of_distributions(path.mu, city, settings or MetricSettings(), math.inf)
    steps["occupancy"] = steps["served_demand"]
    if policy is not None:
        steps["repositioning_km"] = torch.stack([_repositioning(path.mu[t], city, policy, t) for t in range(city.horizon)])
    return steps


def _of_distributions(mu: Tensor, city: TaxiMDP, settings: MetricSettings, taxis: float) -> Steps:
    """What distributions ``[T + 1, K]`` alone say."""
    before, after = mu[:-1], mu[1:]
    demand = torch.stack([city.demand(t) for t in range(len(after))])
    margins = city.margins(after)
    corrected = corrected_margins(margins, city, taxis)
    covered = after >= settings.coverage_floor / city.grid.size
    steps = {
        "served_demand": torch.minimum(before, demand).sum(-1),
        "waiting_minutes": _waiting(before, demand, city),
        "coverage": covered.to(mu.dtype).mean(-1),
        "gini": gini(after, city.grid, min(settings.districts, city.grid.cells)),
        "entropy": entropy_fraction(after),
        "kl": torch.stack([city.target_kl(after[t], t) for t in range(len(after))]),
        "margin": worst(margins),
        "violations": broken(margins).to(mu.dtype),
        "corrected_margin": worst(corrected),
        # A correction that is not known leaves open whether the margin is kept.
        "corrected_violations": torch.where(corrected.isnan().any(-1), math.nan, broken(corrected).to(mu.dtype)),
    }
    if settings.residents is not None:
        steps["residents_in_reach"] = _in_reach(covered, city, settings)
    return steps


def episode_metrics(steps: Mapping[str, Tensor]) -> dict[str, float]:
    """What an episode makes of its steps: the mean, the sum or the least, see :data:`METRICS`."""
    return {name: float(getattr(values, METRICS[name].episode)()) for name, values in steps.items()}


class Estimate(NamedTuple):
    """A number of runs and its confidence interval; the interval is NaN where there is none, as for a single run."""

    mean: float
    low: float
    high: float
    runs: int


def over_runs(episodes: Sequence[Mapping[str, float]], confidence: float = 0.95) -> dict[str, Estimate]:
    """Mean and Student's confidence interval of each metric over independent runs.

    Args:
        episodes: One entry of metrics per run, all of the same names; at least one run.
        confidence: Probability that the interval covers the mean, in ``(0, 1)``, were the runs' values normal.

    Raises:
        ValueError: If there are no runs, or the confidence is out of range.

    Example:
        >>> over_runs([{"kl": 1.0}, {"kl": 2.0}, {"kl": 3.0}])["kl"]
        Estimate(mean=2.0, low=-0.484..., high=4.484..., runs=3)
    """
    if not episodes:
        raise ValueError("episodes must hold at least one run, got none")
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must lie in (0, 1), got {confidence!r}")
    return {name: estimate([episode[name] for episode in episodes], confidence) for name in episodes[0]}


def estimate(values: Sequence[float], confidence: float = 0.95) -> Estimate:
    """Mean and Student's confidence interval of a number of independent runs, as in :func:`over_runs`.

    Args:
        values: One per run, at least one; NaN or infinite ones leave no interval.
        confidence: Probability that the interval covers the mean, in ``(0, 1)``, were the values normal.
    """
    from scipy.stats import t as student  # a second to import, which importing the package should not take

    runs, mean = len(values), math.fsum(values) / len(values)
    if runs == 1:
        return Estimate(mean, math.nan, math.nan, 1)
    error = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (runs - 1) / runs)
    half = float(student.ppf(0.5 + confidence / 2, runs - 1)) * error if error else 0.0
    return Estimate(mean, mean - half, mean + half, runs)


def gini(mu: Tensor, grid: Grid, districts: int) -> Tensor:
    """Gini coefficient of the density of taxis over districts, ``[...]``: 0 where it is even, towards 1 in one district.

    Args:
        mu: Distributions ``[..., K]``.
        grid: Their grid, of the unit square.
        districts: Districts per axis, at most the cells per axis. Cells belong to the district that their centre is in.
            Where sizes differ, districts count by their area.
    """
    whole_number("districts", districts, least=1, most=grid.cells)
    labels = Grid(districts).index(grid.centers(dtype=torch.float64, device=mu.device))
    area = torch.bincount(labels, minlength=districts**2).to(mu.dtype) / grid.size
    mass = mu.new_zeros(*mu.shape[:-1], len(area)).index_add(-1, labels, mu)
    density = mass / area  # 1 on average
    apart = (density.unsqueeze(-1) - density.unsqueeze(-2)).abs()
    return 0.5 * ((apart * area).sum(-1) * area).sum(-1)


def _waiting(mu: Tensor, demand: Tensor, city: TaxiMDP) -> Tensor:
    """Minutes ``[...]`` that a request waits, were fleet ``[..., K]`` and demand ``[..., K]`` to stay as they are.

    In a cell a request is met with probability ``p = min(1, mu / rho)`` per step, so it waits ``1 / p - 1`` steps on average.
    """
    steps = (demand / mu.clamp_min(MASS_FLOOR) - 1.0).clamp(0.0, float(city.horizon))
    return step_minutes(city) * (demand * steps).sum(-1)


def step_minutes(city: TaxiMDP) -> float:
    """Length of a step in minutes: that of a slice of the trips' window, and 15 where there are no slices."""
    return slice_minutes(city.scenario.provenance) or STEP_MINUTES


def _repositioning(mu: Tensor, city: TaxiMDP, policy: Field, t: int) -> Tensor:
    """Mean length in kilometres of the moves at step ``t`` from ``mu`` ``[K]``."""
    shifted = city.shift(mu, t)
    goals = city.motion(city.centers, shifted, policy.field(shifted, t))
    lengths = torch.hypot(*((goals - city.centers) * _sides(city)).unbind(-1))
    return (shifted * lengths).sum()


def _in_reach(covered: Tensor, city: TaxiMDP, settings: MetricSettings) -> Tensor:
    """Share of residents ``[...]`` near one of the cells that are ``covered`` ``[..., K]``."""
    residents = torch.as_tensor(cast(Tensor, settings.residents), dtype=city.dtype, device=city.device)
    if residents.shape != (city.grid.size,) or not bool((residents >= 0).all()) or not bool(0 < residents.sum() < math.inf):
        raise ValueError(f"residents must be {city.grid.size} numbers >= 0, not all zero, got shape {tuple(residents.shape)}")
    k, sides = city.grid.cells, [side / city.grid.cells for side in box_km(city.scenario.box)]
    reach = settings.reach_km * (1 + 1e-9)  # a centre exactly that far is in reach
    # A stencil rather than all pairs of cells, which on fine grids would not fit into memory.
    i, j = (int(min(reach / side, k - 1)) for side in sides)
    x, y = (torch.arange(-n, n + 1, dtype=torch.float64, device=city.device) for n in (i, j))
    near = (torch.hypot(x.unsqueeze(-1) * sides[0], y * sides[1]) <= reach).to(city.dtype)
    found = torch.nn.functional.conv2d(covered.to(city.dtype).reshape(-1, 1, k, k), near[None, None], padding=(i, j)) > 0.5
    return found.reshape(covered.shape).to(city.dtype) @ (residents / residents.sum())


def _sides(city: TaxiMDP) -> Tensor:
    return city.centers.new_tensor(box_km(city.scenario.box))
