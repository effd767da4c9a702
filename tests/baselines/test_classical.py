"""Classical policies as algorithms of the benchmark: what they are told, what they record, and when they stop."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from baselines import FluidLP, GreedyTransport, Proportional, RandomField, RollingLP, Stay
from baselines.aiming import AimedPolicy
from baselines.algorithm import Budget, Task, algorithms
from baselines.algorithms import classical
from baselines.algorithms.classical import OracleSettings, PeerSettings
from baselines.algorithms.safe_m3 import BASE
from baselines.belief import BARRIERS, BelievedMotion, MotionStudy
from mf_taxi_env import EntropyFloor, FreeMotion, TaxiMDP, load_scenario, score
from mf_taxi_env.mdp import Field
from safe_m3_agent import Config

AIMED = ["proportional", "greedy-transport", "fluid-lp", "rolling-lp"]
NAMES = ["stay", "random", *AIMED, *(f"{name}-oracle" for name in AIMED)]


@dataclass
class Curve:
    """Keeps what is recorded, and says stop after some rows."""

    rows: int = 100
    steps: list[int] = field(default_factory=list)
    episodes: list[int] = field(default_factory=list)
    violated: list[int] = field(default_factory=list)
    policies: list[Field] = field(default_factory=list)

    def __call__(self, policy: Field, *, env_steps: int, episodes: int, violated: int) -> bool:
        self.steps.append(env_steps)
        self.episodes.append(episodes)
        self.violated.append(violated)
        self.policies.append(policy)
        return len(self.steps) < self.rows


def make_task(folder: Path, env_steps: int = 8, **options: object) -> Task:
    """Four steps in a small Shenzhen, and time for two episodes."""
    given: dict[str, object] = {"constraints": [EntropyFloor(0.8)], "horizon": 4, "noise_std": 0.05, "reward_timing": "next"}
    mdp = TaxiMDP(load_scenario("shenzhen", cells=5), **{**given, **options})  # type: ignore[arg-type]
    return Task(mdp, 0, Budget(env_steps, 60.0), folder, torch.device("cpu"))


@pytest.mark.parametrize("name", NAMES)
def test_it_is_registered_and_runs(name: str, tmp_path: Path) -> None:
    """A curve of growing steps within the budget, and a policy that is no better than the best."""
    algorithm, task, curve = algorithms()[name], make_task(tmp_path), Curve()
    policy = algorithm.train(task, curve)
    learns = name in AIMED
    assert algorithm.oracle == name.endswith("-oracle")
    assert curve.steps == ([0, 4, 8] if learns else [0])
    assert curve.episodes == [steps // 4 for steps in curve.steps]
    assert curve.violated == [0] * len(curve.steps)
    assert policy is curve.policies[-1]
    reached = score(task.mdp.rollout(policy).mu[1:], task.mdp)
    assert math.isnan(reached) or reached <= 1.001
    if algorithm.oracle:
        assert reached > 0.3


@pytest.mark.parametrize("name", AIMED)
def test_peers_stop_when_the_budget_is_used_up(name: str, tmp_path: Path) -> None:
    """No episode after the recorder says stop, and none that would exceed the budget's steps."""
    train = algorithms()[name].train
    stopped = Curve(rows=2)
    train(make_task(tmp_path, env_steps=1000), stopped)
    assert stopped.steps == [0, 4]
    short = Curve()
    train(make_task(tmp_path, env_steps=15), short)
    assert short.steps == [0, 4, 8, 12]  # a fourth episode would be one too many


def test_peers_go_on_until_the_steps_are_used_up(tmp_path: Path) -> None:
    """In doublings, and what is left of the budget at last: none is cut short while it learns."""
    curve = Curve()
    algorithms()["proportional"].train(make_task(tmp_path, env_steps=4 * 11), curve)
    assert curve.episodes == [0, 1, 2, 4, 8, 11]


