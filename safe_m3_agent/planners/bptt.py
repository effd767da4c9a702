"""MF-BPTT: back-propagation through the whole rollout of the lifted MDP."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mf_taxi_env.mdp import Field, Trajectory
from safe_m3_agent.barrier import relaxed_log_barrier
from safe_m3_agent.hallucination import HallucinatedField, HallucinatedMDP
from safe_m3_agent.policy import Policy
from safe_m3_agent.tightening import accumulated_tightening, lipschitz_constants


@dataclass(frozen=True)
class BPTTConfig:
    """Settings of MF-BPTT (arXiv 2306.17052, Algorithm 2).

    Attributes:
        epochs: Gradient steps per plan.
        learning_rate: Of Adam, at the start of a plan; it falls to a tenth along a cosine.
        gradient_clip: Largest norm of a gradient.
    """

    epochs: int = 12
    learning_rate: float = 0.01
    gradient_clip: float = 1.0

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ValueError(f"epochs must be at least 1, got {self.epochs}")
        if not (0 < self.learning_rate < math.inf and 0 < self.gradient_clip < math.inf):
            raise ValueError("learning_rate and gradient_clip must be positive and finite")


class Plan(NamedTuple):
    """What a planner came up with."""

    policy: Policy
    objective: float  #: of the last epoch
    feasible: bool  #: whether the policy kept every constraint in every world that was planned for


class BPTTPlanner:
    """Maximises ``sum_t r(mu~_t) + lambda * barrier`` over policy and hallucinated control (arXiv 2306.17052, Eq. 8a).

    The reward is that of the optimistic world, in which the hallucinated control is chosen together with the policy. The
    barrier is that of the optimistic world, with its margins tightened, and of every adversarial world that certificates have
    found so far: a policy that is planned against its own worst cases is certified sooner and closer to the constraint.

    Args:
        config: Settings.
        width: Width of the relaxed barrier, in the constraint's unit.
    """

    def __init__(self, config: BPTTConfig, width: float) -> None:
        self.config = config
        self.width = width

    def plan(self, mdp: HallucinatedMDP, policy: Policy, *, weight: float, adversaries: Tensor, optimistic: bool) -> Plan:
        """Improve a copy of ``policy``; the best feasible iterate is kept, the last one where none was feasible.

        Args:
            mdp: The learned world.
            policy: Where to start.
            weight: Weight ``lambda`` of the barrier; 0 plans without constraints.
            adversaries: Directions ``[A, E]`` of plausible motions to be safe against; ``A`` may be 0.
            optimistic: Whether to choose the hallucinated control of the reward's world, or leave it at zero.
        """
        policy = copy.deepcopy(policy)
        parameters = list(policy.parameters())
        worlds = mdp.plausible(torch.cat([adversaries.new_zeros(1, mdp.model.members), adversaries]))
        eta = torch.zeros(mdp.grid.size, mdp.action_dim // 2, dtype=mdp.dtype, device=mdp.device, requires_grad=optimistic)
        optimizer = torch.optim.Adam([*parameters, *([eta] if optimistic else [])], lr=self.config.learning_rate, fused=True)
        best = [parameter.detach().clone() for parameter in parameters]
        best_return = torch.tensor(-math.inf, dtype=mdp.dtype, device=mdp.device)
        objective = best_return
        lipschitz = lipschitz_constants(mdp)
        for epoch in range(self.config.epochs):
            field = policy.prepared()
            trajectory = worlds.rollout(_hallucinated(field, eta, len(adversaries)) if optimistic else field)
            margins = planned_margins(trajectory, lipschitz)
            objective = trajectory.returns[0]
            if weight:
                objective = objective + weight * relaxed_log_barrier(margins, self.width).sum()
            with torch.no_grad():
                # Compared on the device: reading a number back would stall it in every epoch.
                allowed = (margins >= 0).all() if weight else torch.ones_like(best_return, dtype=torch.bool)
                better = allowed & (trajectory.returns[0] > best_return)
                best_return = torch.where(better, trajectory.returns[0], best_return)
                best = [torch.where(better, new, old) for new, old in zip(parameters, best, strict=True)]
            optimizer.param_groups[0]["lr"] = self._learning_rate(epoch)
            optimizer.zero_grad()
            (-objective).backward()
            torch.nn.utils.clip_grad_norm_(parameters, self.config.gradient_clip, foreach=True)
            optimizer.step()
        feasible = bool(best_return > -math.inf)
        if feasible:
            with torch.no_grad():
                for parameter, value in zip(parameters, best, strict=True):
                    parameter.copy_(value)
        return Plan(policy.requires_grad_(True), float(objective.detach()), feasible)

    def _learning_rate(self, epoch: int) -> float:
        progress = epoch / self.config.epochs
        return self.config.learning_rate * (0.1 + 0.45 * (1.0 + math.cos(math.pi * progress)))


def _hallucinated(policy: Field, eta: Tensor, adversaries: int) -> HallucinatedField:
    """Hallucinated control in the first world alone."""
    return HallucinatedField(policy, torch.cat([eta.tanh().unsqueeze(0), eta.new_zeros(adversaries, *eta.shape)]))


def planned_margins(trajectory: Trajectory, lipschitz: Tensor) -> Tensor:
    """Margins that a plan has to keep, ``[1 + A, T, n_constraints]``: the first world's are tightened."""
    tightening = accumulated_tightening(trajectory.uncertainty[:1], lipschitz)
    return torch.cat([trajectory.margins[:1] - tightening, trajectory.margins[1:]])
