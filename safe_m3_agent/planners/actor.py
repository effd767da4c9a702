"""The actor of MF-DDPG: a policy with its hallucinated control, of which many perturbed copies act at once."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from safe_m3_agent.hallucination import HallucinatedMDP
from safe_m3_agent.planners.modes import CosineModes
from safe_m3_agent.policy import Policy


class LiftedActor(nn.Module):
    """Maps a distribution after trips to the field of ``(a, eta)`` at all cells.

    Args:
        mdp: The learned world.
        policy: The policy; a copy is taken.
        optimistic: Whether a hallucinated control is chosen as well: one per cell for all steps, zero at first.
    """

    centers: Tensor

    def __init__(self, mdp: HallucinatedMDP, policy: Policy, *, optimistic: bool) -> None:
        super().__init__()
        self.policy = copy.deepcopy(policy).requires_grad_(True)
        shape = (mdp.grid.size, mdp.grid.dimension)
        self.eta = nn.Parameter(torch.zeros(shape, dtype=mdp.dtype, device=mdp.device)) if optimistic else None
        self.register_buffer("centers", mdp.grid.centers(dtype=mdp.dtype, device=mdp.device), persistent=False)

    def fields(self, shifted: Tensor, nominal: Tensor, first: int = 0) -> Tensor:
        """Fields at the steps ``first, first + 1, ...``.

        Args:
            shifted: Distributions after trips, ``[M, S, K]``, one column per step.
            nominal: 1 in the nominal world, 0 in an adversary's, where nothing is hallucinated; ``[M, S]``.
            first: The first step.

        Returns:
            ``[M, S, K, a]``.
        """
        prepared = self.policy.prepared()
        steps = [prepared.field(mu, first + i) for i, mu in enumerate(shifted.unbind(1))]
        return self._with_eta(torch.stack(steps, 1), nominal)

    def forward(self, shifted: Tensor, nominal: Tensor, t: int) -> Tensor:
        """The field ``[K, a]`` in one distribution ``[K]``, as taxis at the centres see it: what ``vmap`` can batch."""
        return self._with_eta(self.policy(self.centers, shifted, t), nominal)

    def _with_eta(self, actions: Tensor, nominal: Tensor) -> Tensor:
        if self.eta is None:
            return actions
        eta = self.eta.tanh() * nominal[..., None, None]
        return torch.cat([actions, eta.expand(*actions.shape[:-1], -1)], -1)


class Acting:
    """The actor itself in a batch of episodes.

    Args:
        actor: The actor.
        nominal: 1 for episodes in the nominal world, else 0, ``[N]``.
    """

    def __init__(self, actor: LiftedActor, nominal: Tensor) -> None:
        self.actor = actor
        self.nominal = nominal.unsqueeze(1)

    def field(self, mu: Tensor, t: int) -> Tensor:
        return self.actor.fields(mu.unsqueeze(1), self.nominal, t).squeeze(1)


class Perturbed:
    """Copies of an actor with noise in their parameters, one copy per episode (Plappert et al. 2018).

    Parameters that are given per cell get smooth noise, others white noise.

    Args:
        actor: The actor.
        nominal: 1 for episodes in the nominal world, else 0, ``[N]``.
        scale: Standard deviation of the noise, ``[]``.
        hold: Steps for which a copy acts before the noise is drawn anew.
        modes: What smooth noise is made of.
        generator: Source of the noise.
    """

    def __init__(
        self, actor: LiftedActor, nominal: Tensor, scale: Tensor, hold: int, modes: CosineModes, generator: torch.Generator
    ) -> None:
        self.actor = actor
        self.nominal = nominal
        self.scale = scale
        self.hold = hold
        self.modes = modes
        self.generator = generator
        self._parameters: dict[str, Tensor] = {}
        by_cell = {id(one) for one in (*actor.policy.per_cell(), actor.eta)}
        self._smooth = {name for name, one in actor.named_parameters() if id(one) in by_cell}

    def field(self, mu: Tensor, t: int) -> Tensor:
        if t % self.hold == 0:
            self._parameters = {name: self._copies(name, value) for name, value in self.actor.named_parameters()}

        def one(parameters: dict[str, Tensor], mu: Tensor, nominal: Tensor) -> Tensor:
            field: Tensor = torch.func.functional_call(self.actor, parameters, (mu, nominal, t))
            return field

        fields: Tensor = torch.func.vmap(one)(self._parameters, mu, self.nominal)
        return fields

    def _copies(self, name: str, value: Tensor) -> Tensor:
        shape = (len(self.nominal), *value.shape)
        if name in self._smooth:
            noise = self.modes.noise(*shape, generator=self.generator)
        else:
            noise = torch.randn(shape, generator=self.generator, dtype=value.dtype, device=value.device)
        return value.detach() + self.scale * noise


class Jittered:
    """The actor with independent Gaussian noise in every action, as in the original DDPG (Lillicrap et al. 2016).

    Hallucinated control gets noise in the nominal world alone: in an adversary's nothing is hallucinated.

    Args:
        actor: The actor.
        nominal: 1 for episodes in the nominal world, else 0, ``[N]``.
        std: Standard deviation of the noise.
        generator: Source of the noise.
    """

    def __init__(self, actor: LiftedActor, nominal: Tensor, std: float, generator: torch.Generator) -> None:
        self.acting = Acting(actor, nominal)
        self.std = std
        self.generator = generator

    def field(self, mu: Tensor, t: int) -> Tensor:
        field = self.acting.field(mu, t)
        noise = torch.randn(field.shape, generator=self.generator, dtype=field.dtype, device=field.device)
        eta = self.acting.actor.eta
        if eta is not None:
            noise[..., -eta.shape[-1] :] *= self.acting.nominal.unsqueeze(-1)
        return (field + self.std * noise).clamp(-1.0, 1.0)
