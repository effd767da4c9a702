"""MF-BPTT: back-propagation through the whole rollout of the lifted MDP."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mf_taxi_env.checks import finite_number, plain_numbers, whole_number
from mf_taxi_env.mdp import Field
from safe_m3_agent.barrier import relaxed_log_barrier, width_at
from safe_m3_agent.hallucination import HallucinatedField, HallucinatedMDP
from safe_m3_agent.planners.multilevel import MultilevelAdam
from safe_m3_agent.planners.planner import BestIterate, Plan, Planner, planned_margins, planned_worlds
from safe_m3_agent.policy import Policy
from safe_m3_agent.tightening import lipschitz_constants

#: Weight of the barrier from which on plans take steps of the full learning rate.
FULL_RATE_WEIGHT = 0.2


@dataclass(frozen=True)
class BPTTConfig:
    """Settings of MF-BPTT (arXiv 2306.17052, Algorithm 2).

    Attributes:
        epochs: Gradient steps per plan.
        renewal: Steps until a learned motion is linearised anew, see :meth:`HallucinatedMDP.near`; 0 plans in the model itself.
        learning_rate: Of Adam, at the start of a plan; it falls to a tenth along a cosine. Where the barrier's weight is below
            ``FULL_RATE_WEIGHT`` it is less, by the fourth root of the share: near the constraint the barrier is more curved.
        gradient_clip: Largest norm of a gradient, coarser levels of fields included.
    """

    epochs: int = 24
    renewal: int = 12
    learning_rate: float = 0.01
    gradient_clip: float = 1.0

    def __post_init__(self) -> None:
        plain_numbers(self)
        for name, least in (("epochs", 1), ("renewal", 0)):
            whole_number(f"bptt.{name}", getattr(self, name), least)
        for name in ("learning_rate", "gradient_clip"):
            finite_number(f"bptt.{name}", getattr(self, name), positive=True)


class BPTTPlanner(Planner):
    """Gradient ascent on the objective through all steps of the episode at once (arXiv 2306.17052, Algorithm 2).

    Args:
        config: Settings.
        width: Width of the relaxed barrier, in the constraint's unit.
    """

    forgets = True

    def __init__(self, config: BPTTConfig, width: float) -> None:
        self.config = config
        self.width = width

    def plan(
        self,
        mdp: HallucinatedMDP,
        policy: Policy,
        *,
        weight: float,
        adversaries: Tensor,
        optimistic: bool,
        generator: torch.Generator,
        effort: int = 1,
    ) -> Plan:
        """Improve a copy of ``policy``; see :meth:`Planner.plan`. Nothing here is random: ``generator`` is left alone."""
        policy = copy.deepcopy(policy).requires_grad_(True)  # a caller may have frozen what it was shown
        parameters = list(policy.parameters())
        worlds = planned_worlds(mdp, adversaries)
        eta = torch.zeros(mdp.grid.size, mdp.action_dim // 2, dtype=mdp.dtype, device=mdp.device, requires_grad=optimistic)
        fields = policy.per_cell()
        others = [parameter for parameter in parameters if all(parameter is not field for field in fields)]
        optimizer = MultilevelAdam(fields, [*others, *([eta] if optimistic else [])], mdp.grid, self.config.gradient_clip)
        best = BestIterate(parameters)
        objective = best.value
        lipschitz = lipschitz_constants(mdp)
        first_rate, width = self._first_rate(weight), width_at(weight, self.width)
        epochs = effort * self.config.epochs
        for epoch in range(epochs):
            field = policy.prepared()
            if self.config.renewal and epoch % self.config.renewal == 0:
                worlds = planned_worlds(mdp.near(field), adversaries)
            trajectory = worlds.rollout(_hallucinated(field, eta, len(adversaries)) if optimistic else field)
            margins = planned_margins(trajectory, lipschitz)
            objective = trajectory.returns[0]
            if weight:
                objective = objective + weight * relaxed_log_barrier(margins, width).sum()
            allowed = (margins >= 0).all() if weight else torch.ones_like(objective, dtype=torch.bool)
            best.offer(parameters, trajectory.returns[0].detach(), allowed)
            optimizer.zero_grad()
            (-objective).backward()
            optimizer.step(first_rate * _cosine(epoch / epochs))
        feasible = bool(best.value > -math.inf)
        if feasible:
            best.restore(parameters)
        return Plan(policy, float(objective.detach()), feasible)

    def _first_rate(self, weight: float) -> float:
        """Learning rate at the start of a plan with a barrier of this weight."""
        share = min(1.0, weight / FULL_RATE_WEIGHT) if weight else 1.0
        return self.config.learning_rate * math.sqrt(math.sqrt(share))


def _cosine(progress: float) -> float:
    """From 1 to a tenth as ``progress`` goes from 0 to 1."""
    return 0.1 + 0.45 * (1.0 + math.cos(math.pi * progress))


def _hallucinated(policy: Field, eta: Tensor, adversaries: int) -> HallucinatedField:
    """Hallucinated control in the first world alone."""
    return HallucinatedField(policy, torch.cat([eta.tanh().unsqueeze(0), eta.new_zeros(adversaries, *eta.shape)]))
