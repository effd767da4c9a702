"""Policies: actions from a taxi's position and the fleet's distribution. A new policy stays put."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from mf_taxi_env.grid import Grid
from mf_taxi_env.mdp import ParticleMDP

PolicyKind = Literal["field", "network"]


@dataclass(frozen=True)
class PolicyConfig:
    """What kind of policy to learn.

    Attributes:
        kind: ``"field"``: one learnable action per cell, blind to ``mu`` (``L_pi = 0`` in the distribution, so an adversary has
            nothing to exploit); ``"network"``: a network of position and ``mu`` plus such a field.
        per_step: A field of its own for every step of the episode instead of one for all.
        hidden: Hidden widths of the network.
    """

    kind: PolicyKind = "field"
    per_step: bool = False
    hidden: tuple[int, ...] = (256, 256)

    def __post_init__(self) -> None:
        if self.kind not in get_args(PolicyKind):
            raise ValueError(f"policy kind must be 'field' or 'network', got {self.kind!r}")
        if not self.hidden or min(self.hidden) < 1:
            raise ValueError(f"hidden must name at least one positive width, got {self.hidden!r}")


class Policy(nn.Module, ABC):
    """A deterministic policy with values in ``[-1, 1]^d``; the same function seen by the lifted MDP and by a taxi."""

    @abstractmethod
    def field(self, mu: Tensor, t: int) -> Tensor:
        """Actions at the cell centres, ``[..., K, d]``, for distributions after trips ``mu`` ``[..., K]`` at step ``t``."""

    @abstractmethod
    def forward(self, positions: Tensor, mu: Tensor, t: int) -> Tensor:
        """Actions ``[m, d]`` at ``positions`` ``[m, d]`` in the distribution after trips ``mu`` ``[K]`` at step ``t``."""


class FieldPolicy(Policy):
    """One learnable action per cell, and per step where asked: ``tanh`` of its parameter, zero (stay) at the start.

    Args:
        grid: The grid of the lifted MDP.
        steps: Number of fields: 1, or the horizon for one per step.
    """

    def __init__(self, grid: Grid, steps: int = 1) -> None:
        super().__init__()
        self.grid = grid
        self.logits = nn.Parameter(torch.zeros(steps, grid.size, grid.dimension))

    def field(self, mu: Tensor, t: int) -> Tensor:
        actions = self.raw(t).tanh()
        return actions.expand(*mu.shape[:-1], *actions.shape)

    def forward(self, positions: Tensor, mu: Tensor, t: int) -> Tensor:
        return self.raw(t)[self.grid.index(positions)].tanh()

    def raw(self, t: int) -> Tensor:
        """The field before its bound, ``[K, d]``."""
        return self.logits[min(t, len(self.logits) - 1)]


class NetworkPolicy(Policy):
    """A network of position and distribution, plus a learnable field that lets neighbouring cells differ.

    The first layer is split, ``W_s s + W_mu (K mu)``, so that the distribution's part is computed once for a whole fleet
    instead of being repeated per taxi. The last layer starts at zero: a new policy stays put.

    Args:
        grid: The grid of the lifted MDP.
        hidden: Hidden widths, at least one.
        generator: Source of the initial weights.
        steps: Number of residual fields: 1, or the horizon for one per step.
    """

    def __init__(self, grid: Grid, hidden: tuple[int, ...], generator: torch.Generator, steps: int = 1) -> None:
        super().__init__()
        self.grid = grid
        self.from_position = nn.Linear(grid.dimension, hidden[0])
        self.from_mu = nn.Linear(grid.size, hidden[0], bias=False)
        self.inner = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(hidden))
        self.out = nn.Linear(hidden[-1], grid.dimension)
        for layer in (self.from_position, self.from_mu, *self.inner):
            assert isinstance(layer, nn.Linear)
            nn.init.kaiming_uniform_(layer.weight, a=5**0.5, generator=generator)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        self.residual = FieldPolicy(grid, steps)
        self.register_buffer("centers", grid.centers(), persistent=False)

    def field(self, mu: Tensor, t: int) -> Tensor:
        assert isinstance(self.centers, Tensor)
        return (self._network(self.centers, mu) + self.residual.raw(t)).tanh()

    def forward(self, positions: Tensor, mu: Tensor, t: int) -> Tensor:
        return (self._network(positions, mu) + self.residual.raw(t)[self.grid.index(positions)]).tanh()

    def _network(self, positions: Tensor, mu: Tensor) -> Tensor:
        # K mu is of order one, as the layers' initial scale expects.
        hidden = self.from_position(positions) + self.from_mu(mu * self.grid.size).unsqueeze(-2)
        for layer in self.inner:
            hidden = layer(nn.functional.leaky_relu(hidden))
        out: Tensor = self.out(nn.functional.leaky_relu(hidden))
        return out


def make_policy(config: PolicyConfig, mdp: ParticleMDP, generator: torch.Generator) -> Policy:
    """A policy for a world, staying put."""
    steps = mdp.horizon if config.per_step else 1
    policy: Policy
    if config.kind == "field":
        policy = FieldPolicy(mdp.grid, steps)
    else:
        policy = NetworkPolicy(mdp.grid, config.hidden, generator, steps)
    return policy.to(device=mdp.device, dtype=mdp.dtype)
