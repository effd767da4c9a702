"""What an operator can learn of how taxis move, from representative ones, and how to be safe as far as that goes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from mf_taxi_env import MeanFieldMDP, TaxiMDP
from mf_taxi_env.bound import InfeasibleError, NoBoundError
from mf_taxi_env.mdp import Field, broken
from safe_m3_agent import Config
from safe_m3_agent.certificate import CertificateConfig, Certifier
from safe_m3_agent.confidence import student_quantile
from safe_m3_agent.hallucination import HallucinatedMDP, UnknownMotion
from safe_m3_agent.model.dynamics_model import DynamicsModel
from safe_m3_agent.motion_model import make_motion_model
from safe_m3_agent.planners.episodes import Transcript
from safe_m3_agent.policy import FieldPolicy, PolicyConfig, make_policy
from safe_m3_agent.representatives import observe
from safe_m3_agent.transitions import Transitions

#: Weights of the log-barrier that put the target inside the constraints by more and more; 0 is the optimum itself.
BARRIERS = (0.0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)

#: Half-width of a peer's confidence set in standard deviations, as in the experiments of arXiv 2306.17052.
BETA = 1.0
#: Largest move that a field of learnable actions can stand for: they are hyperbolic tangents, and reach 1 at infinity.
LARGEST = 1.0 - 1e-6

Policy = TypeVar("Policy", bound=Field)


@dataclass(frozen=True, eq=False)
class BelievedMotion:
    """The mean of a model of motion, as a :class:`~mf_taxi_env.Motion`."""

    model: DynamicsModel

    def __call__(self, positions: Tensor, mu: Tensor, actions: Tensor) -> Tensor:
        return self.model.predict(positions, mu, actions).mean


class MotionStudy:
    """Episodes in which the fleet stays put and representative taxis explore, and the motion that is learned from them.

    The taxis, their exploration and the model are those of Safe-M3-UCRL with the same settings: its equal in what it sees.
    The fleet stays as safe as it is when it stays put.

    Args:
        mdp: The true world; its motion moves the taxis, and is not looked at.
        seed: Seed of everything random here.
        config: Settings of the agent whose taxis and model these are.
    """

    def __init__(self, mdp: TaxiMDP, seed: int, config: Config | None = None) -> None:
        self.mdp = mdp
        self.config = config or Config()
        #: The city without its motion: all that a policy of the operator is given of it.
        self.known = mdp.with_motion(UnknownMotion())
        self.episodes = self.violated = 0
        self._generator = torch.Generator(mdp.device).manual_seed(seed)
        self._model = make_motion_model(self.config, mdp, self._generator)
        self._stay = make_policy(PolicyConfig(), mdp, self._generator)  # what the agent starts from, too
        self._seen = Transitions.empty(mdp.initial(), mdp.grid.dimension)

    @property
    def env_steps(self) -> int:
        """Steps that the true world has made so far."""
        return self.episodes * self.mdp.horizon

    def episode(self) -> None:
        """One more episode, and a new fit."""
        radius = student_quantile(self.config.beta, self._model.members)
        with torch.no_grad():
            executed = self.mdp.rollout(self._stay)
            seen = observe(executed, self.mdp, self._model, self._stay, self.config, self._generator, radius=radius)
        self.episodes += 1
        self.violated += int(executed.violations > 0)
        self._seen = self._seen.join(seen.transitions)
        self._model.fit(self._seen, self._generator)

    def world(self) -> HallucinatedMDP:
        """The city as it is believed to be now; later episodes do not change it."""
        return HallucinatedMDP(self.known, copy.deepcopy(self._model), beta=BETA)


def with_least_barrier(make: Callable[[float], Policy], world: MeanFieldMDP) -> Policy | None:
    """The policy with the smallest barrier that keeps the constraints all through an episode.

    In a learned world the moves of that episode have to keep them in every motion of the confidence set that the agent's own
    adversary finds, see :class:`~safe_m3_agent.certificate.Certifier`; in the true one there is nothing to doubt.

    Args:
        make: The policy of a barrier's weight.
        world: Where the episode is played.

    Returns:
        Found by bisection of :data:`BARRIERS`, as margins grow with the barrier as a rule. They need not: where none that
        bisection looks at is enough, the first of all the others that is; None where no weight is.
    """
    if not world.constraints:
        return make(BARRIERS[0])
    kept, low, high, left = None, 0, len(BARRIERS), list(BARRIERS)
    while low < high:
        middle = (low + high) // 2
        left.remove(BARRIERS[middle])
        policy = _kept(make, BARRIERS[middle], world)
        if policy is not None:
            high, kept = middle, policy
        else:
            low = middle + 1
    if kept is None:
        return next((policy for barrier in left if (policy := _kept(make, barrier, world)) is not None), None)
    return kept


def _kept(make: Callable[[float], Policy], barrier: float, world: MeanFieldMDP) -> Policy | None:
    """The policy of a weight if it keeps the constraints; None as well where there is no optimum to aim at with that weight."""
    try:
        policy = make(barrier)
    except (InfeasibleError, NoBoundError):
        return None
    return policy if _keeps(policy, world) else None


def _keeps(policy: Field, world: MeanFieldMDP) -> bool:
    """Whether the moves of an episode keep the constraints, in all motions that are plausible."""
    asked = Transcript(policy)
    with torch.no_grad():
        margins = world.rollout(asked).margins
    if bool(broken(margins).any()):
        return False
    if not isinstance(world, HallucinatedMDP):
        return True
    # The same moves whatever the distribution: what feedback would have made of it does not count.
    again = FieldPolicy.of_actions(world, torch.stack(asked.fields).clamp(-LARGEST, LARGEST))
    generator = torch.Generator(world.device).manual_seed(0)  # where its searches start
    return Certifier(CertificateConfig()).certify(world, again, margins.new_zeros(0, world.directions), generator).certified
