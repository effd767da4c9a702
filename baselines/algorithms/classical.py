"""Classical policies as algorithms of the benchmark: those that learn nothing, and those that learn where actions lead."""

from __future__ import annotations

from typing import Protocol

from baselines.aiming import AimedPolicy
from baselines.algorithm import Recorder, Task, register
from baselines.algorithms.safe_m3 import BASE
from baselines.belief import BelievedMotion, MotionStudy, with_least_barrier
from baselines.heuristics import Proportional, RandomField, Stay
from baselines.linear_programs import FluidLP, RollingLP
from baselines.transport import GreedyTransport
from mf_taxi_env import MeanFieldMDP, Motion, TaxiMDP
from mf_taxi_env.mdp import Field

#: Episodes after which a peer shows what it would do; it ends with the last.
EPISODES = (1, 2, 4, 8, 16, 32)


class Aimed(Protocol):
    """Constructs an aimed policy."""

    def __call__(self, mdp: TaxiMDP, motion: Motion | None = None, *, barrier: float = 0.0) -> AimedPolicy: ...


@register("stay", label="Stay")
def stay(task: Task, record: Recorder) -> Field:
    """Nobody moves."""
    return _without_learning(Stay(task.mdp), record)


@register("random", label="Random")
def random(task: Task, record: Recorder) -> Field:
    """A random field, from the seed."""
    return _without_learning(RandomField(task.mdp, task.seed), record)


def _without_learning(policy: Field, record: Recorder) -> Field:
    record(policy, env_steps=0, episodes=0, violated=0)
    return policy


def _safe(make: Aimed, mdp: TaxiMDP, motion: Motion, world: MeanFieldMDP) -> Field:
    """The policy with the least barrier that keeps the constraints in a world; where none does, nobody moves."""
    return with_least_barrier(lambda barrier: make(mdp, motion, barrier=barrier), world) or Stay(mdp)


def _oracle(make: Aimed, task: Task, record: Recorder) -> Field:
    """The policy that knows the true motion, and so needs no episode to find the barrier that keeps it safe."""
    return _without_learning(_safe(make, task.mdp, task.mdp.motion, task.mdp), record)


def _peer(make: Aimed, task: Task, record: Recorder) -> Field:
    """The policy that knows what representative taxis saw while the fleet stayed put, as it does until that is enough."""
    study = MotionStudy(task.mdp, task.seed, BASE)
    policy: Field = Stay(study.known)
    for episodes in (0, *EPISODES):
        if episodes * task.mdp.horizon > task.budget.env_steps:
            break
        while study.episodes < episodes:
            study.episode()
        if episodes:
            world = study.world()
            policy = _safe(make, study.known, BelievedMotion(world.model), world)
        if not record(policy, env_steps=study.env_steps, episodes=study.episodes, violated=study.violated):
            break
    return policy


@register("proportional", label="Proportional control")
def proportional(task: Task, record: Recorder) -> Field:
    """Density feedback, in a learned motion."""
    return _peer(Proportional, task, record)


@register("proportional-oracle", label="Proportional control", oracle=True)
def proportional_oracle(task: Task, record: Recorder) -> Field:
    """Density feedback, in the true motion."""
    return _oracle(Proportional, task, record)


@register("greedy-transport", label="Greedy transport")
def greedy_transport(task: Task, record: Recorder) -> Field:
    """Optimal transport to the target at every step, in a learned motion."""
    return _peer(GreedyTransport, task, record)


@register("greedy-transport-oracle", label="Greedy transport", oracle=True)
def greedy_transport_oracle(task: Task, record: Recorder) -> Field:
    """Optimal transport to the target at every step, in the true motion."""
    return _oracle(GreedyTransport, task, record)


@register("fluid-lp", label="Fluid LP")
def fluid_lp(task: Task, record: Recorder) -> Field:
    """Static rebalancing flows, in a learned motion."""
    return _peer(FluidLP, task, record)


@register("fluid-lp-oracle", label="Fluid LP", oracle=True)
def fluid_lp_oracle(task: Task, record: Recorder) -> Field:
    """Static rebalancing flows, in the true motion."""
    return _oracle(FluidLP, task, record)


@register("rolling-lp", label="Rolling-horizon LP")
def rolling_lp(task: Task, record: Recorder) -> Field:
    """Rebalancing flows planned anew at every step, in a learned motion."""
    return _peer(RollingLP, task, record)


@register("rolling-lp-oracle", label="Rolling-horizon LP", oracle=True)
def rolling_lp_oracle(task: Task, record: Recorder) -> Field:
    """Rebalancing flows planned anew at every step, in the true motion."""
    return _oracle(RollingLP, task, record)
