"""What models of motion look at: position, action and local density, normalised."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mf_taxi_env.grid import Grid
from mf_taxi_env.motion import local_mass
from mf_taxi_env.space import CUBE, Space
from safe_m3_agent.transitions import Transitions


def log_density(grid: Grid, mass: Tensor) -> Tensor:
    """``log(1 + K mu')``, what models see of the mass of a cell; any shape."""
    return torch.log1p(grid.size * mass)


class MotionInputs:
    """Normalised inputs ``(s, a, log(1 + K mu'(c(s))))`` of a model of motion; on a ring ``s`` is its sine and cosine.

    Positions and actions have known ranges and a uniform fleet has density log 2: no statistics to estimate, none to drift.

    Args:
        grid: The world's grid.
        dtype: Floating-point type.
        device: Device.
        space: The world's space.
    """

    def __init__(self, grid: Grid, dtype: torch.dtype, device: torch.device | str, space: Space = CUBE) -> None:
        d = grid.dimension
        self.grid = grid
        self.space = space
        place = space.coordinates(grid.centers()).shape[-1]
        #: Number of inputs ``i``: ``2 d + 1``, on a ring ``3 d + 1``.
        self.width = place + d + 1
        # Mean and standard deviation of the coordinates of a uniform place, of uniform actions, and about those of the density.
        centre, spread = (0.0, 2**-0.5) if space.periodic else (0.5, 12**-0.5)
        self.mean = torch.tensor([centre] * place + [0.0] * d + [math.log(2.0)], dtype=dtype, device=device)
        self.std = torch.tensor([spread] * place + [3**-0.5] * d + [0.4], dtype=dtype, device=device)

    def __call__(self, positions: Tensor, mu: Tensor, actions: Tensor) -> Tensor:
        """Inputs ``[..., n, i]``.

        Args:
            positions: ``[n, d]`` or ``[..., n, d]`` in ``[0, 1]``.
            mu: Distribution after trips ``[..., K]``.
            actions: ``[..., n, d]`` in ``[-1, 1]``.
        """
        return self._normalised(positions, actions, local_mass(self.grid, positions, mu))

    def of_moves(self, moves: Transitions) -> Tensor:
        """Inputs ``[n, i]`` of ``n`` moves, each in the distribution that it was seen in."""
        mass = moves.distributions[moves.seen_in, self.grid.index(moves.positions)]
        return self._normalised(moves.positions, moves.actions, mass)

    def _normalised(self, positions: Tensor, actions: Tensor, mass: Tensor) -> Tensor:
        """Inputs ``[..., n, i]``, where the cells of the positions have a mass of ``[..., n]``."""
        density, batch = log_density(self.grid, mass).unsqueeze(-1), actions.shape[:-1]
        raw = torch.cat([self.space.coordinates(positions).expand(*batch, -1), actions, density.expand(*batch, 1)], -1)
        return (raw - self.mean) / self.std
