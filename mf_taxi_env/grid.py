"""The grid that a distribution lives on: equal cells of the unit interval or square."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mf_taxi_env.checks import whole_number


@dataclass(frozen=True)
class Grid:
    """Equal cells of ``[0, 1]^dimension``.

    In two dimensions cell ``(i, j)`` covers ``[i/k, (i+1)/k) x [j/k, (j+1)/k)`` with ``i`` along longitude and ``j`` along
    latitude; its index in a distribution is ``i * k + j``. The last cell of an axis includes its upper edge.

    Args:
        cells: Cells per axis, ``k >= 1``.
        dimension: 1 (interval) or 2 (square).

    Raises:
        ValueError: If ``cells`` or ``dimension`` is out of range.

    Example:
        >>> grid = Grid(4)
        >>> grid.size
        16
        >>> grid.index(torch.tensor([[0.0, 0.3], [1.0, 1.0]])).tolist()
        [1, 15]
    """

    cells: int
    dimension: int = 2

    def __post_init__(self) -> None:
        # The dataclass is frozen for its users; validation is the one place that may still write.
        object.__setattr__(self, "cells", whole_number("cells", self.cells, least=1))
        object.__setattr__(self, "dimension", whole_number("dimension", self.dimension, least=1, most=2))

    @property
    def size(self) -> int:
        """Number of cells, ``K = k ** dimension``: the length of a distribution."""
        return int(self.cells**self.dimension)

    def edges(self, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Tensor:
        """The cell edges of one axis, ``[k + 1]``, from 0 to 1."""
        return torch.arange(self.cells + 1, dtype=dtype, device=device) / self.cells

    def centers(self, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Tensor:
        """The cell centres, ``[K, dimension]``, in the order of a distribution."""
        axis = (torch.arange(self.cells, dtype=dtype, device=device) + 0.5) / self.cells
        return torch.cartesian_prod(*[axis] * self.dimension).reshape(self.size, self.dimension)

    def index(self, positions: Tensor) -> Tensor:
        """The cell of each position.

        Args:
            positions: ``[..., dimension]`` in ``[0, 1]``; positions outside are counted to the nearest cell.

        Returns:
            Integer cell indices ``[...]`` in ``[0, K)``.
        """
        # Clamping after the floor puts a position of exactly 1.0 into the last cell. In 32 bits, which takes half the time.
        axes = (positions * self.cells).int().clamp_(0, self.cells - 1).unbind(-1)
        return (axes[0] if self.dimension == 1 else torch.add(axes[1], axes[0], alpha=self.cells)).long()

    def histogram(self, positions: Tensor) -> Tensor:
        """The empirical distribution of particles, ``[K]``, summing to one.

        Args:
            positions: ``[m, dimension]`` with ``m >= 1``.
        """
        counts = torch.bincount(self.index(positions), minlength=self.size)
        return counts.to(positions.dtype) / positions.shape[0]
