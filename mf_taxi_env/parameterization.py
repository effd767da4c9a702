"""Policy parameterizations: from a flat action of the Gymnasium env to actions all over the city."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from mf_taxi_env.grid import Grid


class Parameterization(ABC):
    """Turns a flat action in ``[-1, 1]^n`` into one action per place.

    Both views are batched, differentiable in the parameters, bounded by ``[-1, 1]``, and equal at the cell centres.

    Args:
        grid: The grid of the lifted MDP.
        action_dim: Dimension of the action at one place.
    """

    def __init__(self, grid: Grid, action_dim: int) -> None:
        self.grid = grid
        self.action_dim = action_dim

    @property
    @abstractmethod
    def n_parameters(self) -> int:
        """Length ``n`` of the flat action."""

    @abstractmethod
    def field(self, parameters: Tensor) -> Tensor:
        """Actions at the cell centres: ``[..., n]`` to ``[..., K, action_dim]``."""

    @abstractmethod
    def at(self, parameters: Tensor, positions: Tensor) -> Tensor:
        """Actions at ``positions`` ``[m, d]`` in ``[0, 1]``: ``[..., n]`` to ``[..., m, action_dim]``."""


class CellField(Parameterization):
    """``"cells"``: one action per cell, constant within it; ``n = K * action_dim``, cell by cell."""

    @property
    def n_parameters(self) -> int:
        return self.grid.size * self.action_dim

    def field(self, parameters: Tensor) -> Tensor:
        return parameters.reshape(*parameters.shape[:-1], self.grid.size, self.action_dim)

    def at(self, parameters: Tensor, positions: Tensor) -> Tensor:
        return self.field(parameters)[..., self.grid.index(positions), :]


class BilinearField(Parameterization):
    """``"bilinear:M"``: actions at ``M`` equally spaced nodes per axis, edges included, interpolated (bi)linearly.

    ``n = M^d * action_dim``, node by node in the order of the grid's cells.

    Args:
        grid: The grid of the lifted MDP.
        action_dim: Dimension of the action at one place.
        nodes: Nodes per axis, ``M >= 2``.
    """

    def __init__(self, grid: Grid, action_dim: int, nodes: int) -> None:
        super().__init__(grid, action_dim)
        if nodes < 2:
            raise ValueError(f"bilinear:M needs M >= 2 nodes per axis, got {nodes}")
        self.nodes = nodes
        self._weights = self.weights(grid.centers(dtype=torch.float64)).float()

    @property
    def n_parameters(self) -> int:
        return int(self.nodes**self.grid.dimension) * self.action_dim

    def weights(self, positions: Tensor) -> Tensor:
        """Interpolation weights of positions ``[m, d]``: ``[m, M^d]``, non-negative, rows sum to one."""
        places = positions.clamp(0.0, 1.0) * (self.nodes - 1)
        nodes = torch.arange(self.nodes, dtype=positions.dtype, device=positions.device)
        hats = (1.0 - (places.unsqueeze(-1) - nodes).abs()).clamp_min(0.0)  # [m, d, M]
        if self.grid.dimension == 1:
            return hats[:, 0]
        return (hats[:, 0, :, None] * hats[:, 1, None, :]).flatten(-2)

    def field(self, parameters: Tensor) -> Tensor:
        if self._weights.device != parameters.device or self._weights.dtype != parameters.dtype:
            self._weights = self.weights(self.grid.centers(dtype=parameters.dtype, device=parameters.device))
        return self._weights @ self._nodes(parameters)

    def at(self, parameters: Tensor, positions: Tensor) -> Tensor:
        return self.weights(positions.to(parameters.dtype)) @ self._nodes(parameters)

    def _nodes(self, parameters: Tensor) -> Tensor:
        return parameters.reshape(*parameters.shape[:-1], -1, self.action_dim)


def make_parameterization(name: str | Parameterization, grid: Grid, action_dim: int) -> Parameterization:
    """The parameterization of a name.

    Args:
        name: ``"cells"``, ``"bilinear:M"`` with ``M >= 2`` nodes per axis, or a ready object.
        grid: The grid of the lifted MDP.
        action_dim: Dimension of the action at one place.

    Raises:
        ValueError: If the name is unknown or its numbers are out of range.

    Example:
        >>> make_parameterization("bilinear:5", Grid(25), 2).n_parameters
        50
    """
    if isinstance(name, Parameterization):
        if (name.grid, name.action_dim) != (grid, action_dim):
            raise ValueError(f"parameterization is made for {name.grid}, but the world has {grid}")
        return name
    kind, _, argument = name.partition(":") if isinstance(name, str) else ("", "", "")
    if kind == "cells" and not argument:
        return CellField(grid, action_dim)
    if kind == "bilinear" and argument.isdecimal():
        return BilinearField(grid, action_dim, int(argument))
    raise ValueError(f"parameterization must be 'cells' or 'bilinear:M' (such as 'bilinear:8'), got {name!r}")
