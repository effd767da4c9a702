"""Critics of MF-DDPG: what is still to be earned, as learned from the replay."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor, nn

from mf_taxi_env.grid import Grid
from safe_m3_agent.hallucination import HallucinatedMDP
from safe_m3_agent.planners.actor import LiftedActor
from safe_m3_agent.planners.episodes import Episodes, Stage
from safe_m3_agent.planners.modes import CosineModes

CriticKind = Literal["plain", "grid", "expansion"]

#: Smallest unit of a critic, in nats: episodes that hardly differ are not blown up.
LEAST_UNIT = 0.3


class Critic(nn.Module, ABC):
    """Two hidden layers over features of a transition, beside a linear path, in standardised units.

    Each step of the episode has biases and slopes of its own.

    Args:
        mdp: The learned world.
        features: Number of features.
        hidden: Width of the hidden layers.
        generator: Source of the initial weights.
    """

    #: Whether features are given, so that they can be brought to a common scale, or learned as well.
    fixed_features = True
    mean: Tensor
    std: Tensor
    offset: Tensor
    unit: Tensor

    def __init__(self, mdp: HallucinatedMDP, features: int, hidden: int, generator: torch.Generator) -> None:
        super().__init__()
        like = mdp.initial()
        self.density = float(mdp.grid.size)
        self.first = dense(features + 1 + mdp.directions, hidden, mdp, generator)
        self.steps = nn.Parameter(
            0.1 * torch.randn(mdp.horizon, hidden, generator=generator, dtype=mdp.dtype, device=mdp.device)
        )
        self.inner = dense(hidden, hidden, mdp, generator)
        # Zero at first: a new critic is the mean return-to-go.
        self.out = nn.Parameter(like.new_zeros(hidden))
        # A linear path beside the network: for small noise the return is nearly linear in the field.
        self.slope = nn.Parameter(like.new_zeros(features))
        self.slopes = nn.Parameter(like.new_zeros(mdp.horizon, features))
        self.bias = nn.Parameter(like.new_zeros(mdp.horizon))
        self.register_buffer("mean", like.new_zeros(features))
        self.register_buffer("std", like.new_ones(features))
        self.register_buffer("offset", like.new_zeros(mdp.horizon))
        self.register_buffer("unit", like.new_ones(()))

    @abstractmethod
    def features(self, shifted: Tensor, fields: Tensor | None) -> Tensor:
        """Features ``[M, S, F]`` of distributions after trips ``[M, S, K]`` and fields ``[M, S, K, a]``."""

    def forward(self, shifted: Tensor, fields: Tensor | None, doubt: Tensor, z: Tensor, first: int = 0) -> Tensor:
        """Reward to go ``[M, S]`` in nats at the steps ``first, first + 1, ...``; arguments as in :class:`Episodes`."""
        steps = slice(first, first + shifted.shape[1])
        features = (self.features(shifted, fields) - self.mean) / self.std
        hidden = self.first(torch.cat([features, doubt.unsqueeze(-1), z], -1)) + self.steps[steps]
        hidden = nn.functional.silu(self.inner(nn.functional.silu(hidden)))
        linear = (features * (self.slope + self.slopes[steps])).sum(-1)
        return (hidden @ self.out + linear + self.bias[steps]) * self.unit + self.offset[steps]

    @torch.no_grad()
    def standardise(self, episodes: Episodes) -> None:
        """Choose the units of features and returns from episodes."""
        if self.fixed_features:
            features = self.features(episodes.shifted, episodes.fields).flatten(0, 1)
            self.mean.copy_(features.mean(0))
            self.std.copy_(_deviation(features).clamp_min(1e-3))
        self.offset.copy_(episodes.to_go.mean(0))
        self.unit.copy_(_deviation((episodes.to_go - self.offset).flatten()).clamp_min(LEAST_UNIT))


class PlainCritic(Critic):
    """``Q(t, mu', field)`` from the cosine modes of density and field."""

    def __init__(self, mdp: HallucinatedMDP, modes: CosineModes, actions: int, hidden: int, generator: torch.Generator) -> None:
        super().__init__(mdp, modes.size * (1 + actions), hidden, generator)
        self.modes = modes

    def features(self, shifted: Tensor, fields: Tensor | None) -> Tensor:
        assert fields is not None
        layers = torch.cat([(shifted * self.density).unsqueeze(-2), fields.mT], -2)
        return self.modes.coefficients(layers).flatten(-2)


class GridCritic(Critic):
    """``Q(t, mu', field)`` by two strided convolutions over density, field and flow (density times field).

    Fields enter smoothed: nothing finer was tried, so nothing can be known about it.
    """

    fixed_features = False
    #: A field's typical size, which brings it to the order of a density.
    typical = 0.05
    #: Of both convolutions.
    channels = 16

    def __init__(
        self,
        mdp: HallucinatedMDP,
        modes: CosineModes,
        actions: int,
        hidden: int,
        generator: torch.Generator,
    ) -> None:
        side = math.ceil(math.ceil(mdp.grid.cells / 2) / 2)
        super().__init__(mdp, self.channels * side**2, hidden, generator)
        self.modes = modes
        self.cells = mdp.grid.cells
        self.wide = convolution(1 + 2 * actions, self.channels, 5, mdp, generator)
        self.narrow = convolution(self.channels, self.channels, 3, mdp, generator)

    def features(self, shifted: Tensor, fields: Tensor | None) -> Tensor:
        assert fields is not None
        density = (shifted * self.density).unsqueeze(-1)
        smooth = self.modes.smooth(fields) / self.typical
        layers = torch.cat([density - 1.0, smooth, density * smooth], -1).mT
        images = layers.flatten(0, 1).unflatten(-1, (self.cells, self.cells))
        seen: Tensor = nn.functional.silu(self.narrow(nn.functional.silu(self.wide(images))))
        return seen.reshape(*shifted.shape[:2], -1)


class StateCritic(Critic):
    """``V(t, mu')`` from the cosine modes of the density; what the field does, the model says."""

    def __init__(self, mdp: HallucinatedMDP, modes: CosineModes, hidden: int, generator: torch.Generator) -> None:
        super().__init__(mdp, modes.size, hidden, generator)
        self.modes = modes

    def features(self, shifted: Tensor, fields: Tensor | None) -> Tensor:
        return self.modes.coefficients(shifted * self.density)


def make_critic(
    kind: CriticKind, mdp: HallucinatedMDP, modes: CosineModes, actions: int, hidden: int, generator: torch.Generator
) -> Critic:
    """A new critic for fields of ``actions`` numbers per cell.

    Raises:
        ValueError: If convolutions are asked for in a world that is not a square.
    """
    check_critic(kind, mdp.grid)
    if kind == "plain":
        return PlainCritic(mdp, modes, actions, hidden, generator)
    if kind == "grid":
        return GridCritic(mdp, modes, actions, hidden, generator)
    return StateCritic(mdp, modes, hidden, generator)


def check_critic(kind: CriticKind, grid: Grid) -> None:
    """Make sure that a critic can see a world.

    Raises:
        ValueError: If convolutions are asked for in a world that is not a square.
    """
    if kind == "grid" and grid.dimension != 2:
        raise ValueError(f"ddpg.critic='grid' needs a world of two dimensions, got {grid}; choose 'plain' or 'expansion'")


def expand(stage: Stage, critic: Critic, actor: LiftedActor, now: Episodes, fields: Tensor, steps: int) -> Tensor:
    """Model-based value expansion: rewards of some steps through the model, then the critic's ``V``.

    Differentiable by ``fields``, by the actor and by the critic (Feinberg et al. 2018, arXiv 1803.00101); here the lifted
    transition, known or learned, is a differentiable map.

    Args:
        stage: The learned world and the objective.
        critic: ``V``.
        actor: Acts after the first step.
        now: Transitions ``[M, T, ...]``, of which fields and rewards are not looked at.
        fields: What to do first, ``[M, T, K, a]``.
        steps: Steps through the model, at least 1; fewer where the episode ends.

    Returns:
        ``[M, T]``.
    """
    return torch.stack([_expand_from(t, stage, critic, actor, now, fields[:, t], steps) for t in range(fields.shape[1])], 1)


def _expand_from(
    first: int, stage: Stage, critic: Critic, actor: LiftedActor, now: Episodes, fields: Tensor, steps: int
) -> Tensor:
    world = stage.mdp.plausible(now.z[:, first])
    nominal, z = now.nominal[:, first], now.z[:, first : first + 1]
    mu, shifted, doubt = now.mu[:, first], now.shifted[:, first], now.doubt[:, first]
    total = torch.zeros_like(doubt)
    for t in range(first, min(first + steps, world.horizon)):
        if t > first:
            fields = actor.fields(shifted.unsqueeze(1), nominal.unsqueeze(1), t).squeeze(1)
        moved = world.move(shifted, fields, t)
        doubt = doubt + moved.uncertainty
        total = total + stage.reward(world.reward(mu, fields, moved.mu, t), world.margins(moved.mu), doubt, nominal)
        mu = moved.mu
        if t + 1 == world.horizon:
            return total
        shifted = world.shift(mu, t + 1)
    ahead: Tensor = critic(shifted.unsqueeze(1), None, doubt.unsqueeze(1), z, min(first + steps, world.horizon))
    return total + ahead.squeeze(1)


def _deviation(values: Tensor) -> Tensor:
    """Standard deviation over rows; 0 for a single one, which says nothing of it."""
    return values.std(0, correction=min(1, len(values) - 1))


def dense(inputs: int, outputs: int, mdp: HallucinatedMDP, generator: torch.Generator) -> nn.Linear:
    """A linear layer drawn from a generator."""
    layer: nn.Linear = nn.utils.skip_init(nn.Linear, inputs, outputs, device=mdp.device, dtype=mdp.dtype)
    nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5.0), generator=generator)
    nn.init.zeros_(layer.bias)
    return layer


def convolution(inputs: int, outputs: int, width: int, mdp: HallucinatedMDP, generator: torch.Generator) -> nn.Conv2d:
    """A convolution that halves the grid, drawn from a generator."""
    layer: nn.Conv2d = nn.utils.skip_init(
        nn.Conv2d, inputs, outputs, width, stride=2, padding=width // 2, device=mdp.device, dtype=mdp.dtype
    )
    nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5.0), generator=generator)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer
