"""Cities out of nothing but a seed: hotspots, gravity trips, and a demand of a given entropy. NumPy only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from mf_taxi_env.checks import whole_number
from mf_taxi_env.scenarios.city import Component, DistanceDecay, Mixture, ParametricCity
from mf_taxi_env.scenarios.scenario import Scenario, validated_floor

#: A square of about 14 km on the open sea: no real city.
BOX = (0.0, 0.125, 0.0, 0.125)
HOTSPOTS = 8


def synthetic_scenario(
    cells: int = 25,
    seed: int = 0,
    *,
    entropy: float = 0.67,
    entropy_floor: float = 0.85,
    hotspots: int = HOTSPOTS,
) -> Scenario:
    """A made-up city whose demand is as concentrated as asked for.

    Hotspots are places where many trips start; they attract trips as well, each by a strength of its own. Trips follow the
    gravity model of :class:`~mf_taxi_env.scenarios.city.ParametricCity`. The defaults are the entropy of demand and the safety
    constraint of arXiv 2306.17052, Section 5.

    Args:
        cells: Cells per axis, ``k``. A seed is the same city on every grid, but for the entropy, which is exact on each.
        seed: At least 0.
        entropy: Entropy of the demand as a share of ``log K``, in (0, 1]; met to better than 1e-3.
        entropy_floor: The scenario's default constraint, as a share of ``log K``.
        hotspots: Their number, at least 1.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> city = synthetic_scenario(cells=10, seed=7)
        >>> city.name, round(city.demand_entropy, 3)
        ('synthetic:7', 0.67)
    """
    cells, seed, hotspots = _checked(cells, seed, entropy, entropy_floor, hotspots)
    rng = np.random.default_rng(seed)
    places = [_hotspot(rng) for _ in range(hotspots)]
    attraction = tuple(place._replace(weight=rng.gamma(2.0) + 0.1) for place in places)
    city = ParametricCity(
        name="synthetic" if seed == 0 else f"synthetic:{seed}",
        box=BOX,
        demand=Mixture(tuple(places), uniform=0.1),
        # Many trips end away from hotspots: people go home.
        attraction=Mixture(attraction, uniform=0.4),
        decay=DistanceDecay(power=0.5, scale_km=rng.uniform(1.0, 2.0), shape=0.8),
        entropy_floor=entropy_floor,
        provenance=f"generated: seed {seed}, {hotspots} hotspots, entropy {entropy:g} of log K",
    ).scenario(cells)
    return replace(city, demand=tempered(city.demand, entropy))


def scenario_family(
    n: int,
    seed: int = 0,
    *,
    cells: int = 25,
    entropy: float = 0.67,
    entropy_floor: float = 0.85,
    hotspots: int = HOTSPOTS,
) -> Iterator[Scenario]:
    """Cities for domain randomisation: ``n`` of them, each from its own seed, made one at a time.

    A longer family of the same ``seed`` begins with the shorter one. The name of each, such as ``synthetic:2968811710``, tells
    its seed; :func:`~mf_taxi_env.load_scenario` makes it again where entropy, floor and hotspots are the defaults.

    Args:
        n: Number of cities, at least 0.
        seed: Seed of the family, at least 0.
        cells: See :func:`synthetic_scenario`, as all that follow.
        entropy: Entropy of the demand.
        entropy_floor: Default constraint.
        hotspots: Number of hotspots.

    Raises:
        ValueError: If an argument is out of range; at the call, before the first city is made.
    """
    n = whole_number("n", n, least=0)
    cells, seed, hotspots = _checked(cells, seed, entropy, entropy_floor, hotspots)
    return (
        synthetic_scenario(cells, member, entropy=entropy, entropy_floor=entropy_floor, hotspots=hotspots)
        for member in np.random.SeedSequence(seed).generate_state(n).tolist()
    )


def tempered(mass: NDArray[np.float64], entropy: float) -> NDArray[np.float64]:
    """Masses ``[K]`` raised to the one power that gives them an entropy, as a share of ``log K``, and normalised.

    The order of the cells stays; a power above one sharpens the hotspots, below one flattens them.

    Args:
        mass: All above zero, with a single largest one where an entropy near zero is asked for.
        entropy: In (0, 1].
    """
    if mass.size == 1:
        return mass
    log = np.log(mass) - np.log(mass).max()

    def at(power: float) -> NDArray[np.float64]:
        weight = np.exp(power * log)
        return np.asarray(weight / weight.sum())

    def entropy_of(power: float) -> float:
        positive = (p := at(power))[p > 0]
        return float(-(positive * np.log(positive)).sum() / np.log(mass.size))

    # Entropy falls from 1 at power 0 without end. Sixty halvings leave no doubt at the precision of a float.
    low, high = 0.0, 1.0
    while entropy_of(high) > entropy and high < 1e6:
        low, high = high, 2.0 * high
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if entropy_of(middle) > entropy else (low, middle)
    return at(high)


def _checked(cells: int, seed: int, entropy: float, entropy_floor: float, hotspots: int) -> tuple[int, int, int]:
    """Cells, seed and number of hotspots, where every argument is in range."""
    if not 0.0 < entropy <= 1.0:
        raise ValueError(f"entropy must lie in (0, 1] (a share of log K), got {entropy!r}")
    validated_floor(entropy_floor)
    return whole_number("cells", cells, 1), whole_number("seed", seed, 0), whole_number("hotspots", hotspots, 1)


def _hotspot(rng: np.random.Generator) -> Component:
    # Away from the edge; between about half a kilometre and two wide.
    x, y = rng.uniform(0.1, 0.9, 2)
    along, across = np.exp(rng.uniform(np.log(0.03), np.log(0.12), 2))
    return Component(rng.gamma(2.0) + 0.1, x, y, along, across, rng.uniform(0.0, 180.0))
