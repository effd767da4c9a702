"""What the representative taxis saw: the only data that the agent learns from."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Transitions(NamedTuple):
    """Moves of representative taxis."""

    positions: Tensor  #: [n, d] before the move, after trips
    mu: Tensor  #: [n, K] distribution of the fleet after trips
    actions: Tensor  #: [n, d] in [-1, 1]
    next_positions: Tensor  #: [n, d] after move and noise

    @property
    def size(self) -> int:
        """Number of moves ``n``."""
        return self.positions.shape[0]

    @classmethod
    def empty(cls, like: Tensor, dimension: int) -> Transitions:
        """No moves yet, on grids of ``like`` ``[K]``."""
        none = like.new_zeros(0, dimension)
        return cls(none, like.new_zeros(0, like.shape[-1]), none, none)

    def join(self, other: Transitions) -> Transitions:
        """These moves, then the others."""
        return Transitions(*(torch.cat(pair) for pair in zip(self, other, strict=True)))


class Trips(NamedTuple):
    """Passengers of representative taxis."""

    origins: Tensor  #: cells where they got in [n], whole numbers
    destinations: Tensor  #: cells where they got out [n]

    @property
    def size(self) -> int:
        """Number of trips ``n``."""
        return self.origins.shape[0]

    @classmethod
    def empty(cls, device: torch.device) -> Trips:
        """No trips yet."""
        none = torch.zeros(0, dtype=torch.long, device=device)
        return cls(none, none)

    def join(self, *others: Trips) -> Trips:
        """These trips, then the others."""
        return Trips(*(torch.cat(parts) for parts in zip(self, *others, strict=True)))
