"""What the representative taxis saw: the only data that the agent learns from."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Transitions(NamedTuple):
    """Moves of representative taxis. A distribution is kept once, however many taxis moved in it; so are those of an episode
    that goes like the one before, as all do while the policy in use stays."""

    positions: Tensor  #: [n, d] before the move, after trips
    actions: Tensor  #: [n, d] in [-1, 1]
    next_positions: Tensor  #: [n, d] after move and noise
    distributions: Tensor  #: [s, K] of the fleet after trips
    seen_in: Tensor  #: [n] row of ``distributions`` that the fleet had at each move, whole numbers

    @property
    def size(self) -> int:
        """Number of moves ``n``."""
        return self.positions.shape[0]

    @property
    def mu(self) -> Tensor:
        """Distribution of the fleet after trips at each move, ``[n, K]``, a copy."""
        return self.distributions[self.seen_in]

    @classmethod
    def of(cls, positions: Tensor, mu: Tensor, actions: Tensor, next_positions: Tensor) -> Transitions:
        """Moves ``[n, d]`` in one distribution ``mu`` ``[K]``, or each in one of its own ``[n, K]``."""
        n, device = len(positions), positions.device
        seen_in = torch.zeros(n, dtype=torch.long, device=device) if mu.dim() == 1 else torch.arange(n, device=device)
        return cls(positions, actions, next_positions, mu.reshape(-1, mu.shape[-1]), seen_in)

    @classmethod
    def empty(cls, like: Tensor, dimension: int) -> Transitions:
        """No moves yet, on grids of ``like`` ``[K]``."""
        none = like.new_zeros(0, dimension)
        return cls.of(none, like.new_zeros(0, like.shape[-1]), none, none)

    def join(self, *others: Transitions) -> Transitions:
        """These moves, then the others. Distributions that repeat the last ones are not kept again."""
        seen_in, kept, rows = [self.seen_in], [self.distributions], len(self.distributions)
        for store in others:
            count = len(store.distributions)
            if count and len(kept[-1]) >= count and torch.equal(kept[-1][-count:], store.distributions):
                seen_in.append(store.seen_in + rows - count)
                continue
            seen_in.append(store.seen_in + rows)
            kept.append(store.distributions)
            rows += count
        positions, actions, next_positions = (
            torch.cat(parts) for parts in zip(*(store[:3] for store in (self, *others)), strict=True)
        )
        return Transitions(positions, actions, next_positions, torch.cat(kept), torch.cat(seen_in))


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
