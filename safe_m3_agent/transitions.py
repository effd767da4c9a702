"""What the representative taxis saw: the only data that the agent learns motion from."""

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
