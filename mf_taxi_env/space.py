"""The space that particles move in: a cube, whose edges stop them, or a torus, which has none."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor


class Space(ABC):
    """What differs between the cube ``[0, 1]^d`` and the torus ``[0, 1)^d``, axis by axis; all functions take any shape."""

    #: Whether the space has no edges.
    periodic: bool

    @abstractmethod
    def admissible(self, points: Tensor) -> Tensor:
        """The points of the space that ``points`` ``[..., d]`` stand for."""

    @abstractmethod
    def displacement(self, start: Tensor, end: Tensor) -> Tensor:
        """The way from ``start`` to ``end``, both ``[..., d]``; shapes broadcast."""

    @abstractmethod
    def coordinates(self, points: Tensor) -> Tensor:
        """Numbers ``[..., c]`` that identify ``points`` ``[..., d]`` and are as near to each other as the points are."""


@dataclass(frozen=True)
class Cube(Space):
    """The cube ``[0, 1]^d``: whoever heads beyond an edge ends at it.

    Example:
        >>> Cube().admissible(torch.tensor([-0.2, 0.3, 1.4])).tolist()
        [0.0, 0.3..., 1.0]
    """

    periodic = False

    def admissible(self, points: Tensor) -> Tensor:
        return points.clamp(0.0, 1.0)

    def displacement(self, start: Tensor, end: Tensor) -> Tensor:
        return end - start

    def coordinates(self, points: Tensor) -> Tensor:
        """The points themselves, ``[..., d]``."""
        return points


@dataclass(frozen=True)
class Torus(Space):
    """The torus ``[0, 1)^d``: 0 and 1 are one point, and points a whole number of turns apart are the same.

    Example:
        >>> torus = Torus()
        >>> torus.admissible(torch.tensor([-0.25, 0.5, 1.25])).tolist()
        [0.75, 0.5, 0.25]
        >>> torus.displacement(torch.tensor(0.875), torch.tensor(0.125)).item()
        0.25
    """

    periodic = True

    def admissible(self, points: Tensor) -> Tensor:
        """The points in ``[0, 1)``; rounding may reach 1, which is the same as 0."""
        return points.remainder(1.0)

    def displacement(self, start: Tensor, end: Tensor) -> Tensor:
        """The shorter way round, in ``[-1/2, 1/2]``."""
        way = end - start
        return way - way.round()

    def coordinates(self, points: Tensor) -> Tensor:
        """Sine and cosine of every axis's angle, ``[..., 2 d]``."""
        angle = 2.0 * math.pi * points
        return torch.cat([angle.sin(), angle.cos()], -1)


CUBE, TORUS = Cube(), Torus()
