"""A certificate that the truth refuted: the policy is withdrawn, and what comes next is more careful."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mf_taxi_env import TaxiMDP
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

    def improve(self: SafeImprovement, learned: Any, policy: Any, generator: Any, *, transitions: int) -> Decision:
        decision = own(self, learned, policy, generator, transitions=transitions)
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


def test_a_first_policy_that_is_unsafe_is_nothing_to_go_back_to(world: TaxiMDP, tiny: Config, misled: list[bool]) -> None:
    """Nobody has seen it safe, so the certificate's policy stays; only the unsafe start is warned of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        agent = SafeM3UCRL(world, replace(tiny, growth=10.0), seed=1, first=crowding(world))
        agent.learn(3)
    assert all(episode.violations for episode in agent.history) and misled == [True]
    assert [str(warning.message).startswith("first, ") for warning in caught] == [True]


def test_widths_are_left_alone_until_a_certificate_fails() -> None:
    """No withdrawal, no factor; then at least the level's quantile, doubled each time."""
    trust = Trust()
    assert trust.width(0.01, least=2.6) == 0.01
    trust.refuted = 1
    assert trust.width(0.01, least=2.6) == 5.2 and trust.width(3.5, least=2.6) == 7.0
    trust.refuted = 3
    assert trust.width(3.5, least=2.6) == 28.0
