"""The price of violations: what it takes off rewards, and how a PID controller sets it."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

pytest.importorskip("stable_baselines3")
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor, VecNormalize

from baselines.sb3.adapter import LiftedVecEnv
from baselines.sb3.lagrangian import PIDController, PIDLagrangian, Priced
from baselines.sb3.settings import Lagrangian
from mf_taxi_env import EntropyFloor, TaxiMDP, load_scenario

HORIZON = 3
GAINS = Lagrangian(limit=0.1, proportional=2.0, integral=0.5, derivative=4.0)


def batch(floor: float = 0.95, **settings: Any) -> LiftedVecEnv:
    """Two small cities."""
    world = TaxiMDP(
        load_scenario("shenzhen", cells=5), horizon=HORIZON, constraints=[EntropyFloor(floor)], reward_timing="next"
    )
    return LiftedVecEnv(world, 2, **{"parameterization": "bilinear:2", **settings})


def moves(size: float) -> np.ndarray:
    """The first city stays put, the second moves everyone."""
    return np.stack([np.zeros(8), np.full(8, size)]).astype(np.float32)


@pytest.mark.parametrize("caution", [0.0, 0.3])
def test_rewards_less_the_price(caution: float) -> None:
    """By hand, at every step of an episode; nothing else changes, and the price may change on the way."""
    plain, priced = batch(), Priced(batch(), multiplier=2.0, caution=caution)
    np.testing.assert_array_equal(plain.reset(), priced.reset())
    total = 0.0
    for t in range(HORIZON):
        priced.multiplier = 2.0 + t
        seen, rewards, dones, infos = plain.step(moves(0.4))
        seen_0, less, dones_0, infos_0 = priced.step(moves(0.4))
        cost = np.maximum(0.0, caution - plain.margin)
        assert cost[1] > max(0.0, cost[0])
        np.testing.assert_allclose(less, rewards - (2.0 + t) * cost, rtol=1e-6)
        assert less.dtype == rewards.dtype
        np.testing.assert_array_equal(seen, seen_0)
        np.testing.assert_array_equal(dones, dones_0)
        assert [info.keys() for info in infos] == [info.keys() for info in infos_0]
        total += cost.mean()
    assert priced.take_cost() == pytest.approx(total)
    assert priced.take_cost() is None
    for _ in range(HORIZON):  # the next episode has a cost of its own
        priced.step(moves(0.0))
    assert priced.take_cost() < total


def test_costs_of_running_episodes_wait() -> None:
    """Until an episode ends it has no cost, and one that a reset cut off never has."""
    priced = Priced(batch(), 1.0)
    priced.reset()
    priced.step(moves(1.0))
    assert priced.take_cost() is None
    priced.reset()
    for _ in range(HORIZON):
        priced.step(moves(0.0))
    assert priced.take_cost() == 0.0


def test_finds_the_margin_below_other_wrappers() -> None:
    """Also where a wrapper is in between, or around it."""
    priced = VecNormalize(Priced(VecMonitor(batch()), 1.0), norm_reward=False, norm_obs=False)  # type: ignore[arg-type]
    priced.reset()
    assert priced.step(moves(1.0))[1][1] < -0.5


@pytest.mark.parametrize(("multiplier", "caution"), [(-1.0, 0.0), (float("nan"), 0.0), (1.0, -0.1), (float("inf"), 0.0)])
def test_refuses_numbers_out_of_range(multiplier: float, caution: float) -> None:
    """A negative price would pay for violations."""
    with pytest.raises(ValueError, match=r"must be a finite number >= 0"):
        Priced(batch(), multiplier, caution)


def test_refuses_envs_without_a_margin() -> None:
    """At once, rather than at the first step; a wrapper around such envs as well."""
    plain = DummyVecEnv([lambda: gym.make("mf_taxi_env:MFSwarm1D-v0")])
    for venv in (plain, VecMonitor(plain)):
        with pytest.raises(TypeError, match=r"venv must be a LiftedVecEnv .* got a (DummyVecEnv|VecMonitor) without a margin"):
            Priced(venv, 1.0)  # type: ignore[arg-type]


def test_the_controller_by_hand() -> None:
    """Algorithm 2 of arXiv 2007.03964, three updates: rising, falling, and far below the limit."""
    controller = PIDController(GAINS, integral=1.0)
    assert controller.update(0.5) == pytest.approx(2.0 * 0.4 + (1.0 + 0.5 * 0.4))  # no derivative yet
    assert controller.update(0.7) == pytest.approx(2.0 * 0.6 + (1.2 + 0.5 * 0.6) + 4.0 * 0.2)
    assert controller.update(0.2) == pytest.approx(2.0 * 0.1 + (1.5 + 0.5 * 0.1))  # falling costs have no derivative
    assert controller.update(0.0) == pytest.approx(2.0 * -0.1 + (1.55 - 0.05))


def test_the_price_rises_under_violation_and_falls_to_zero_without() -> None:
    """The integral goes on rising while costs stay, and never falls below zero, so that it rises again at once."""
    gains = dataclasses.replace(GAINS, proportional=0.0, derivative=0.0)
    controller = PIDController(gains, integral=0.0)
    prices = [controller.update(0.6) for _ in range(5)]
    assert prices == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.25])
    prices = [controller.update(0.0) for _ in range(40)]
    assert all(later <= earlier for earlier, later in pairwise(prices))
    assert prices[-1] == 0.0 and controller.integral == 0.0
    assert controller.update(0.6) == pytest.approx(0.25)


class _Stubborn(PPO):
    """Learns nothing: what happens is the callback's doing."""

    def train(self) -> None:
        pass


@pytest.mark.parametrize(("floor", "rises"), [(0.999, True), (0.5, False)])
def test_a_run_sets_the_price(floor: float, rises: bool) -> None:
    """A floor that nobody can keep raises the price with every rollout, one that everybody keeps brings it down to zero."""
    priced = Priced(batch(floor), multiplier=0.5)
    callback = PIDLagrangian(priced, GAINS)
    prices = []

    class Watch(PIDLagrangian):
        def _on_rollout_end(self) -> None:
            callback._on_rollout_end()
            prices.append(priced.multiplier)

    model = _Stubborn("MlpPolicy", priced, n_steps=HORIZON, batch_size=6, policy_kwargs={"log_std_init": -5.0}, device="cpu")
    model.learn(30 * 6, callback=Watch(priced, GAINS))
    assert len(prices) == 30
    if rises:
        assert all(later > earlier for earlier, later in pairwise(prices[1:])) and prices[-1] > 1.0
    else:
        assert prices[0] < 0.5 and prices[-1] == 0.0
