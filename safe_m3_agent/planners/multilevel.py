"""Adam on several grids at once: what is given per cell also moves by districts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mf_taxi_env.grid import Grid
from mf_taxi_env.parameterization import BilinearField

#: How many cells of the grid lie between the nodes of a coarser one.
SPACINGS = (2, 4)


class MultilevelAdam:
    """Adam that sees each field as a sum of itself and of coarser fields, interpolated bilinearly between their nodes.

    A cell's own gradient knows the slope of the objective within reach of the noise, half a cell. Neighbouring cells that
    should go the same long way find it one by one, slowly. Their sum, which a coarser field feels, finds it together: a
    change of basis that lets a diagonal method such as Adam follow smooth directions as fast as rough ones (as the BPX
    preconditioner does for elliptic problems: Bramble, Pasciak and Xu 1990).

    Coarser fields are zero after every step: their change is added to the field, and only their moments remain.

    Args:
        fields: Parameters given per cell, ``[..., K, d]``.
        others: Parameters that are not, or that have no coarser levels.
        grid: The grid of the fields.
        clip: Largest norm of the gradient of all levels together, the coarser ones included.
    """

    def __init__(self, fields: Sequence[Tensor], others: Sequence[Tensor], grid: Grid, clip: float) -> None:
        self._levels: list[tuple[Tensor, Tensor, Tensor]] = []  # a field, interpolation [K, n], coefficients [..., n, d]
        for field in fields:
            for interpolation in _interpolations(grid, field):
                shape = (*field.shape[:-2], interpolation.shape[1], field.shape[-1])
                self._levels.append((field, interpolation, field.new_zeros(shape, requires_grad=True)))
        self._clipped = [*fields, *others, *(coarse for _, _, coarse in self._levels)]
        self._clip = clip
        self._adam = torch.optim.Adam(self._clipped, fused=True)

    def zero_grad(self) -> None:
        """Forget gradients."""
        self._adam.zero_grad()

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Follow the gradients of fields and others.

        Args:
            learning_rate: Of every level.
        """
        for field, interpolation, coarse in self._levels:
            assert field.grad is not None  # the planner's objective depends on every field
            coarse.grad = interpolation.mT @ field.grad
        torch.nn.utils.clip_grad_norm_(self._clipped, self._clip, foreach=True)
        self._adam.param_groups[0]["lr"] = learning_rate
        self._adam.step()
        for field, interpolation, coarse in self._levels:
            field += interpolation @ coarse
            coarse.zero_()


def _interpolations(grid: Grid, like: Tensor) -> list[Tensor]:
    """From the nodes of each coarser grid to the cells, ``[K, n]``."""
    nodes = sorted({max(2, grid.cells // spacing) for spacing in SPACINGS} - {grid.cells})
    centers = grid.centers(dtype=like.dtype, device=like.device)
    return [BilinearField(grid, like.shape[-1], n).weights(centers) for n in nodes]
