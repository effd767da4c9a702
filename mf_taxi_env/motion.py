"""How a vehicle moves when it is told to: the part of the world that an agent has to learn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from mf_taxi_env.checks import finite_number, plain_numbers
from mf_taxi_env.grid import Grid


@runtime_checkable
class Motion(Protocol):
    """A deterministic motion, before noise. Any callable of this signature will do."""

    def __call__(self, positions: Tensor, mu: Tensor, actions: Tensor) -> Tensor:
        """Where vehicles head.

        Args:
            positions: ``[..., n, d]`` in ``[0, 1]``.
            mu: Distribution of the fleet after trips, ``[..., K]``.
            actions: ``[..., n, d]`` in ``[-1, 1]``.

        Returns:
            Destinations ``[..., n, d]`` in ``[0, 1]``.
        """
        ...


@dataclass(frozen=True)
class FreeMotion:
    """A vehicle reaches the point it heads for: ``clip(s + a, 0, 1)`` (arXiv 2306.17052, Appendix D.2)."""

    def __call__(self, positions: Tensor, mu: Tensor, actions: Tensor) -> Tensor:
        return (positions + actions).clamp_(0.0, 1.0)


@dataclass(frozen=True)
class CongestedMotion:
    """Moves shorten with the local density: ``clip(s + a / (1 + alpha K mu(c(s))), 0, 1)``.

    ``K mu(c)`` is the density relative to a uniform fleet: ``alpha = 0.05`` slows a vehicle by 5 % at uniform density and by a
    third where the fleet is ten times as dense. The dynamics then depend on the distribution.

    Args:
        grid: The grid of ``mu``.
        alpha: Strength of congestion, at least 0; 0 is free motion.
    """

    grid: Grid
    alpha: float = 0.05

    def __post_init__(self) -> None:
        plain_numbers(self)
        finite_number("alpha", self.alpha)

    def __call__(self, positions: Tensor, mu: Tensor, actions: Tensor) -> Tensor:
        density = self.grid.size * local_mass(self.grid, positions, mu)
        return (positions + actions / (1.0 + self.alpha * density.unsqueeze(-1))).clamp(0.0, 1.0)


@dataclass(frozen=True)
class TorusMotion:
    """A particle drifts on the torus for one step: ``(s + max_speed * a * dt) mod 1``, axis by axis (arXiv 2107.04050).

    Args:
        max_speed: Speed of the action 1, in circumferences per unit of time; positive.
        dt: Length of a step; positive.
    """

    max_speed: float
    dt: float

    def __post_init__(self) -> None:
        plain_numbers(self)
        for name in ("max_speed", "dt"):
            finite_number(name, getattr(self, name), positive=True)

    def __call__(self, positions: Tensor, mu: Tensor, actions: Tensor) -> Tensor:
        return (positions + actions * (self.max_speed * self.dt)).remainder(1.0)


def local_mass(grid: Grid, positions: Tensor, mu: Tensor) -> Tensor:
    """The mass of the cell that each position lies in.

    Args:
        grid: The grid of ``mu``.
        positions: ``[..., n, d]``.
        mu: ``[..., K]``; batch dimensions broadcast against those of ``positions``.

    Returns:
        ``[..., n]``.
    """
    index = grid.index(positions)
    if index.dim() == 1:
        return mu.index_select(-1, index)
    batch = torch.broadcast_shapes(index.shape[:-1], mu.shape[:-1])
    return mu.expand(*batch, -1).gather(-1, index.expand(*batch, -1))