def test_the_time_cuts_a_doubling_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice as many episodes may take longer than what is left: the peer then shows what it has learned so far."""
    now = 0.0
    episode = MotionStudy.episode

    def slow(study: MotionStudy) -> None:
        nonlocal now
        now += 10.0
        episode(study)

    def judge(policy: Field, *, env_steps: int, episodes: int, violated: int) -> bool:
        nonlocal now
        curve(policy, env_steps=env_steps, episodes=episodes, violated=violated)
        learned = now - 50.0 * (len(curve.steps) - 1)  # judging takes time, too, which does not count
        now += 50.0
        return learned < 105.0

    curve, task = Curve(), replace(make_task(tmp_path, env_steps=4000), budget=Budget(4000, 105.0))
    monkeypatch.setattr(MotionStudy, "episode", slow)
    monkeypatch.setattr(classical, "time", SimpleNamespace(monotonic=lambda: now))
    algorithms()["proportional"].train(task, judge)
    assert curve.episodes == [0, 1, 2, 4, 8, 11]


@pytest.mark.parametrize("name", AIMED)
def test_peers_believe_and_oracles_know(name: str, tmp_path: Path) -> None:
    """A peer's policy steers by what was learned and holds no way to the true motion; an oracle's steers by the truth."""
    task, curve = make_task(tmp_path), Curve()
    task = replace(task, budget=Budget(64, 60.0))
    peer = algorithms()[name].train(task, curve)
    assert isinstance(curve.policies[0], Stay)
    assert isinstance(peer, AimedPolicy)
    assert isinstance(peer.steering.motion, BelievedMotion)
    with pytest.raises(RuntimeError, match="the true motion is not known"):
        peer.mdp.motion(task.mdp.centers, task.mdp.initial(), torch.zeros(25, 2))
    oracle = algorithms()[f"{name}-oracle"].train(task, curve)
    assert isinstance(oracle, AimedPolicy)
    assert oracle.steering.motion is task.mdp.motion


def test_the_seed_is_the_run(tmp_path: Path) -> None:
    """Two runs of a task give the same policy."""
    task = make_task(tmp_path)
    fields = [algorithms()["proportional"].train(task, Curve()).field(task.mdp.initial(), 0) for _ in range(2)]
    torch.testing.assert_close(fields[0], fields[1], rtol=0, atol=0)


def test_random_is_random_by_the_seed(tmp_path: Path) -> None:
    """The field of the task's seed, and no other."""
    task = replace(make_task(tmp_path), seed=5)
    mu = task.mdp.initial()
    field = classical.random(task, Curve()).field(mu, 1)
    torch.testing.assert_close(field, RandomField(task.mdp, 5).field(mu, 1), rtol=0, atol=0)


def test_episodes_that_violate_are_told(tmp_path: Path) -> None:
    """Where staying put breaks a floor, so does every episode of a peer."""
    curve = Curve()
    algorithms()["fluid-lp"].train(make_task(tmp_path, constraints=[EntropyFloor(0.999)]), curve)
    assert curve.violated == curve.episodes == [0, 1, 2]


def test_oracles_ask_the_motion_that_is_true(tmp_path: Path) -> None:
    """In a world that halves every move, an oracle's actions are twice as long as in a free one."""

    def halved(positions: Tensor, mu: Tensor, actions: Tensor) -> Tensor:
        return FreeMotion()(positions, mu, 0.5 * actions)

    shifted = torch.full((25,), 0.04)
    free, half = (
        algorithms()["fluid-lp-oracle"].train(make_task(tmp_path, motion=motion, constraints=[]), Curve()).field(shifted, 0)
        for motion in ("free", halved)
    )
    torch.testing.assert_close(half, (2 * free).clamp(-1, 1), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", AIMED)
def test_settings_are_complete(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run under other parameters, barriers, growth or another agent is another run."""
    make = {"proportional": Proportional, "greedy-transport": GreedyTransport, "fluid-lp": FluidLP, "rolling-lp": RollingLP}[
        name
    ]
    own = {"proportional": {"gain": 0.1}, "rolling-lp": {"steps": 3, "price": 0.1}}.get(name, {})
    peer, oracle = algorithms()[name].settings, algorithms()[f"{name}-oracle"].settings
    assert peer == PeerSettings(own, BARRIERS, BASE, classical.GROWTH, classical.BETA) and oracle == OracleSettings(
        own, BARRIERS
    )
    told = {repr(peer)}
    for constant, other in (("BARRIERS", (0.0,)), ("GROWTH", 3), ("BASE", Config(beta=1.0))):
        with monkeypatch.context() as patch:
            patch.setattr(classical, constant, other)
            told.add(repr(classical.aimed_settings(make, oracle=False)))
    if own:
        told.add(repr(classical.aimed_settings(partial(make, **dict.fromkeys(own, 1)), oracle=False)))
    assert len(told) == 4 + bool(own)
