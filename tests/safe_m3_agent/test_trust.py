"""A certificate that the truth refuted: the policy is withdrawn, and what comes next is more careful."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mf_taxi_env import EntropyFloor, TaxiMDP, Trajectory
from mf_taxi_env.information import entropy_fraction
from safe_m3_agent import Config, SafeM3UCRL
from safe_m3_agent.improvement import Decision, SafeImprovement
from safe_m3_agent.policy import FieldPolicy
from safe_m3_agent.trust import Trust


def crowding(world: TaxiMDP) -> FieldPolicy:
    """Everybody goes to the centre: it breaks the floor."""
    return FieldPolicy.of_actions(world, 0.9 * (0.5 - world.centers))


@pytest.fixture
def misled(monkeypatch: pytest.MonkeyPatch, world: TaxiMDP) -> list[bool]:
    """The third improvement of an agent takes a policy that is not safe, whatever the search says; the others are its own."""
    own, asked = SafeImprovement.improve, [False]

    def improve(
        self: SafeImprovement, learned: Any, policy: Any, generator: Any, *, transitions: int, seen_unsafe: bool = False
    ) -> Decision:
        decision = own(self, learned, policy, generator, transitions=transitions, seen_unsafe=seen_unsafe)
        if transitions == 2 * 3 * 4 and not asked[0]:  # two episodes of three steps with four taxis
            asked[0] = True
            return Decision(crowding(world), taken=True, worst_margin=0.1)
        return decision

    monkeypatch.setattr(SafeImprovement, "improve", improve)
    return asked


def test_a_refuted_policy_is_executed_once(world: TaxiMDP, tiny: Config, misled: list[bool]) -> None:
    """A wrong certificate costs one episode: the policy before it is back, plans are made at once, in a set twice as wide."""
    config = replace(tiny, growth=10.0)  # by itself it would not plan again for a long time
    agent = SafeM3UCRL(world, config, seed=1)
    agent.learn(2)
    before = [parameter.clone() for parameter in agent.policy.parameters()]
    with pytest.warns(UserWarning, match=r"episode 2 violated a constraint \(margin -.*withdrawn .* twice as wide"):
        agent.learn(1)
    assert misled == [True] and agent.history[2].violations > 0
    assert all(torch.equal(a, b) for a, b in zip(agent.policy.parameters(), before, strict=True))
    agent.learn(2)
    assert [episode.violations > 0 for episode in agent.history] == [False, False, True, False, False]
    assert agent.history[3].beta == 2 * agent.history[1].beta
    assert agent.history[3].worst_margin == agent.history[3].worst_margin  # it planned, although little was new


def test_a_withdrawal_is_resumed(world: TaxiMDP, tiny: Config, misled: list[bool], tmp_path: Path) -> None:
    """What was learned from a refuted certificate outlives the process."""
    agent = SafeM3UCRL(world, tiny, seed=1)
    with pytest.warns(UserWarning, match="withdrawn"):
        agent.learn(3)
    resumed = SafeM3UCRL.load(agent.save(tmp_path))
    assert resumed.learn(2) == agent.learn(2)
    assert resumed.history[-1].beta >= 7.0


def test_a_first_policy_that_is_unsafe_is_nothing_to_go_back_to(
    world: TaxiMDP, tiny: Config, misled: list[bool], tmp_path: Path
) -> None:
    """Nobody has seen it safe, so the certificate's policy stays; that it was refuted is told, and doubled, all the same."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        agent = SafeM3UCRL(world, replace(tiny, growth=10.0, beta=1000.0), seed=1, first=crowding(world))
        agent.learn(4)
    assert [episode.violations > 0 for episode in agent.history] == [True] * 4 and misled == [True]
    assert agent.history[3].beta == 2 * agent.history[2].beta
    first, refuted = (str(warning.message) for warning in caught)
    assert first.startswith("first, ")
    assert "episode 2 violated" in refuted and "stays in use, as the one before was not safe either" in refuted
    resumed = SafeM3UCRL.load(agent.save(tmp_path))
    with warnings.catch_warnings(record=True) as later:
        warnings.simplefilter("always")
        resumed.learn(1)
    assert not any("the first policy in use" in str(warning.message) for warning in later), "another one is in use by now"


def test_safety_comes_before_reward(make_world: Callable[..., TaxiMDP]) -> None:
    """From a policy that earns more than any safe one, but violates, the agent goes to one with a certificate."""
    loose, strict = make_world(floor=0.5, horizon=6), make_world(floor=0.92, horizon=6)
    config = Config(model="known", anew=0.0)
    greedy = SafeM3UCRL(loose, config, seed=0)
    greedy.learn(4)
    with pytest.warns(UserWarning, match="first, the first policy in use, violates"):
        history = SafeM3UCRL(strict, config, seed=0, first=greedy.policy).learn(8)
    assert history[0].violations > 0
    safe = [episode for episode in history if episode.violations == 0]
    assert safe and safe[0].certified and safe[0].reward < history[0].reward
    assert history[-1].violations == 0


def test_sets_are_left_alone_until_a_certificate_fails(world: TaxiMDP) -> None:
    """No refuted certificate, no factor; then twice as wide for each."""
    trust = Trust(world)
    assert trust.factor == 1.0
    trust.refuted = 3
    assert trust.factor == 8.0


def test_what_was_safe_before_is_gone_back_to(world: TaxiMDP) -> None:
    """A refuted certificate is withdrawn for a policy that was seen safe, and for no other."""
    safe, unsafe = (Trajectory(*[torch.zeros(0)] * 2, torch.tensor([[margin]]), torch.zeros(0)) for margin in (0.1, -0.1))
    trust = Trust(world)
    assert trust.judge(unsafe, taken=False) == (False, False) and not trust.seen_safe
    assert trust.judge(unsafe, taken=True) == (True, False) and not trust.seen_safe and trust.refuted == 1
    assert trust.judge(safe, taken=True) == (False, False) and trust.seen_safe
    assert trust.judge(unsafe, taken=True) == (True, True) and trust.seen_safe and trust.refuted == 2


def test_a_certificate_for_a_fleet_is_judged_as_one(world: TaxiMDP, tiny: Config, misled: list[bool]) -> None:
    """What a fleet's margins scatter by is part of what was promised: an episode that only the mean field keeps refutes it."""
    with torch.no_grad():
        crowded = float(entropy_fraction(world.rollout(crowding(world)).mu[1:]).min())
    floor = EntropyFloor(crowded - 0.001)
    loose = TaxiMDP(world.scenario, horizon=3, noise_std=0.1, reward_timing="next", constraints=[floor])
    agent = SafeM3UCRL(loose, replace(tiny, growth=10.0, fleet=10_000), seed=1)
    with pytest.warns(UserWarning, match=r"violated a constraint as 10,000 taxis are to keep it \(margin -.*withdrawn"):
        agent.learn(3)
    assert misled == [True] and agent.history.violations == 0
    assert not any(parameter.any() for parameter in agent.policy.parameters())


def test_what_certifies_nothing_waits_though_it_violates(world: TaxiMDP, tiny: Config) -> None:
    """M3-UCRL, and whoever executes every plan, violates as a rule: data have to grow before it plans again all the same."""
    free, published = (replace(tiny, growth=10.0, **{name: False}) for name in ("constrained", "certified"))
    for config in (free, published):
        agent = SafeM3UCRL(world, config, seed=1, first=crowding(world))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            history = agent.learn(4)
        assert history[0].violations > 0
        assert [math.isnan(episode.objective) for episode in history] == [True, False, True, True]
