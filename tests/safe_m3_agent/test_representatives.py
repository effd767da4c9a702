"""Representative taxis: what they report is what happened, and they look where the model is unsure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from mf_taxi_env import Scenario, TaxiMDP
from safe_m3_agent import Config, SafeM3UCRL
from safe_m3_agent.model.dynamics_model import KnownModel
from safe_m3_agent.model.ensemble import EnsembleConfig, ProbabilisticEnsemble
from safe_m3_agent.policy import FieldPolicy
from safe_m3_agent.representatives import most_doubtful, observe


@pytest.mark.parametrize("exploration", ["free", "policy"])
@pytest.mark.parametrize("motion", ["free", "congested"])
def test_moves_are_of_the_true_motion(make_world: Callable[..., TaxiMDP], tiny: Config, exploration: Any, motion: str) -> None:
    """Every landing lies about the true destination of its position, distribution and action, as wide as the noise."""
    world = make_world(motion=motion, noise_std=0.02, horizon=6)
    agent = SafeM3UCRL(world, replace(tiny, exploration=exploration, representative_agents=100))
    agent.learn(1)
    data = agent.knowledge.transitions
    assert data.size == 600
    goals = torch.cat(
        [
            world.motion(s.unsqueeze(0), mu, a.unsqueeze(0))
            for s, mu, a in zip(data.positions, data.mu, data.actions, strict=True)
        ]
    )
    inside = (goals > 0.1) & (goals < 0.9)
    error = data.next_positions - goals
    assert float(error.abs().max()) < 6 * 0.02
    assert float(error[inside].std()) == pytest.approx(0.02, rel=0.15)
    assert abs(float(error[inside].mean())) < 0.004


def test_taxis_live_in_the_fleets_mean_field(random_city: Callable[..., Scenario], tiny: Config) -> None:
    """They carry no mass: the distributions that they report are the fleet's after trips, step by step, which differ."""
    world = TaxiMDP(random_city(0, steps=4), horizon=4, noise_std=0.1)
    policy = FieldPolicy(world)
    with torch.no_grad():
        policy.logits += 0.3 * torch.randn(policy.logits.shape, generator=torch.Generator().manual_seed(0))
        executed = world.rollout(policy)
        model = KnownModel(world.motion, world.noise.std)
        seen, _ = observe(
            executed, world, model, policy, replace(tiny, representative_agents=20), torch.Generator(), radius=3.5
        )[:2]
    for t in range(4):
        assert torch.equal(seen.mu[20 * t : 20 * t + 20], world.shift(executed.mu[t], t).expand(20, -1))


def test_trips_come_between_moves(make_world: Callable[..., TaxiMDP], tiny: Config) -> None:
    """A taxi without a passenger goes on from where it landed; one with a passenger goes on from where the trip ended."""
    world = make_world(horizon=2)
    policy = FieldPolicy(world)
    with torch.no_grad():
        executed = world.rollout(policy)
        model = KnownModel(world.motion, world.noise.std)
        config = replace(tiny, representative_agents=4000)
        seen, _ = observe(executed, world, model, policy, config, torch.Generator().manual_seed(0), radius=3.5)[:2]
    landed, went_on = seen.next_positions[:4000], seen.positions[4000:]
    carried = float((landed != went_on).any(-1).float().mean())
    served = torch.minimum(executed.mu[1], world.demand(1)).sum()
    assert carried == pytest.approx(float(served), abs=0.04)


@torch.no_grad()
def test_passengers_are_reported(make_world: Callable[..., TaxiMDP], tiny: Config) -> None:
    """As many trips as a fleet of that distribution serves, from where and to where the city's trips go."""
    world = make_world(cells=3, horizon=1)
    model = KnownModel(world.motion, world.noise.std)
    config = replace(tiny, representative_agents=40_000)
    executed = world.rollout(FieldPolicy(world))
    trips = observe(executed, world, model, FieldPolicy(world), config, torch.Generator().manual_seed(0), radius=3.5).trips
    served = torch.minimum(executed.mu[0], world.demand(0))
    assert trips.size / 40_000 == pytest.approx(float(served.sum()), abs=0.01)
    seen = torch.zeros(9, 9).index_put((trips.origins, trips.destinations), torch.ones(()), accumulate=True)
    expected = served.unsqueeze(1) * world.trips(0)
    assert float((seen / 40_000 - expected).abs().sum()) < 0.05


@torch.no_grad()
def test_coverage_tells_a_right_model_from_a_wrong_one(make_world: Callable[..., TaxiMDP], tiny: Config) -> None:
    """The share of destinations within the confidence set: all for the truth, none for a sure model of another motion."""
    world = make_world(motion="congested")
    policy = FieldPolicy(world)
    policy.logits += 1.0
    executed = world.rollout(policy)
    right = KnownModel(world.motion, world.noise.std)
    wrong = KnownModel(lambda positions, mu, actions: (positions - 0.1 * actions).clamp(0, 1), world.noise.std)
    covered = [
        observe(executed, world, model, policy, tiny, torch.Generator(), radius=3.5).coverage for model in (right, wrong)
    ]
    assert covered[0] == 1.0 and covered[1] < 0.5


def test_exploration_by_the_policy(world: TaxiMDP, tiny: Config) -> None:
    """As in the paper, representative taxis can do what the fleet does: nothing, while it stays put."""
    agent = SafeM3UCRL(world, replace(tiny, exploration="policy"))
    history = agent.learn(2)
    assert history.violations == 0
    assert not agent.knowledge.transitions.actions[: 4 * world.horizon].any()


def test_free_exploration_looks_where_the_model_is_unsure(world: TaxiMDP) -> None:
    """Among random actions each taxi tries the one of largest doubt: more candidates, more doubt."""
    model = ProbabilisticEnsemble(EnsembleConfig(), world.grid, world.noise.std, torch.Generator().manual_seed(0))
    doubts = []
    for candidates in (1, 64):
        actions = most_doubtful(model, world.centers, world.initial(), candidates, torch.Generator().manual_seed(1))
        assert actions.shape == world.centers.shape and (actions.abs() <= 1).all()
        doubts.append(float(model.predict(world.centers, world.initial(), actions).epistemic.square().sum(-1).mean()))
    assert doubts[1] > 1.2 * doubts[0]
