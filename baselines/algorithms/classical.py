"""Classical policies as algorithms of the benchmark: those that learn nothing, and those that learn where actions lead."""

from __future__ import annotations

import inspect
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from baselines.aiming import AimedPolicy
from baselines.algorithm import Recorder, Task, register
from baselines.algorithms.safe_m3 import BASE
from baselines.belief import BARRIERS, BETA, BelievedMotion, MotionStudy, with_least_barrier
from baselines.heuristics import Proportional, RandomField, Stay
from baselines.linear_programs import FluidLP, RollingLP
from baselines.transport import GreedyTransport
from mf_taxi_env import MeanFieldMDP, Motion, TaxiMDP
from mf_taxi_env.mdp import Field
from safe_m3_agent import Config

#: A peer shows what it would do after its first episode, and whenever it has had this many times as many as at the last record.
GROWTH = 2


@dataclass(frozen=True)
class OracleSettings:
    """What the numbers of an aimed policy depend on that knows the true motion.

    Attributes:
        parameters: The policy's own, by name.
        barriers: Weights of the barrier that it chooses among.
    """

    parameters: Mapping[str, Any]
    barriers: tuple[float, ...]


@dataclass(frozen=True)
class PeerSettings(OracleSettings):
    """The same of a policy that learns the motion.

    Attributes:
        agent: Settings of the agent whose taxis and model it has.
        growth: How many times as many episodes it has had at a record as at the one before; fewer where the budget ends.
        beta: Half-width of the confidence set in which it has to be safe, in standard deviations.
    """

    agent: Config
    growth: int
    beta: float


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
    left, most = task.budget.seconds, task.budget.env_steps // task.mdp.horizon
    while record(policy, env_steps=study.env_steps, episodes=study.episodes, violated=study.violated) and study.episodes < most:
        began, until = time.monotonic(), min(max(1, GROWTH * study.episodes), most)
        study.episode()
        while study.episodes < until and time.monotonic() - began < left:  # twice as many may take longer than all before
            study.episode()
        world = study.world()
        policy = _safe(make, study.known, BelievedMotion(world.model), world)
        left -= time.monotonic() - began
    return policy


def aimed_settings(make: Aimed, *, oracle: bool) -> OracleSettings:
    """The settings of a policy as they are: its parameters are those that it has by default, and :func:`_safe` the barrier."""
    given = inspect.signature(make).parameters.values()
    parameters = {one.name: one.default for one in given if one.kind is one.KEYWORD_ONLY and one.name != "barrier"}
    return OracleSettings(parameters, BARRIERS) if oracle else PeerSettings(parameters, BARRIERS, BASE, GROWTH, BETA)


def _register(name: str, label: str, make: Aimed) -> None:
    """Add a policy twice: as a peer with a learned motion, and as an oracle with the true one."""

    def peer(task: Task, record: Recorder) -> Field:
        """In a learned motion."""
        return _peer(make, task, record)

    def oracle(task: Task, record: Recorder) -> Field:
        """In the true motion."""
        return _oracle(make, task, record)

    for one, suffix, knows in ((peer, "", False), (oracle, "-oracle", True)):
        one.__qualname__ = one.__name__ = name + suffix
        register(name + suffix, label=label, oracle=knows, settings=aimed_settings(make, oracle=knows))(one)


_register("proportional", "Proportional control", Proportional)
_register("greedy-transport", "Greedy transport", GreedyTransport)
_register("fluid-lp", "Fluid LP", FluidLP)
_register("rolling-lp", "Rolling-horizon LP", RollingLP)
