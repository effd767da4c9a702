"""What an env's observations say: the distribution and the step, so that a policy can answer them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from mf_taxi_env import ParticleMDP, TaxiMDP
from safe_m3_agent.policy import Policy, PolicyConfig

#: Sums of observed distributions may be off by this share: observations are float32, and their dtype may be another's.
SUM_TOLERANCE = 1e-3


class Reading(NamedTuple):
    """Observations of any batch."""

    mu: Tensor  #: distributions before trips [..., K]
    steps: Tensor  #: steps of the episode, 0 where the observation does not tell [...]


def needs_time(config: PolicyConfig, mdp: ParticleMDP) -> str | None:
    """Why a policy's action depends on the step and not on the distribution alone; None where it does not."""
    if config.per_step:
        return "this policy differs from step to step"
    if config.kind == "network" and isinstance(mdp, TaxiMDP) and mdp.changes:
        return "this policy sees the distribution after trips, and demand or trips differ from step to step"
    return None


def read_observation(observation: ArrayLike, config: PolicyConfig, mdp: ParticleMDP) -> Reading:
    """Read observations of an env of this world.

    Args:
        observation: Masses or densities ``[..., K]``, or ``[..., K + 1]`` with the time ``t / T`` appended.
        config: Kind of the policy that is to answer.
        mdp: The world.

    Raises:
        ValueError: If the observation has another length or is no distribution, or lacks the time that the policy needs.
    """
    seen = torch.as_tensor(np.asarray(observation), dtype=mdp.dtype, device=mdp.device)
    size = mdp.grid.size
    if seen.dim() == 0 or seen.shape[-1] not in (size, size + 1):
        raise ValueError(f"observation must have length {size} (or {size + 1} with time), got shape {tuple(seen.shape)}")
    reason = needs_time(config, mdp)
    if seen.shape[-1] == size and reason is not None:
        raise ValueError(f"observation must hold the time, got length {size}: {reason}, make the env with observe_time=True")
    mu = seen[..., :size]
    total = mu.sum(-1, keepdim=True)
    density = (total - size).abs() <= SUM_TOLERANCE * size
    fits = density | ((total - 1).abs() <= SUM_TOLERANCE)
    if not bool(fits.all()):
        wrong = float(total[~fits][0])
        raise ValueError(f"observation must hold masses that sum to 1, or densities that sum to {size}, got a sum of {wrong:g}")
    steps = torch.zeros(seen.shape[:-1], dtype=torch.long, device=seen.device)
    if seen.shape[-1] == size + 1:
        steps = (seen[..., -1] * mdp.horizon).round().long().clamp(0, mdp.horizon - 1)
    return Reading(torch.where(density, mu / size, mu), steps)


@torch.no_grad()
def answered(reading: Reading, policy: Policy, mdp: ParticleMDP) -> Tensor:
    """The policy's field ``[..., K, d]`` for every observation, in the distribution after the trips of its step."""
    mu, steps = reading
    fields = mu.new_zeros(*mu.shape, mdp.action_dim)
    for t in steps.unique().tolist():
        now = steps == t
        fields[now] = policy.field(mdp.shift(mu[now], t), t)
    return fields
