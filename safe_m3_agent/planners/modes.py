"""The lowest cosine modes of a city: what MF-DDPG's noise varies in and its critics look at."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from safe_m3_agent.hallucination import HallucinatedMDP


class CosineModes:
    """Functions on the grid as sums of ``cos(pi i x) cos(pi j y)``, ``i, j < n``, each of mean square one over the cells.

    A field has ``2 K`` numbers, more than a critic can tell apart by trying. White noise in them sends neighbouring taxis
    apart, which the mean field averages out again; what moves the fleet is smooth.

    Args:
        mdp: The world; it gives grid, dtype and device.
        n: Modes per axis; no more than there are cells are used.
    """

    def __init__(self, mdp: HallucinatedMDP, n: int) -> None:
        cells = mdp.grid.cells
        centers = (torch.arange(cells, dtype=mdp.dtype, device=mdp.device) + 0.5) / cells
        order = torch.arange(min(n, cells), dtype=mdp.dtype, device=mdp.device).unsqueeze(1)
        axis = (math.pi * order * centers).cos() * torch.where(order == 0, 1.0, math.sqrt(2.0))
        #: The modes, ``[N, K]``.
        self.basis = axis if mdp.grid.dimension == 1 else torch.kron(axis, axis)

    @property
    def size(self) -> int:
        """Number of modes, ``N``."""
        return len(self.basis)

    def coefficients(self, values: Tensor) -> Tensor:
        """Coefficients ``[..., N]`` of values per cell ``[..., K]``."""
        return values @ self.basis.mT / self.basis.shape[1]

    def smooth(self, field: Tensor) -> Tensor:
        """The part of a field ``[..., K, d]`` that the modes span."""
        return self.basis.mT @ (self.basis @ field) / self.basis.shape[1]

    def noise(self, *shape: int, generator: torch.Generator) -> Tensor:
        """Smooth Gaussian noise ``[..., K, d]`` with a standard deviation of one on average over the cells."""
        *batch, _, d = shape
        drawn = torch.randn(*batch, self.size, d, generator=generator, dtype=self.basis.dtype, device=self.basis.device)
        return self.basis.mT @ drawn / math.sqrt(self.size)
