"""Distances between distributions on the same cells, and constraints that keep the fleet near a distribution or away from it.

Exact Wasserstein distances need the extra ``transport`` (POT).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from mf_taxi_env.constraint import (
    MODELLING_LIPSCHITZ,
    cells_per_axis,
    check_size,
    checked_dimension,
    from_total_variation,
    length,
    nonnegative,
    store,
    tensor,
)
from mf_taxi_env.grid import Grid
from mf_taxi_env.information import MASS_FLOOR, kl_divergence

DistanceName = Literal["w1", "kl", "hellinger", "tv"]

#: Pivots that the transport solver may take; a grid of 50 x 50 cells needs fewer than a tenth of them.
PIVOTS = 10_000_000
#: Masses nearer than this are at a kink of the total variation: more than a solver's accuracy, less than what costs tightness.
KINK = 1e-5


def wasserstein(mu: Tensor, reference: Tensor, *, dimension: int = 2, periodic: bool = False) -> Tensor:
    """Wasserstein-1 distance in sides of the unit square, interval or ring.

    The ground distance is the Euclidean one between cell centres; on a ring, the shorter way round.

    The value is ``sum f (mu - reference)`` with ``f`` an optimal Kantorovich potential, which is also the gradient along
    directions that keep the mass (envelope theorem; a subgradient where several potentials are optimal). Exact linear programs
    on the CPU, one per distribution of the batch in a Python loop: about 50 ms each at 625 cells.

    Args:
        mu: Distributions ``[..., K]``; anywhere but at finite numbers the distance is NaN.
        reference: A distribution ``[K]``; constant, no gradient flows to it.
        dimension: 1 for cells of an interval or a ring, 2 for those of a square.
        periodic: Whether the ends of the interval meet: a ring of circumference one.

    Returns:
        ``[...]``: in ``[0, sqrt 2]`` on a square, ``[0, 1]`` on an interval, ``[0, 1/2]`` on a ring.

    Raises:
        ImportError: If POT is not installed.
        ValueError: If ``K`` is not a square number where the cells are those of a square, or that is periodic.
    """
    dimension = _geometry(dimension, periodic)
    cost = _cost(Grid(cells_per_axis(mu.shape[-1], dimension), dimension), periodic)
    nu = reference.detach().cpu().double().numpy()
    rows = mu.detach().reshape(-1, mu.shape[-1]).cpu().double().numpy()
    potentials = np.stack([_potential(row, nu / nu.sum(), cost) for row in rows]) if len(rows) else rows
    f = torch.from_numpy(potentials).to(mu).reshape(mu.shape)
    distance: Tensor = ((mu - reference) * f).sum(-1)
    return distance


def total_variation(mu: Tensor, reference: Tensor) -> Tensor:
    """``sum |mu - reference| / 2``, ``[...]`` in ``[0, 1]``, of ``[..., K]`` and ``[..., K]``."""
    distance: Tensor = 0.5 * (mu - reference).abs().sum(-1)
    return distance


def hellinger(mu: Tensor, reference: Tensor) -> Tensor:
    """``|sqrt mu - sqrt reference|_2 / sqrt 2``, ``[...]`` in ``[0, 1]``, of ``[..., K]`` and ``[..., K]``."""
    # The floor bounds the slope of the root at an empty cell. A norm, unlike the root of a sum, has slope 0 where it is 0.
    distance: Tensor = torch.linalg.vector_norm((mu + MASS_FLOOR).sqrt() - (reference + MASS_FLOOR).sqrt(), dim=-1)
    return distance / math.sqrt(2.0)


#: The distances that do not ask where the cells are.
CELLWISE: dict[DistanceName, Callable[[Tensor, Tensor], Tensor]] = {
    "kl": kl_divergence,
    "hellinger": hellinger,
    "tv": total_variation,
}


@dataclass(frozen=True, init=False)
class _Reference:
    """A distribution, and a distance from it."""

    reference: tuple[float, ...] = field(repr=False)
    distance: DistanceName
    lipschitz: float
    dimension: int
    periodic: bool

    def __init__(
        self,
        reference: ArrayLike | Tensor,
        distance: DistanceName,
        lipschitz: float | None,
        dimension: int,
        periodic: bool,
    ) -> None:
        values = nonnegative("reference", reference)
        if abs(values.sum() - 1.0) > 1e-6:
            raise ValueError(f"reference must sum to one, got a sum of {values.sum()}")
        if distance not in get_args(DistanceName):
            raise ValueError(f"distance must be one of {get_args(DistanceName)}, got {distance!r}")
        dimension = _geometry(dimension, periodic)
        if distance == "w1":
            cells_per_axis(values.size, dimension)  # raises where there is no square grid to measure on
        constant = _slope(distance, values.size, dimension) if lipschitz is None else lipschitz
        store(self, reference=tuple(values.tolist()), distance=distance, lipschitz=length("lipschitz", constant))
        store(self, dimension=dimension, periodic=periodic)

    def _distance(self, mu: Tensor) -> Tensor:
        check_size(mu, len(self.reference))
        reference = tensor(self.reference, mu.dtype, mu.device)
        if self.distance == "w1":
            return wasserstein(mu, reference, dimension=self.dimension, periodic=self.periodic)
        return CELLWISE[self.distance](mu, reference)


@dataclass(frozen=True, init=False)
class DistanceCap(_Reference):
    """The fleet stays near a distribution: ``D(mu, reference) <= cap`` (arXiv 2306.17052, Section 3.3).

    ======================  ==================================================  ===================  ====================
    ``distance``            ``D(mu, nu)``                                       ``lipschitz``        certified bound
    ======================  ==================================================  ===================  ====================
    ``"w1"`` (needs POT)    exact Wasserstein-1, see :func:`wasserstein`        1, proven            no small program
    ``"tv"``                ``sum |mu - nu| / 2``                               ``k``, proven        yes
    ``"hellinger"``         ``|sqrt mu - sqrt nu|_2 / sqrt 2``                  0.1, modelling       yes
    ``"kl"``                ``sum mu log(mu / nu)``, in nats                    0.1, modelling       yes
    ======================  ==================================================  ===================  ====================

    Proofs: by the triangle inequality ``|D(mu, nu) - D(mu', nu)| <= D(mu, mu')`` for the two metrics; that is the constant 1
    in ``W1`` and, with ``k`` cells per axis, ``TV(mu, mu') <= k W1(mu, mu')``. The slopes of the other two are unbounded at
    empty cells, so they have no constant: 0.1 is a modelling constant, as for :class:`mf_taxi_env.EntropyFloor`. KL takes a
    cell that is empty in the reference as holding 1e-30, so it is large there, not infinite.

    Args:
        reference: ``nu``, ``[K]``, summing to one.
        cap: Largest distance, at least 0.
        distance: ``"w1"``, ``"kl"``, ``"hellinger"`` or ``"tv"``.
        lipschitz: ``L_h``; ``None`` for the constant of the table.
        dimension: 1 for cells of an interval or a ring, 2 for those of a square.
        periodic: Whether the ends of the interval meet: a ring. Only ``"w1"`` depends on it.

    Raises:
        ImportError: If a margin in ``"w1"`` is asked for without POT.
        ValueError: If an argument is out of range, or a margin is asked of another number of cells.

    Example:
        >>> DistanceCap([0.5, 0.5, 0.0, 0.0], 0.75, "tv").margin(torch.full((4,), 0.25)).item()
        0.25
    """

    cap: float

    def __init__(
        self,
        reference: ArrayLike | Tensor,
        cap: float,
        distance: DistanceName = "w1",
        *,
        lipschitz: float | None = None,
        dimension: int = 2,
        periodic: bool = False,
    ) -> None:
        super().__init__(reference, distance, lipschitz, dimension, periodic)
        store(self, cap=length("cap", cap))

    @property
    def name(self) -> str:
        return f"{self.distance}_cap"

    def margin(self, mu: Tensor) -> Tensor:
        return self.cap - self._distance(mu)

    def concave_margin(self, mu: Tensor) -> Tensor:
        """The margin, or for Hellinger, whose square is convex but not itself, ``cap^2 - D^2``, which has the same sign."""
        if self.distance == "hellinger":
            return self.cap**2 - self._distance(mu).square()
        return self.margin(mu)

    def tangent(self, mu: Tensor, slope: Tensor) -> tuple[Tensor, Tensor] | None:
        """``(offset, slope)`` of a linear function above the margin, see :class:`mf_taxi_env.Constraint`; None where smooth."""
        if self.distance != "tv":
            return None
        # TV is the largest sum of s (mu - nu) / 2 over s in [-1, 1], and s is the sign where that is plain.
        nu = tensor(self.reference, mu.dtype, mu.device)
        ahead = mu - nu
        slope = torch.where(ahead.abs() < KINK, slope.clamp(-0.5, 0.5), -0.5 * ahead.sign())
        return self.cap - slope @ nu, slope

    def convex_margin(self, mu: Any) -> Any:
        check_size(mu, len(self.reference))
        if self.distance == "w1":
            raise TypeError("DistanceCap in 'w1' has no convex program of moderate size (K * K flows), so no certified bound")
        import cvxpy as cp

        nu = np.array(self.reference)
        if self.distance == "tv":
            return self.cap - 0.5 * cp.norm1(mu - nu)
        if self.distance == "kl":
            return self.cap + cp.sum(cp.entr(mu)) + np.log(np.maximum(nu, MASS_FLOOR)) @ mu
        return self.cap**2 - 0.5 * (cp.sum(mu) + 1.0) + np.sqrt(nu) @ cp.sqrt(mu)


@dataclass(frozen=True, init=False)
class KeepAway(_Reference):
    """The fleet stays away from a distribution: ``D(mu, reference) >= floor`` (arXiv 2306.17052, Section 3.3).

    Distances and their constants are those of :class:`DistanceCap`. The safe set is not convex, so there is no certified bound.

    Args:
        reference: ``nu``, ``[K]``, summing to one.
        floor: Smallest distance, at least 0.
        distance: ``"w1"``, ``"kl"``, ``"hellinger"`` or ``"tv"``.
        lipschitz: ``L_h``; ``None`` for the constant of the distance.
        dimension: 1 for cells of an interval or a ring, 2 for those of a square.
        periodic: Whether the ends of the interval meet: a ring. Only ``"w1"`` depends on it.

    Raises:
        ImportError: If a margin in ``"w1"`` is asked for without POT.
        ValueError: If an argument is out of range, or a margin is asked of another number of cells.

    Example:
        >>> KeepAway([0.5, 0.5, 0.0, 0.0], 0.25, "tv").margin(torch.full((4,), 0.25)).item()
        0.25
    """

    floor: float

    def __init__(
        self,
        reference: ArrayLike | Tensor,
        floor: float,
        distance: DistanceName = "w1",
        *,
        lipschitz: float | None = None,
        dimension: int = 2,
        periodic: bool = False,
    ) -> None:
        super().__init__(reference, distance, lipschitz, dimension, periodic)
        store(self, floor=length("floor", floor))

    @property
    def name(self) -> str:
        return f"{self.distance}_keep_away"

    def margin(self, mu: Tensor) -> Tensor:
        return self._distance(mu) - self.floor

    def convex_margin(self, mu: Any) -> Any:
        raise TypeError("the safe set of KeepAway is not convex, so there is no certified bound")


def _slope(distance: DistanceName, size: int, dimension: int) -> float:
    """``L_h`` of a distance: proven for the two metrics, see :class:`DistanceCap`."""
    if distance == "w1":
        return 1.0
    return from_total_variation(1.0, size, dimension) if distance == "tv" else MODELLING_LIPSCHITZ


def _geometry(dimension: int, periodic: bool) -> int:
    """``dimension`` if there is such a grid; ValueError otherwise."""
    dimension = checked_dimension(dimension)
    if not isinstance(periodic, bool) or (periodic and dimension != 1):
        raise ValueError(f"periodic must be False, or True with dimension=1 (a ring), got {periodic!r} with {dimension}")
    return dimension


def _potential(mu: NDArray[np.float64], nu: NDArray[np.float64], cost: NDArray[np.float64]) -> NDArray[np.float64]:
    """A function ``f`` ``[K]``, 1-Lipschitz between cell centres, with ``sum f (mu - nu) = W1(mu, nu)``."""
    # Rounding may leave a trace below zero or a sum off one, both of which the solver would refuse.
    mass = np.maximum(mu, 0.0)
    if not (np.isfinite(mu).all() and mass.sum() > 0):
        return np.full(mu.size, np.nan)
    _, log = _pot().emd2(mass / mass.sum(), nu, cost, numItermax=PIVOTS, log=True)
    # The solver's potential of mu says little about its empty cells. That of nu says it all: the largest f that it permits is
    # 1-Lipschitz everywhere, and minus the potential on nu's own cells.
    support = nu > 0
    f = (cost[:, support] - log["v"][support]).min(1)
    # Any constant may be added; this one keeps products with masses in float32 small.
    centred: NDArray[np.float64] = f - 0.5 * (f.max() + f.min())
    return centred


@lru_cache(maxsize=4)
def _cost(grid: Grid, periodic: bool) -> NDArray[np.float64]:
    """Distances between the cell centres, ``[K, K]``: Euclidean, or on a ring the shorter way round."""
    centers = grid.centers(dtype=torch.float64)
    cost: NDArray[np.float64] = torch.cdist(centers, centers, compute_mode="donot_use_mm_for_euclid_dist").numpy()
    return np.minimum(cost, 1.0 - cost) if periodic else cost


def _pot() -> Any:
    try:
        import ot
    except ImportError as error:
        raise ImportError("Exact Wasserstein distances need POT: pip install 'safe-m3-taxi[transport]'") from error
    return ot
