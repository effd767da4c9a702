"""Constraints on the mass in a region: no crowding, no neglect."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from mf_taxi_env.checks import finite_number
from mf_taxi_env.constraint import (
    array,
    check_size,
    checked_dimension,
    checked_size,
    from_total_variation,
    share,
    store,
    tensor,
)


@dataclass(frozen=True, init=False)
class _Region:
    """Some cells of a grid.

    The mass in them has the proven constant ``L_h = k``: it changes by at most ``TV(mu, nu) <= k W1(mu, nu)``.
    """

    region: tuple[int, ...] = field(repr=False)
    size: int | None
    lipschitz: float
    dimension: int

    def __init__(self, region: ArrayLike | Tensor, size: int | None, lipschitz: float | None, dimension: int) -> None:
        values, size, dimension = array(region), checked_size(size), checked_dimension(dimension)
        if values.dtype == np.bool_:
            if size not in (None, values.size):
                raise ValueError(f"size must be the length {values.size} of the region's mask, got {size}")
            size, values = values.size, np.flatnonzero(values) if values.ndim == 1 else values
        if values.ndim != 1 or values.size == 0 or values.dtype.kind not in "iu":
            raise ValueError(f"region must be a mask [K] or a sequence of cell indices, with at least one cell, got {region!r}")
        if values.min() < 0 or (size is not None and values.max() >= size) or len(np.unique(values)) != len(values):
            raise ValueError(f"region must hold different cell indices in [0, {size or 'K'}), got {region!r}")
        constant = finite_number("lipschitz", from_total_variation(1.0, size, dimension) if lipschitz is None else lipschitz)
        store(self, region=tuple(sorted(values.tolist())), size=size, lipschitz=constant, dimension=dimension)

    def _mass(self, mu: Tensor) -> Tensor:
        self._check(mu)
        return mu.index_select(-1, tensor(self.region, torch.int64, mu.device)).sum(-1)

    def scatter(self, mu: Tensor) -> Tensor:
        mass = self._mass(mu)
        return (mass * (1.0 - mass)).clamp_min(1e-12).sqrt()

    def _convex_mass(self, mu: Any) -> Any:
        import cvxpy as cp

        self._check(mu)
        return cp.sum(mu[list(self.region)])

    def _check(self, mu: Any) -> None:
        check_size(mu, self.size)
        if self.region[-1] >= mu.shape[-1]:
            raise ValueError(f"region must hold cell indices in [0, {mu.shape[-1]}), got {self.region[-1]}")


@dataclass(frozen=True, init=False)
class RegionCapacity(_Region):
    """No crowding: the mass in a region is at most ``cap``.

    ``lipschitz`` is by default the proven ``k``, the number of cells per axis: the mass in a region changes by at most
    ``TV(mu, nu) <= k W1(mu, nu)``.

    Args:
        region: A boolean mask ``[K]``, or a sequence of cell indices.
        cap: Largest mass in the region, in ``[0, 1]``.
        size: Number of cells ``K = k ** dimension``, for a region given by indices; by default unknown, and the proven constant
            is that of 625 cells, the largest grid then accepted. A mask says it itself.
        lipschitz: ``L_h``; ``None`` for the proven constant.
        dimension: 1 for cells of an interval or a ring, 2 for those of a square.

    Raises:
        ValueError: If an argument is out of range, or a margin is asked of another number of cells.

    Example:
        >>> RegionCapacity([0, 1], 0.75).margin(torch.full((4,), 0.25)).item()
        0.25
    """

    cap: float

    def __init__(
        self,
        region: ArrayLike | Tensor,
        cap: float,
        *,
        size: int | None = None,
        lipschitz: float | None = None,
        dimension: int = 2,
    ) -> None:
        super().__init__(region, size, lipschitz, dimension)
        store(self, cap=share("cap", cap))

    @property
    def name(self) -> str:
        return "region_capacity"

    def margin(self, mu: Tensor) -> Tensor:
        return self.cap - self._mass(mu)

    def convex_margin(self, mu: Any) -> Any:
        return self.cap - self._convex_mass(mu)


@dataclass(frozen=True, init=False)
class RegionCoverage(_Region):
    """No neglect: the mass in a region is at least ``floor``.

    ``lipschitz`` is by default the proven ``k``, the number of cells per axis: the mass in a region changes by at most
    ``TV(mu, nu) <= k W1(mu, nu)``.

    Args:
        region: A boolean mask ``[K]``, or a sequence of cell indices.
        floor: Smallest mass in the region, in ``[0, 1]``.
        size: Number of cells ``K = k ** dimension``, for a region given by indices; by default unknown, and the proven constant
            is that of 625 cells, the largest grid then accepted. A mask says it itself.
        lipschitz: ``L_h``; ``None`` for the proven constant.
        dimension: 1 for cells of an interval or a ring, 2 for those of a square.

    Raises:
        ValueError: If an argument is out of range, or a margin is asked of another number of cells.

    Example:
        >>> RegionCoverage([True, False, False, False], 0.125).margin(torch.full((4,), 0.25)).item()
        0.125
    """

    floor: float

    def __init__(
        self,
        region: ArrayLike | Tensor,
        floor: float,
        *,
        size: int | None = None,
        lipschitz: float | None = None,
        dimension: int = 2,
    ) -> None:
        super().__init__(region, size, lipschitz, dimension)
        store(self, floor=share("floor", floor))

    @property
    def name(self) -> str:
        return "region_coverage"

    def margin(self, mu: Tensor) -> Tensor:
        return self._mass(mu) - self.floor

    def convex_margin(self, mu: Any) -> Any:
        return self._convex_mass(mu) - self.floor
