"""Where a perturbed particle lands: Gaussian noise, truncated to the unit cube, as probabilities of grid cells."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mf_taxi_env.grid import Grid


@dataclass(frozen=True)
class TruncatedGaussian:
    """Independent Gaussian noise per axis, truncated so that the particle stays in ``[0, 1]^d``.

    With ``F(x) = NormalCDF((x - destination) / std)`` the probability of cell ``i`` of an axis is
    ``(F((i+1)/k) - F(i/k)) / (F(1) - F(0))`` (arXiv 2306.17052, Appendix D.2).

    Args:
        grid: The grid to land on.
        std: Standard deviation per axis, in units of the unit cube's side; positive.
    """

    grid: Grid
    std: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.std) and self.std > 0):
            raise ValueError(f"noise_std must be a positive number, got {self.std!r}")

    def cell_probabilities(self, destinations: Tensor) -> Tensor:
        """Probability of each cell of each axis.

        Args:
            destinations: ``[..., d]`` in ``[0, 1]``.

        Returns:
            ``[..., d, k]``; the last axis sums to one.
        """
        edges = self.grid.edges(dtype=destinations.dtype, device=destinations.device)
        # erf is twice the distance of the normal CDF from one half; the factors cancel in the quotient. It is 1 in float64
        # from 5.9 on: the clamp changes no value and spares the backward pass the denormal tails of exp(-x^2), which are
        # slow.
        cdf = torch.erf(((edges - destinations.unsqueeze(-1)) * (1.0 / (self.std * math.sqrt(2.0)))).clamp(-6.0, 6.0))
        return cdf.diff(dim=-1) / (cdf[..., -1:] - cdf[..., :1])

    def push_forward(self, mass: Tensor, destinations: Tensor) -> Tensor:
        """The distribution of particles that head for ``destinations`` and are perturbed.

        In two dimensions this is ``Px^T diag(mass) Py``: two small matrix products, never a ``K x K`` kernel.

        Args:
            mass: Mass of each particle group, ``[..., n]``.
            destinations: ``[..., n, d]`` in ``[0, 1]``.

        Returns:
            ``[..., K]`` with the same total mass.
        """
        axes = self.cell_probabilities(destinations).unbind(-2)
        weighted = axes[0] * mass.unsqueeze(-1)
        if self.grid.dimension == 1:
            return weighted.sum(-2)
        return (weighted.transpose(-1, -2) @ axes[1]).flatten(-2)

    def sample(self, destinations: Tensor, generator: torch.Generator) -> Tensor:
        """Draw where particles land.

        Args:
            destinations: ``[m, d]`` in ``[0, 1]``.
            generator: Source of randomness, on the device of ``destinations``.

        Returns:
            Positions ``[m, d]`` in ``[0, 1]``.
        """
        scale = self.std * math.sqrt(2.0)
        low = torch.erf(-destinations / scale)
        high = torch.erf((1.0 - destinations) / scale)
        uniform = torch.rand(destinations.shape, generator=generator, dtype=destinations.dtype, device=destinations.device)
        # Inverse of the truncated distribution function. It is infinite at the two ends, which rounding may reach.
        end = 1.0 - torch.finfo(destinations.dtype).eps / 2
        noise = torch.erfinv((low + uniform * (high - low)).clamp(-end, end))
        return (destinations + scale * noise).clamp_(0.0, 1.0)
