"""Policies: actions from a taxi's position and the fleet's distribution. A new policy stays put."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from mf_taxi_env.checks import plain_numbers, whole_number
from mf_taxi_env.mdp import Field, MeanFieldMDP

PolicyKind = Literal["field", "network"]


@dataclass(frozen=True)
class PolicyConfig:
    """What kind of policy to learn.

    Attributes:
        kind: ``"field"``: one learnable action per cell, blind to ``mu`` (``L_pi = 0`` in the distribution, so an adversary has
            nothing to exploit); ``"network"``: a network of position and ``mu``.
        per_step: A policy of its own for every step of the episode, field and network, instead of one for all.
        hidden: Hidden widths of the network.
        residual: Add a field to the network, so that neighbouring cells can differ; ``False`` is the published policy.
    """

    kind: PolicyKind = "field"
    per_step: bool = False
    hidden: tuple[int, ...] = (256, 256)
    residual: bool = True

    def __post_init__(self) -> None:
        plain_numbers(self)
        if self.kind not in get_args(PolicyKind):
            raise ValueError(f"policy.kind must be 'field' or 'network', got {self.kind!r}")
        if not self.hidden:
            raise ValueError(f"policy.hidden must name at least one width, got {self.hidden!r}")
        for layer, width in enumerate(self.hidden):
            whole_number(f"policy.hidden[{layer}]", width, least=1)


class Policy(nn.Module, ABC):
    """A deterministic policy with values in ``[-1, 1]^d``; the same function seen by the lifted MDP and by a taxi."""

    @abstractmethod
    def prepared(self) -> Field:
        """The policy as it is now, for one rollout: what does not depend on the distribution is computed here, once."""

    def field(self, mu: Tensor, t: int) -> Tensor:
        """Actions at the cell centres, ``[..., K, d]``, for distributions after trips ``mu`` ``[..., K]`` at step ``t``."""
        return self.prepared().field(mu, t)

    @abstractmethod
    def per_cell(self) -> list[nn.Parameter]:
        """Those of the parameters that are given per cell, each ``[steps, K, d]``."""

    @abstractmethod
    def at(self, mu: Tensor, t: int) -> Callable[[Tensor], Tensor]:
        """The policy in one distribution after trips ``mu`` ``[K]`` at step ``t``: a function from positions ``[m, d]`` to
        actions ``[m, d]``. What does not depend on positions is computed here, once, however often the function is called."""

    def forward(self, positions: Tensor, mu: Tensor, t: int) -> Tensor:
        """Actions ``[m, d]`` at ``positions`` ``[m, d]`` in the distribution after trips ``mu`` ``[K]`` at step ``t``."""
        return self.at(mu, t)(positions)


class FieldPolicy(Policy):
    """One learnable action per cell, and per step where asked: ``tanh`` of its parameter, zero (stay) at the start.

    Args:
        mdp: The world; it gives grid, dtype and device.
        steps: Number of fields: 1, or the horizon for one per step.
    """

    def __init__(self, mdp: MeanFieldMDP, steps: int = 1) -> None:
        super().__init__()
        self.grid = mdp.grid
        shape = (steps, mdp.grid.size, mdp.grid.dimension)
        self.logits = nn.Parameter(torch.zeros(shape, dtype=mdp.dtype, device=mdp.device))

    @classmethod
    def of_actions(cls, mdp: MeanFieldMDP, actions: Tensor) -> FieldPolicy:
        """The policy that takes given actions, such as a rule of the operator's.

        Args:
            mdp: The world.
            actions: At the cell centres, ``[K, d]``, or ``[T, K, d]`` for one field per step; in ``(-1, 1)``.

        Raises:
            ValueError: If they have another shape, or are not finite and in ``(-1, 1)``.
        """
        fields = torch.as_tensor(actions, dtype=mdp.dtype, device=mdp.device)
        fields = fields if fields.dim() == 3 else fields.unsqueeze(0)
        policy, shape = cls(mdp, len(fields)), (mdp.grid.size, mdp.grid.dimension)
        if fields.shape[1:] != shape or len(fields) not in (1, mdp.horizon):
            raise ValueError(f"actions must have shape {shape} or {(mdp.horizon, *shape)}, got {tuple(actions.shape)}")
        if not bool((fields.abs() < 1).all()):
            raise ValueError(f"actions must be finite and lie in (-1, 1), got some of size {float(fields.abs().max()):g}")
        with torch.no_grad():
            policy.logits.copy_(fields.atanh())
        return policy

    def prepared(self) -> Field:
        return _FixedField(self.logits.tanh())

    def per_cell(self) -> list[nn.Parameter]:
        return [self.logits]

    def at(self, mu: Tensor, t: int) -> Callable[[Tensor], Tensor]:
        actions = self.raw(t).tanh()
        return lambda positions: actions.index_select(0, self.grid.index(positions))

    def raw(self, t: int) -> Tensor:
        """The field before its bound, ``[K, d]``."""
        return self.logits[min(t, len(self.logits) - 1)]


class Network(nn.Module):
    """A network of position and distribution, before the bound on actions.

    The first layer is split, ``W_s s + W_mu (K mu)``, so that the distribution's part is computed once for a whole fleet
    instead of being repeated per taxi. On a ring ``s`` is its sine and cosine. The last layer starts at zero.

    Args:
        mdp: The world; it gives grid, dtype and device.
        hidden: Hidden widths, at least one.
        generator: Source of the initial weights.
    """

    def __init__(self, mdp: MeanFieldMDP, hidden: tuple[int, ...], generator: torch.Generator) -> None:
        super().__init__()

        def layer(inputs: int, outputs: int, *, bias: bool = True, zero: bool = False) -> nn.Linear:
            # skip_init: nn.Linear would draw from torch's global generator.
            linear: nn.Linear = nn.utils.skip_init(nn.Linear, inputs, outputs, bias=bias, device=mdp.device, dtype=mdp.dtype)
            if zero:
                nn.init.zeros_(linear.weight)
            else:
                nn.init.kaiming_uniform_(linear.weight, a=5**0.5, generator=generator)
            if bias:
                nn.init.zeros_(linear.bias)
            return linear

        self.space, self.cells = mdp.space, mdp.grid.size
        centers = mdp.grid.centers(dtype=mdp.dtype, device=mdp.device)
        width = self.space.coordinates(centers).shape[-1]
        self.from_position = layer(width, hidden[0])
        self.from_mu = layer(mdp.grid.size, hidden[0], bias=False)
        self.inner = nn.ModuleList(layer(a, b) for a, b in pairwise(hidden))
        self.out = layer(hidden[-1], mdp.grid.dimension, zero=True)

    def located(self, positions: Tensor) -> Tensor:
        """The positions' part of the first layer, ``[n, h]``, of positions ``[n, d]``."""
        part: Tensor = self.from_position(self.space.coordinates(positions))
        return part

    def of_distribution(self, mu: Tensor) -> Tensor:
        """The distribution's part of the first layer, ``[..., h]``."""
        # K mu is of order one, as the layers' initial scale expects.
        part: Tensor = self.from_mu(mu * self.cells)
        return part

    def upper(self, hidden: Tensor) -> Tensor:
        """What is above the first layer, whose sum is given, ``[..., n, h]`` and not kept: ``[..., n, d]``."""
        # In place: no one else needs the sums. In two dimensions: a layer's output is then no view, whose change in place
        # would cost the gradient two copies.
        *batch, _ = hidden.shape
        hidden = nn.functional.leaky_relu(hidden, inplace=True).flatten(0, -2)
        for layer in self.inner:
            hidden = nn.functional.leaky_relu(layer(hidden), inplace=True)
        out: Tensor = self.out(hidden).unflatten(0, batch)
        return out


class NetworkPolicy(Policy):
    """A :class:`Network`, plus, unless told otherwise, a learnable field: neighbouring cells can differ.

    Args:
        mdp: The world; it gives grid, dtype and device.
        hidden: Hidden widths, at least one.
        generator: Source of the initial weights.
        steps: Number of networks, and of residual fields: 1, or the horizon for one per step.
        residual: Whether there are residual fields.
    """

    def __init__(
        self,
        mdp: MeanFieldMDP,
        hidden: tuple[int, ...],
        generator: torch.Generator,
        steps: int = 1,
        *,
        residual: bool = True,
    ) -> None:
        super().__init__()
        self.grid = mdp.grid
        self.networks = nn.ModuleList(Network(mdp, hidden, generator) for _ in range(steps))
        self.residual = FieldPolicy(mdp, steps) if residual else None
        self.register_buffer("centers", mdp.grid.centers(dtype=mdp.dtype, device=mdp.device), persistent=False)

    def prepared(self) -> Field:
        assert isinstance(self.centers, Tensor)
        return _NetworkField(self, [self.network(t).located(self.centers) for t in range(len(self.networks))])

    def per_cell(self) -> list[nn.Parameter]:
        return [] if self.residual is None else self.residual.per_cell()

    def at(self, mu: Tensor, t: int) -> Callable[[Tensor], Tensor]:
        network = self.network(t)
        common = network.of_distribution(mu) + network.from_position.bias
        residual = None if self.residual is None else self.residual.raw(t)

        def act(positions: Tensor) -> Tensor:
            coordinates = network.space.coordinates(positions)
            raw = network.upper(nn.functional.linear(coordinates, network.from_position.weight, common))
            return (raw if residual is None else raw + residual.index_select(0, self.grid.index(positions))).tanh()

        return act

    def network(self, t: int) -> Network:
        """The network of step ``t``."""
        network = self.networks[min(t, len(self.networks) - 1)]
        assert isinstance(network, Network)
        return network


