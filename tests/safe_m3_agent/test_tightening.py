"""Tightenings of constraints: the accumulated one, and that of Lemma 2."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch

from mf_taxi_env import EntropyFloor, Scenario, SwarmMDP, TaxiMDP
from safe_m3_agent import Config, SafeM3UCRL
from safe_m3_agent.config import Tightening
from safe_m3_agent.hallucination import HallucinatedMDP
from safe_m3_agent.model.ensemble import EnsembleConfig
from safe_m3_agent.planners.planner import planned_margins
from safe_m3_agent.policy import FieldPolicy
from safe_m3_agent.tightening import (
    LARGEST_TIGHTENING,
    LipschitzConfig,
    accumulated_tightening,
    lemma2_tightening,
    lipschitz_constants,
)


def test_hand_computed_example() -> None:
    """``L_h`` times the sum of the uncertainties so far, the present step's included."""
    uncertainty = torch.tensor([0.1, 0.2, 0.4], dtype=torch.float64)
    tightening = accumulated_tightening(uncertainty, torch.tensor([0.1, 2.0], dtype=torch.float64))
    expected = torch.tensor([[0.01, 0.2], [0.03, 0.6], [0.07, 1.4]], dtype=torch.float64)
    torch.testing.assert_close(tightening, expected)


def test_certainty_tightens_nothing() -> None:
    """A known motion leaves the constraint as it is."""
    assert torch.equal(accumulated_tightening(torch.zeros(5), torch.tensor([0.1])), torch.zeros(5, 1))


def test_shape_and_batches() -> None:
    """Batches of episodes are tightened one by one, along their own steps."""
    uncertainty = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(0))
    constraints = torch.tensor([0.1, 0.5])
    tightening = accumulated_tightening(uncertainty, constraints)
    assert tightening.shape == (2, 3, 4, 2)
    torch.testing.assert_close(tightening[1, 2], accumulated_tightening(uncertainty[1, 2], constraints))
    assert accumulated_tightening(uncertainty, torch.zeros(0)).shape == (2, 3, 4, 0)


def test_constants_are_those_of_the_constraints() -> None:
    """In the order of the margins, in the world's type."""
    city = Scenario("toy", np.full(4, 0.25), np.eye(4), box=(0, 1, 0, 1))
    world = TaxiMDP(city, constraints=[EntropyFloor(0.9, lipschitz=0.1), EntropyFloor(0.5, lipschitz=2.0)], dtype=torch.float64)
    assert lipschitz_constants(world).tolist() == [0.1, 2.0]


# -- Lemma 2 --------------------------------------------------------------------------------------------------------------


def test_lemma2_by_hand() -> None:
    """``t 2 beta Lbar^(t-1) max`` with ``Lbar = 1 + 2 (1 + 0.5) (2 + 2 * 0.25 * 3) = 11.5``."""
    constants = LipschitzConfig(motion=2.0, policy=0.5, doubt=3.0)
    assert constants.growth(0.25) == pytest.approx(11.5)
    reached = lemma2_tightening(torch.tensor(0.1, dtype=torch.float64), 3, 0.25, constants)
    assert reached.tolist() == pytest.approx([0.05, 2 * 0.05 * 11.5, 3 * 0.05 * 11.5**2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_lemma2_never_overflows(dtype: torch.dtype) -> None:
    """At the horizon of a swarm the power is 10^150: the tightening stops where nothing is left to tighten."""
    reached = lemma2_tightening(torch.tensor(0.5, dtype=dtype), 100, 3.5, LipschitzConfig())
    assert reached.dtype == dtype and reached.isfinite().all() and (reached.diff() >= 0).all()
    assert float(reached[-1]) == pytest.approx(LARGEST_TIGHTENING)
    assert not lemma2_tightening(torch.tensor(0.0, dtype=dtype), 100, 3.5, LipschitzConfig()).any()  # nothing is doubted


@pytest.mark.parametrize(
    ("options", "name"), [({"motion": -1.0}, "motion"), ({"policy": math.nan}, "policy"), ({"doubt": math.inf}, "doubt")]
)
def test_constants_are_validated(options: dict[str, float], name: str) -> None:
    """A Lipschitz constant is a finite number, not below zero."""
    with pytest.raises(ValueError, match=rf"lipschitz.{name} must be a finite number >= 0"):
        LipschitzConfig(**options)


@pytest.mark.parametrize("ring", [False, True])
@torch.no_grad()
def test_plans_are_tightened_by_lemma2(world: TaxiMDP, tiny: Config, ring: bool) -> None:
    """The planner's margins are less than the plain ones by ``L_h C_{n,t}``, in any number of worlds side by side."""
    space = SwarmMDP(cells=8, horizon=3, constraints=[EntropyFloor(0.5)]) if ring else world
    agent = SafeM3UCRL(space, tiny, seed=1)
    learned = HallucinatedMDP(space, agent.model, 2.0)
    constants = LipschitzConfig(motion=0.3, policy=0.1, doubt=0.2)
    policy = FieldPolicy(space)
    z = torch.zeros(2, tiny.ensemble.members)
    trajectory = learned.with_lemma2(constants).plausible(z).rollout(policy)
    largest = learned.largest_uncertainty()
    assert largest >= learned.rollout(policy).uncertainty[0]
    reached = lemma2_tightening(largest, 3, 2.0, constants)
    torch.testing.assert_close(trajectory.uncertainty.cumsum(-1), reached.expand(2, 3))
    margins = planned_margins(trajectory, lipschitz_constants(learned))
    torch.testing.assert_close(margins[0], trajectory.margins[0] - 0.1 * reached.unsqueeze(-1))
    assert torch.equal(margins[1], trajectory.margins[1])
    assert torch.equal(trajectory.mu, learned.plausible(z).rollout(policy).mu)  # the world itself is the same


@pytest.mark.parametrize("planner", ["bptt", "ddpg"])
def test_lemma2_is_a_setting_of_both_planners(world: TaxiMDP, tiny: Config, planner: str) -> None:
    """Both plan with it, to other ends than with the accumulated form, and stay finite."""
    config = replace(tiny, planner=planner)
    histories = [SafeM3UCRL(world, replace(config, tightening=name)).learn(2) for name in ("accumulated", "lemma2")]
    assert all(math.isfinite(history[1].objective) for history in histories)
    assert histories[0][1].objective > histories[1][1].objective + 100.0
    assert histories[0].column("epistemic") == histories[1].column("epistemic")  # recorded as ever


def test_lemma2_leaves_nothing_to_execute(make_world: Callable[..., TaxiMDP]) -> None:
    """Vacuous: where the accumulated form lets the fleet move with a certificate, Lemma 2 finds no plan, and it stays put."""
    world = make_world(floor=0.9, horizon=6)
    config = Config(representative_agents=40, anew=0.0, ensemble=EnsembleConfig(steps=60))
    moving, staying = (SafeM3UCRL(world, replace(config, tightening=name), seed=0).learn(6) for name in get_args(Tightening))
    assert any(moving.column("certified")) and moving[-1].score > 0.1
    assert not any(staying.column("certified")) and staying.column("score") == pytest.approx([0.0] * 6, abs=1e-6)
