"""Constraints on the distribution of the fleet: each has a margin, safe at zero and above, and a Lipschitz constant."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from mf_taxi_env.checks import finite_number, is_number, plain_numbers
from mf_taxi_env.constraint import (
    MODELLING_LIPSCHITZ,
    Constraint,
    check_size,
    checked_dimension,
    checked_size,
    deviation,
    from_total_variation,
    nonnegative,
    share,
    store,
    tensor,
)
from mf_taxi_env.distances import DistanceCap, KeepAway
from mf_taxi_env.information import entropy, floored_log
from mf_taxi_env.regions import RegionCapacity, RegionCoverage

__all__ = [
    "Constraint",
    "DistanceCap",
    "EntropyFloor",
    "KeepAway",
    "RegionCapacity",
    "RegionCoverage",
    "SmoothedEntropyFloor",
    "WeightedEntropyFloor",
    "scatter",
]


def scatter(constraints: Sequence[Constraint], mu: Tensor) -> Tensor:
    """By how much margins of finite fleets differ: those of ``m`` taxis have the standard deviation ``scatter / sqrt(m)``.

    To first order in ``1 / sqrt(m)``, for taxis drawn independently from ``mu``: the delta method, for the entropy Basharin
    (1959), "On a statistical estimate for the entropy of a sequence of independent random variables".

    Args:
        constraints: Constraints that have a ``scatter(mu)`` ``[...]``: entropy floors and those on regions.
        mu: Distributions ``[..., K]``.

    Returns:
        ``[..., n_constraints]``, in the constraints' units.

    Raises:
        ValueError: If a constraint has none.

    Example:
        >>> import torch
        >>> scatter([RegionCapacity([0], 0.5)], torch.full((4,), 0.25))  # sqrt(p (1 - p))
        tensor([0.4330])
    """
    for constraint in constraints:
        if not hasattr(constraint, "scatter"):
            raise ValueError(f"constraints must be able to say how finite fleets scatter, {constraint!r} has no scatter(mu)")
    if not constraints:
        return mu.new_zeros((*mu.shape[:-1], 0))
    return torch.stack([constraint.scatter(mu) for constraint in constraints], -1)  # type: ignore[attr-defined]


@dataclass(frozen=True)
class EntropyFloor:
    """The fleet stays spread out: ``entropy(mu) >= fraction * log K`` (arXiv 2306.17052, Section 5).

    Entropy is not Lipschitz on the whole simplex (its gradient ``-log mu`` grows without bound at empty cells), so
    ``lipschitz`` is a modelling constant; 0.1 per unit of accumulated epistemic uncertainty is what the published experiments
    use. What makes an executed policy safe is the certificate, which does not use it.

    Args:
        fraction: Share of the largest possible entropy, in ``[0, 1]``.
        lipschitz: ``L_h`` of the tightening, at least 0.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> import torch
        >>> EntropyFloor(0.5).margin(torch.full((4,), 0.25)).item()  # log 4 - 0.5 log 4
        0.6931...
    """

    fraction: float
    lipschitz: float = MODELLING_LIPSCHITZ

    def __post_init__(self) -> None:
        plain_numbers(self)
        store(self, fraction=share("fraction", self.fraction), lipschitz=finite_number("lipschitz", self.lipschitz))

    @property
    def name(self) -> str:
        return "entropy"

    def margin(self, mu: Tensor, log_mu: Tensor | None = None) -> Tensor:
        return entropy(mu, log_mu) - self.fraction * math.log(mu.shape[-1])

    def scatter(self, mu: Tensor) -> Tensor:
        return deviation(mu, floored_log(mu))

    def convex_margin(self, mu: Any) -> Any:
        import cvxpy as cp

        return cp.sum(cp.entr(mu)) - self.fraction * math.log(mu.shape[-1])


@dataclass(frozen=True, init=False)
class WeightedEntropyFloor:
    """The fleet stays spread out where it matters: ``-sum w mu log mu`` is at least a share of its largest possible value.

    Weights are per cell: 0 for water and parks, more where being spread matters more. With weights 0 and 1 the largest value is
    the logarithm of the number of ones (from three ones on; fewer do better by leaving mass elsewhere).

    The slope at empty cells is unbounded, so ``lipschitz`` is a modelling constant, as for :class:`EntropyFloor`.

    Args:
        weights: ``w``, ``[K]``, finite, at least 0, one of them positive.
        fraction: Share of the largest possible value, in ``[0, 1]``.
        lipschitz: ``L_h`` of the tightening, at least 0.

    Raises:
        ValueError: If an argument is out of range, or a margin is asked of another number of cells.

    Example:
        >>> WeightedEntropyFloor([1, 1, 1, 0], 0.5).largest  # log 3
        1.0986...
    """

    weights: tuple[float, ...] = field(repr=False)
    fraction: float
    lipschitz: float

    def __init__(self, weights: ArrayLike | Tensor, fraction: float, lipschitz: float = MODELLING_LIPSCHITZ) -> None:
        values = nonnegative("weights", weights)
        if not values.any():
            raise ValueError("weights must be positive in at least one cell, got zeros only")
        constant = finite_number("lipschitz", lipschitz)
        store(self, weights=tuple(values.tolist()), fraction=share("fraction", fraction), lipschitz=constant)

    @property
    def name(self) -> str:
        return "weighted_entropy"

    @cached_property
    def largest(self) -> float:
        """``max -sum w x log x`` over the simplex, in nats times weight."""
        return _largest_weighted_entropy(np.array(self.weights))

    def margin(self, mu: Tensor) -> Tensor:
        check_size(mu, len(self.weights))
        weighted: Tensor = (tensor(self.weights, mu.dtype, mu.device) * mu * floored_log(mu)).sum(-1)
        return -weighted - self.fraction * self.largest

    def scatter(self, mu: Tensor) -> Tensor:
        return deviation(mu, tensor(self.weights, mu.dtype, mu.device) * (floored_log(mu) + 1.0))

    def convex_margin(self, mu: Any) -> Any:
        import cvxpy as cp

        check_size(mu, len(self.weights))
        return cp.sum(cp.multiply(np.array(self.weights), cp.entr(mu))) - self.fraction * self.largest


@dataclass(frozen=True, init=False)
class SmoothedEntropyFloor:
    """An entropy floor whose slope is bounded: ``-sum mu log(mu + epsilon)`` is at least a share of its value when uniform.

    Proof of the constant: the term ``phi(x) = -x log(x + epsilon)`` is concave on ``[0, 1]``, so its slope falls from
    ``phi'(0) = -log epsilon`` to ``phi'(1) = -log(1 + epsilon) - 1 / (1 + epsilon)``. By the mean value theorem
    ``h(mu) - h(nu) = sum phi'(x_i) (mu_i - nu_i)``; the differences sum to zero, so the middle of that range may be taken off
    every slope, and ``|h(mu) - h(nu)| <= (phi'(0) - phi'(1)) TV(mu, nu)``. In ``W1`` that is
    ``k (log((1 + epsilon) / epsilon) + 1 / (1 + epsilon))``, with ``k`` cells per axis.

    Args:
        fraction: Share of the largest value ``-log(1/K + epsilon)``, in ``[0, 1]``.
        epsilon: Smoothing in units of mass, in ``(0, 0.5)``.
        size: Number of cells ``K = k ** dimension``; by default unknown, and the proven constant is that of 625 cells, the
            largest grid then accepted.
        lipschitz: ``L_h``; ``None`` for the proven constant.
        dimension: 1 for cells of an interval or a ring, 2 for those of a square.

    Raises:
        ValueError: If an argument is out of range, or a margin is asked of another number of cells.

    Example:
        >>> SmoothedEntropyFloor(0.9, 0.01, size=25).lipschitz  # 5 (log 101 + 1 / 1.01)
        28.026...
    """

    fraction: float
    epsilon: float
    size: int | None
    lipschitz: float
    dimension: int

    def __init__(
        self,
        fraction: float,
        epsilon: float,
        *,
        size: int | None = None,
        lipschitz: float | None = None,
        dimension: int = 2,
    ) -> None:
        if not (is_number(epsilon) and 0.0 < epsilon < 0.5):
            raise ValueError(f"epsilon must lie in (0, 0.5), got {epsilon!r}")
        size, dimension = checked_size(size), checked_dimension(dimension)
        slope = math.log((1.0 + epsilon) / epsilon) + 1.0 / (1.0 + epsilon)
        constant = finite_number("lipschitz", from_total_variation(slope, size, dimension) if lipschitz is None else lipschitz)
        store(self, fraction=share("fraction", fraction), epsilon=float(epsilon))
        store(self, size=size, lipschitz=constant, dimension=dimension)

    @property
    def name(self) -> str:
        return "smoothed_entropy"

    def margin(self, mu: Tensor) -> Tensor:
        smoothed: Tensor = (mu * (mu + self.epsilon).log()).sum(-1)
        return -smoothed - self._floor(mu)

    def scatter(self, mu: Tensor) -> Tensor:
        return deviation(mu, (mu + self.epsilon).log() + mu / (mu + self.epsilon))

    def convex_margin(self, mu: Any) -> Any:
        import cvxpy as cp

        # -x log(x + epsilon), written with atoms that are known to be concave.
        return cp.sum(cp.entr(mu + self.epsilon) + self.epsilon * cp.log(mu + self.epsilon)) - self._floor(mu)

    def _floor(self, mu: Any) -> float:
        check_size(mu, self.size)
        return -self.fraction * math.log(1.0 / mu.shape[-1] + self.epsilon)


def in_nats(constraints: Sequence[Constraint]) -> bool:
    """Whether margins are entropies in nats: whether there are constraints, and all of them are entropy floors."""
    floors = EntropyFloor | WeightedEntropyFloor | SmoothedEntropyFloor
    return bool(constraints) and all(isinstance(one, floors) for one in constraints)


def _largest_weighted_entropy(weights: NDArray[np.float64]) -> float:
    """``max -sum w x log x`` over the simplex.

    Where the multiplier of the mass is ``a``, stationarity says ``x = exp(-1 - a / w)`` in cells of positive weight. The mass
    of these falls with ``a``; ``a`` is such that it is one, or zero where cells of weight 0 take up what is left.
    """
    positive = weights[weights > 0]

    def masses(multiplier: float) -> NDArray[np.float64]:
        with np.errstate(over="ignore"):  # infinite mass is too much mass
            return np.asarray(np.exp(-1.0 - multiplier / positive))

    # At the lower end the heaviest cell alone has mass one; at the upper no cell of n has more than its n-th part, or 1/e.
    low, high = -float(positive.max()), float(positive.max()) * max(math.log(positive.size) - 1.0, 0.0)
    if positive.size < weights.size:
        low = 0.0
    for _ in range(100):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if masses(middle).sum() > 1.0 else (low, middle)
    x = masses(high)
    return float((positive * x).sum() + high * x.sum())
