"""Policy parameterizations: from a flat action of the Gymnasium env to actions all over the city."""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from functools import lru_cache
from itertools import pairwise

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
            with torch.inference_mode(False):  # usable with gradients even if first asked for in inference
                self._weights = self.weights(_centers(self.grid, parameters.dtype, parameters.device))
        return (self._weights @ self._nodes(parameters)).clamp(-1.0, 1.0)  # a sum of weights may round to more than one

    def at(self, parameters: Tensor, positions: Tensor) -> Tensor:
        return (self.weights(positions.to(parameters.dtype)) @ self._nodes(parameters)).clamp(-1.0, 1.0)

    def _nodes(self, parameters: Tensor) -> Tensor:
        return parameters.reshape(*parameters.shape[:-1], -1, self.action_dim)


class FourierField(Parameterization):
    """``"fourier:N"``: ``tanh`` of a sum of the cosines ``cos(pi i x) cos(pi j y)``, ``0 <= i, j < N``: smooth, and global.

    ``n = N^d * action_dim``, frequency by frequency, ``i`` slowest.

    Args:
        grid: The grid of the lifted MDP.
        action_dim: Dimension of the action at one place.
        frequencies: Frequencies per axis, ``N >= 1``; ``N = 1`` is one action for the whole city.
    """

    def __init__(self, grid: Grid, action_dim: int, frequencies: int) -> None:
        super().__init__(grid, action_dim)
        if frequencies < 1:
            raise ValueError(f"fourier:N needs N >= 1 frequencies per axis, got {frequencies}")
        self.frequencies = frequencies

    @property
    def n_parameters(self) -> int:
        return int(self.frequencies**self.grid.dimension) * self.action_dim

    def field(self, parameters: Tensor) -> Tensor:
        return self.at(parameters, _centers(self.grid, parameters.dtype, parameters.device))

    def at(self, parameters: Tensor, positions: Tensor) -> Tensor:
        order = torch.arange(self.frequencies, dtype=parameters.dtype, device=parameters.device)
        waves = torch.cos(math.pi * positions.to(parameters.dtype).unsqueeze(-1) * order)  # [m, d, N]
        basis = waves[:, 0] if self.grid.dimension == 1 else (waves[:, 0, :, None] * waves[:, 1, None, :]).flatten(-2)
        return (basis @ parameters.reshape(*parameters.shape[:-1], -1, self.action_dim)).tanh()


class NetworkField(Parameterization):
    """``"network:H1,H2"``: the action is the weights of a small network from position to move, ``tanh`` throughout.

    Layer by layer, each its weights (output by output) and then its biases. A weight of 1 stands for
    ``GAIN / sqrt(inputs)``, so that a box of ``[-1, 1]`` holds gentle fields and steep ones, whatever the widths.

    Args:
        grid: The grid of the lifted MDP.
        action_dim: Dimension of the action at one place.
        hidden: Widths of the hidden layers, at least one.
    """

    #: Largest weight times the square root of the layer's inputs.
    GAIN = 4.0

    def __init__(self, grid: Grid, action_dim: int, hidden: tuple[int, ...]) -> None:
        super().__init__(grid, action_dim)
        if not hidden or min(hidden) < 1:
            raise ValueError(f"network:H1,H2 needs hidden widths of at least 1, got {hidden!r}")
        self.layers = list(pairwise((grid.dimension, *hidden, action_dim)))

    @property
    def n_parameters(self) -> int:
        return sum((inputs + 1) * outputs for inputs, outputs in self.layers)

    def field(self, parameters: Tensor) -> Tensor:
        return self.at(parameters, _centers(self.grid, parameters.dtype, parameters.device))

    def at(self, parameters: Tensor, positions: Tensor) -> Tensor:
        values = 2.0 * positions.to(parameters.dtype) - 1.0
        pieces = iter(parameters.split([size for i, o in self.layers for size in (i * o, o)], -1))
        for inputs, outputs in self.layers:
            weights = next(pieces).unflatten(-1, (outputs, inputs)) * (self.GAIN / math.sqrt(inputs))
            values = (values @ weights.mT + self.GAIN * next(pieces).unsqueeze(-2)).tanh()
        return values


@lru_cache(maxsize=16)
def _centers(grid: Grid, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # usable with gradients even if first asked for in inference
        return grid.centers(dtype=dtype, device=device)


def make_parameterization(name: str | Parameterization, grid: Grid, action_dim: int) -> Parameterization:
    """The parameterization of a name.

    Args:
        name: ``"cells"``, ``"bilinear:M"``, ``"fourier:N"``, ``"network:H1,H2"`` (any number of widths), or a ready object.
        grid: The grid of the lifted MDP.
        action_dim: Dimension of the action at one place.

    Raises:
        ValueError: If the name is unknown or its numbers are out of range.

    Example:
        >>> make_parameterization("bilinear:5", Grid(25), 2).n_parameters
        50
        >>> make_parameterization("network:16,16", Grid(25), 2).n_parameters
        354
    """
    if isinstance(name, Parameterization):
        if (name.grid, name.action_dim) != (grid, action_dim):
            raise ValueError(
                f"parameterization is made for {name.grid} and actions of {name.action_dim} dimension(s), "
                f"but the world has {grid} and {action_dim}"
            )
        return name
    kind, _, argument = name.partition(":") if isinstance(name, str) else ("", "", "")
    numbers = [int(number) for number in argument.split(",")] if re.fullmatch(r"\d+(,\d+)*", argument, re.ASCII) else []
    if name == "cells":
        return CellField(grid, action_dim)
    if kind == "bilinear" and len(numbers) == 1:
        return BilinearField(grid, action_dim, *numbers)
    if kind == "fourier" and len(numbers) == 1:
        return FourierField(grid, action_dim, *numbers)
    if kind == "network" and numbers:
        return NetworkField(grid, action_dim, tuple(numbers))
    raise ValueError(
        "parameterization must be 'cells', 'bilinear:M' (such as 'bilinear:8'), 'fourier:N' or 'network:H1,H2' "
        f"(such as 'network:16,16'), got {name!r}"
    )
