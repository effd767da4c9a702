"""Where a perturbed particle lands on a ring or torus: Gaussian noise, wrapped, as probabilities of grid cells."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mf_taxi_env.checks import finite_number, plain_numbers
from mf_taxi_env.grid import Grid
from mf_taxi_env.noise import SATURATION, multiples


@dataclass(frozen=True)
class WrappedGaussian:
    """Independent Gaussian noise per axis on the torus ``[0, 1)^d``, whose ends are one point.

    The probability of cell ``i`` of an axis is ``sum_m F((i+1)/k + m) - F(i/k + m)`` over all integers ``m`` with
    ``F(x) = NormalCDF((x - destination) / std)``. Images beyond the distance at which ``F`` is 0 or 1 to the last bit have
    probability zero and are not computed; the rest are summed, so the result is exact to rounding.

    Args:
        grid: The grid to land on.
        std: Standard deviation per axis, in circumferences; positive.
    """

    grid: Grid
    std: float

    def __post_init__(self) -> None:
        plain_numbers(self)
        finite_number("noise_std", self.std, positive=True)

    def cell_probabilities(self, destinations: Tensor) -> Tensor:
        """Probability of each cell of each axis.

        Args:
            destinations: ``[..., d]``, float32 or float64; 0 and 1 are the same point.

        Returns:
            ``[..., d, k]``; the last axis sums to one.
        """
        k, scale = self.grid.cells, 1.0 / (math.sqrt(2.0) * self.std)
        reach = SATURATION[destinations.dtype] / scale * k
        width = math.ceil(2.0 * reach) + 1
        # The cells in reach on the unrolled torus, from `first` on.
        places = (destinations * k).unsqueeze(-1)
        first = (places.detach() - reach).floor()
        edges = multiples(width + 1, scale / k, destinations.dtype, destinations.device)[:, 0]
        window = torch.erf((first - places) * (scale / k) + edges).diff(dim=-1) / 2
        # Rolled up, cells that lie a whole number of turns apart are one; the window's first cell comes first.
        turns = math.ceil(width / k)
        rolled = F.pad(window, (0, turns * k - width)).unflatten(-1, (turns, k)).sum(-2)
        # A NaN makes its probabilities NaN; as an index it would be a fault, on a GPU one that ends the process.
        back = k - first.nan_to_num(nan=0.0).remainder(k).long()
        # Twice in a row spares a modulo per cell.
        return torch.cat((rolled, rolled), -1).gather(-1, back + multiples(k, 1, torch.int64, destinations.device)[:, 0])

    def push_forward(self, mass: Tensor, destinations: Tensor) -> Tensor:
        """Where ``mass`` ``[..., n]`` that heads for ``destinations`` ``[..., n, d]`` lands: ``[..., K]``, of equal total."""
        axes = self.cell_probabilities(destinations).unbind(-2)
        if len(axes) == 1:
            return (mass.unsqueeze(-2) @ axes[0]).squeeze(-2)
        return ((axes[0] * mass.unsqueeze(-1)).mT @ axes[1]).flatten(-2)

    def sample(self, destinations: Tensor, generator: torch.Generator) -> Tensor:
        """Draw where particles land.

        Args:
            destinations: ``[m, d]``.
            generator: Source of randomness, on the device of ``destinations``.

        Returns:
            Positions ``[m, d]`` in ``[0, 1]``; rounding may reach 1.
        """
        noise = torch.randn(destinations.shape, generator=generator, dtype=destinations.dtype, device=destinations.device)
        return (destinations + self.std * noise).remainder(1.0)