@dataclass(frozen=True, eq=False)
class _FixedField:
    """A field that does not depend on the distribution."""

    actions: Tensor  #: [1 or T, K, d]

    def field(self, mu: Tensor, t: int) -> Tensor:
        actions = self.actions[min(t, len(self.actions) - 1)]
        return actions.expand(*mu.shape[:-1], *actions.shape)


@dataclass(frozen=True, eq=False)
class _NetworkField:
    """A network policy at the cell centres."""

    policy: NetworkPolicy
    located: list[Tensor]  #: the centres' part of each network's first layer [K, h]

    def field(self, mu: Tensor, t: int) -> Tensor:
        network, residual = self.policy.network(t), self.policy.residual
        located = self.located[min(t, len(self.located) - 1)]
        raw = network.upper(located + network.of_distribution(mu).unsqueeze(-2))
        return (raw if residual is None else raw + residual.raw(t)).tanh()


def fingerprint(policy: Policy) -> str:
    """Twelve digits that tell a policy from others: of all its parameters, bit by bit."""
    digest = hashlib.sha256()
    for name, value in policy.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


def copied_into(own: Policy, given: Policy, name: str) -> Policy:
    """A copy of a policy that is handed in, in the type and on the device of one that the settings made.

    Args:
        own: What the settings made for the world; it is written to.
        given: The policy.
        name: The argument's name, for the message.

    Raises:
        ValueError: If it is of another kind, or its parameters have other shapes or are not finite.
    """
    shapes = [{name: tuple(value.shape) for name, value in policy.state_dict().items()} for policy in (own, given)]
    if type(given) is not type(own) or shapes[0] != shapes[1]:
        raise ValueError(
            f"{name} must be as config.policy says, a {type(own).__name__} with {shapes[0]}, got a {type(given).__name__} with "
            f"{shapes[1]}"
        )
    if not all(bool(value.isfinite().all()) for value in given.state_dict().values()):
        raise ValueError(f"{name} must have finite parameters, got some that are not")
    own.load_state_dict(given.state_dict())
    return own


def make_policy(config: PolicyConfig, mdp: MeanFieldMDP, generator: torch.Generator) -> Policy:
    """A policy for a world, staying put."""
    steps = mdp.horizon if config.per_step else 1
    if config.kind == "field":
        return FieldPolicy(mdp, steps)
    return NetworkPolicy(mdp, config.hidden, generator, steps, residual=config.residual)
