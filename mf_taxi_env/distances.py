"""Distances between distributions on the same cells, and constraints that keep the fleet near a distribution or away."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from mf_taxi_env.checks import finite_number
from mf_taxi_env.constraint import (
    MODELLING_LIPSCHITZ,
    cells_per_axis,
    check_size,
    from_total_variation,
    nonnegative,
    store,
    tensor,
)
from mf_taxi_env.information import MASS_FLOOR, kl_divergence
from mf_taxi_env.wasserstein import checked_geometry, potential_near, transport_program, wasserstein

DistanceName = Literal["w1", "kl", "hellinger", "tv"]

#: Masses nearer than this are at a kink of the total variation: more than a solver's accuracy, less than what costs tightness.
KINK = 1e-5
#: How far the masses of a reference may be from one: those of a long episode in float32 are not as far.
SUM_TOLERANCE = 1e-4


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
        off = abs(values.sum() - 1.0)
        if off > SUM_TOLERANCE:
            raise ValueError(f"reference must sum to one, got a sum of {values.sum()}")
        if off > 1e-9:  # as masses in float32 do; what is read from a file again is left as it is
            values = values / values.sum()
        if distance not in get_args(DistanceName):
            raise ValueError(f"distance must be one of {get_args(DistanceName)}, got {distance!r}")
        dimension = checked_geometry(dimension, periodic)
        if distance == "w1":
            cells_per_axis(values.size, dimension)  # raises where there is no square grid to measure on
        constant = _slope(distance, values.size, dimension) if lipschitz is None else lipschitz
        store(self, reference=tuple(values.tolist()), distance=distance, lipschitz=finite_number("lipschitz", constant))
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
    ``"w1"`` (needs POT)    exact Wasserstein-1, see :func:`wasserstein`        1, proven            to 16 x 16 cells
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
        store(self, cap=finite_number("cap", cap))

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
        if self.distance == "w1":
            nu = tensor(self.reference, mu.dtype, mu.device)
            potential = potential_near(-slope, mu, nu, dimension=self.dimension, periodic=self.periodic)
            return self.cap + potential @ nu, -potential
        if self.distance != "tv":
            return None
        # TV is the largest sum of s (mu - nu) / 2 over s in [-1, 1], and s is the sign where that is plain.
        nu = tensor(self.reference, mu.dtype, mu.device)
        ahead = mu - nu
        slope = torch.where(ahead.abs() < KINK, slope.clamp(-0.5, 0.5), -0.5 * ahead.sign())
        return self.cap - slope @ nu, slope

    def convex_margin(self, mu: Any) -> Any:
        check_size(mu, len(self.reference))
        import cvxpy as cp

        nu = np.array(self.reference)
        if self.distance == "w1":
            return self.cap - transport_program(mu, nu, dimension=self.dimension, periodic=self.periodic)
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
        store(self, floor=finite_number("floor", floor))

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
