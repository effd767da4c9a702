"""The fleet for multi-agent algorithms: PettingZoo's own tests, and number for number the simulator."""

from __future__ import annotations

import importlib
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from mf_taxi_env import FleetSimulator, Scenario, TaxiMDP, fleet_parallel_env, load_scenario
from mf_taxi_env.envs.fleet_env import FleetParallelEnv
from mf_taxi_env.information import entropy_fraction

pytest.importorskip("pettingzoo")

SMALL: dict[str, Any] = {"cells": 5}


def moves(m: int, t: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Random actions of step ``t``."""
    return np.random.default_rng(t).uniform(-0.3, 0.3, (m, 2)).astype(np.float32)


def named(env: Any, actions: Any) -> dict[str, Any]:
    """The same by agent."""
    return dict(zip(env.agents, actions, strict=True))


def test_pettingzoos_tests_pass() -> None:
    """Their interface and seed tests, without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the module imports a game by a deprecated way
        tests = importlib.import_module("pettingzoo.test")
    tests.parallel_api_test(fleet_parallel_env(10, **SMALL), num_cycles=50)
    tests.parallel_seed_test(lambda: fleet_parallel_env(10, **SMALL))


@pytest.mark.parametrize("resolution", ["cell", "continuous"])
@pytest.mark.parametrize("timing", ["current", "next"])
@pytest.mark.parametrize("changing", [False, True])
def test_an_episode_is_the_simulators(
    make_scenario: Callable[..., Scenario], resolution: Any, timing: Any, changing: bool
) -> None:
    """Same world, same seed, same numbers: positions, distributions, occupancy, rewards and margins of all twelve steps; in a
    city, too, in which each of them has a demand and trips of its own."""
    city = make_scenario(5, steps=12) if changing else load_scenario("shenzhen", cells=5)
    env = fleet_parallel_env(40, scenario=city, resolution=resolution, reward_timing=timing, motion="congested", **SMALL)
    mdp = TaxiMDP(city, reward_timing=timing, motion="congested")
    fleet = FleetSimulator(mdp, 40, seed=3, resolution=resolution)
    observations, infos = env.reset(seed=3)
    mu = fleet.reset()
    for t in range(12):
        shifted = fleet.serve()
        for i, agent in enumerate(env.agents):
            assert np.array_equal(observations[agent]["position"], fleet.positions[i].numpy())
            assert np.array_equal(observations[agent]["mu"], shifted.numpy())
            assert infos[agent]["occupied"] == bool(fleet.occupied[i])
        assert np.array_equal(env.state(), shifted.numpy())
        actions = moves(40, t)
        after = fleet.step(torch.from_numpy(actions))
        observations, rewards, terminations, truncations, infos = env.step(named(env, actions))
        reward = float(mdp.reward(mu, torch.from_numpy(actions), after, t))
        assert set(rewards.values()) == {reward} and len(rewards) == 40
        assert set(terminations.values()) == {False} and set(truncations.values()) == {t == 11}
        assert infos["taxi_0"]["margin"] == float(mdp.margins(after).min())
        assert infos["taxi_0"]["cost"] == max(0.0, -infos["taxi_0"]["margin"])
        assert infos["taxi_0"]["kl"] == pytest.approx(float(mdp.target_kl(after, t)))
        mu = after
    assert env.agents == []
    assert np.array_equal(observations["taxi_7"]["position"], fleet.positions[7].numpy())
    assert not any(info["occupied"] for info in infos.values())


def test_a_rollout_of_a_policy_is_the_simulators() -> None:
    """What a policy does in the env with arrays is what FleetSimulator.rollout records."""
    mdp = TaxiMDP(load_scenario("shenzhen", cells=5))
    path = FleetSimulator(mdp, 60, seed=5).rollout(lambda positions, mu, t: 0.4 * (0.5 - positions) * (1 + mu[0]))
    env = fleet_parallel_env(60, **SMALL)
    seen, info = env.reset_array(seed=5)
    entropies, occupied, truncated = [info["entropy"]], [], False
    while not truncated:
        occupied.append(info["occupied"].mean())
        # At cell resolution the simulator asks from the centres of cells.
        places = mdp.centers[mdp.grid.index(torch.from_numpy(seen["position"].copy()))].numpy()
        seen, _, _, truncated, info = env.step_array(0.4 * (0.5 - places) * (1 + seen["mu"][0]))
        entropies.append(info["entropy"])
    assert np.array_equal(seen["position"], path.positions.numpy())
    np.testing.assert_allclose(occupied, path.occupied.numpy(), rtol=1e-6)
    np.testing.assert_allclose(entropies, entropy_fraction(path.distributions).numpy(), rtol=1e-6)


def episode(env: Any, seed: int | None) -> list[Any]:
    """Everything that twelve steps return, by names."""
    return [env.reset(seed=seed), *(env.step(named(env, moves(20, t))) for t in range(12))]


def flat(record: Any) -> list[Any]:
    """The leaves of nested tuples, lists and dictionaries."""
    if isinstance(record, dict):
        return [leaf for key in record for leaf in (key, *flat(record[key]))]
    if isinstance(record, (tuple, list)):
        return [leaf for part in record for leaf in flat(part)]
    return [record.tobytes() if isinstance(record, np.ndarray) else record]


def test_twelve_steps_are_determined_by_the_seed() -> None:
    """Observations, rewards and infos, bit for bit, in two envs, again in the first, and not under another seed."""
    first, second = fleet_parallel_env(20, **SMALL), fleet_parallel_env(20, **SMALL)
    torch.manual_seed(0)
    record = flat(episode(first, 9))
    torch.manual_seed(1)
    assert flat(episode(second, 9)) == record
    assert flat(episode(first, 9)) == record
    assert flat(episode(first, 10)) != record
    # Without a seed the fleet goes on drawing: alike in envs with the same past, and new every time.
    for env in (first, second):
        env.reset(seed=9)
    later = flat(episode(first, None))
    assert flat(episode(second, None)) == later != record
    assert flat(episode(fleet_parallel_env(20, **SMALL), None)) != flat(episode(fleet_parallel_env(20, **SMALL), None))


def test_both_doors_lead_to_the_same_fleet() -> None:
    """step and step_array return the same numbers."""
    by_name, as_array = fleet_parallel_env(20, **SMALL), fleet_parallel_env(20, **SMALL)
    observations, infos = by_name.reset(seed=1)
    seen, info = as_array.reset_array(seed=1)
    for t in range(12):
        assert np.array_equal(np.stack([one["position"] for one in observations.values()]), seen["position"])
        assert [one["occupied"] for one in infos.values()] == info["occupied"].tolist()
        observations, rewards, _, truncations, infos = by_name.step(named(by_name, moves(20, t)))
        seen, reward, terminated, truncated, info = as_array.step_array(torch.from_numpy(moves(20, t)))
        assert rewards["taxi_3"] == reward and truncations["taxi_3"] is truncated and terminated is False
        assert {**infos["taxi_3"], "occupied": None} == {**info, "occupied": None}


def test_observations_fit_their_space_and_are_shared_read_only() -> None:
    """One distribution for all, which no agent can change; spaces are one object each."""
    env = fleet_parallel_env(20, **SMALL)
    observations, _ = env.reset(seed=0)
    assert env.observation_space("taxi_0") is env.observation_space("taxi_19")
    assert env.action_space("taxi_0") is env.action_space("taxi_19")
    for observation in observations.values():
        assert env.observation_space("taxi_0").contains(observation)
        assert observation["mu"] is env.state()
    for array in observations["taxi_4"].values():
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0.5
    held = observations["taxi_4"]["position"].copy()
    env.step(named(env, moves(20, 0)))
    assert np.array_equal(observations["taxi_4"]["position"], held)


@pytest.mark.parametrize("form", ["list", "read-only", "backwards", "double"])
def test_arrays_of_actions_may_have_any_form(form: str) -> None:
    """What torch does not take as it is is copied; nothing that a client hands in is changed."""
    actions = moves(20, 0)
    forms = {
        "list": actions.tolist(),
        "read-only": actions.copy(),
        "backwards": actions[::-1].copy()[::-1],
        "double": actions * 1.0,
    }
    forms["read-only"].setflags(write=False)
    given = forms[form].astype(np.float64) if form == "double" else forms[form]
    one, other = fleet_parallel_env(20, **SMALL), fleet_parallel_env(20, **SMALL)
    one.reset(seed=0), other.reset(seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        seen = one.step_array(given)[0]
    assert np.array_equal(seen["position"], other.step_array(actions)[0]["position"])
    assert np.array_equal(np.asarray(given, np.float32), moves(20, 0)) and np.array_equal(actions, moves(20, 0))


def test_the_simulator_can_be_looked_at() -> None:
    """Its kilometres are those of a simulator that is stepped alone, and a policy that reads its positions can learn."""
    env = fleet_parallel_env(40, **SMALL)
    fleet = FleetSimulator(env.mdp, 40, seed=3)
    env.reset_array(seed=3)
    for t in range(3):
        env.step_array(moves(40, t))
        fleet.step(torch.from_numpy(moves(40, t)))
        assert all(torch.equal(a, b) for a, b in zip(env.fleet.kilometres, fleet.kilometres, strict=True))
    assert min(map(float, fleet.kilometres)) > 0
    weight = torch.ones(2, requires_grad=True)
    (env.fleet.positions.clone() @ weight).sum().backward()
    assert weight.grad is not None


def test_a_motion_may_differentiate_inside() -> None:
    """As in every env of this package: a step of a user's own motion is not computed in inference mode."""

    def downhill(positions: torch.Tensor, mu: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            places = positions.clone().requires_grad_()
            (slope,) = torch.autograd.grad((places - 0.5).square().sum(), places)
        return (positions - 0.1 * slope + 0.1 * actions).clamp(0.0, 1.0)

    env = fleet_parallel_env(20, motion=downhill, **SMALL)
    env.reset_array(seed=0)
    assert env.step_array(moves(20, 0))[0]["position"].shape == (20, 2)


def test_a_world_may_differentiate_inside(make_scenario: Callable[..., Scenario]) -> None:
    """A class of the user's own as well, whose motion and constraints are this package's."""

    class Steep(TaxiMDP):
        def reward(self, *arguments: Any) -> torch.Tensor:
            with torch.enable_grad():
                place = torch.ones((), requires_grad=True)
                (slope,) = torch.autograd.grad(place.square(), place)
            return super().reward(*arguments) * slope

    env = FleetParallelEnv(Steep(make_scenario(5), horizon=3), 20)
    env.reset_array(seed=0)
    reward = env.step_array(moves(20, 0))[1]
    plain = FleetParallelEnv(TaxiMDP(make_scenario(5), horizon=3), 20)
    plain.reset_array(seed=0)
    np.testing.assert_allclose(reward, 2.0 * plain.step_array(moves(20, 0))[1])


def test_it_draws_nothing() -> None:
    """What clients pass on to every env is accepted, anything else is refused by name."""
    assert fleet_parallel_env(20, render_mode=None, **SMALL).render_mode is None
    with pytest.raises(ValueError, match="render_mode must be None, got 'rgb_array'"):
        fleet_parallel_env(20, render_mode="rgb_array", **SMALL)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda actions: actions.pop("taxi_3"), "each of the 20 agents alone, amiss are .'taxi_3'"),
        (lambda actions: actions.update(bus=np.zeros(2)), "amiss are .'bus'"),
        (lambda actions: actions.update(taxi_3=np.zeros(3)), r"shape \(2,\), got \(3,\) for taxi_3"),
        (lambda actions: actions.update(taxi_3=np.zeros(3), taxi_4=np.zeros(1)), r"shape \(2,\), got \(3,\) for taxi_3"),
        (lambda actions: actions.update(taxi_3=np.zeros((2, 1))), r"shape \(2,\), got \(2, 1\) for taxi_3"),
        (lambda actions: actions.update(taxi_3=["0.1", "0.2"]), r"real numbers, got \['0.1', '0.2'\] of type <U3 for taxi_3"),
        (lambda actions: actions.update(taxi_3=np.zeros(2, complex)), r"real numbers, .* of type complex128 for taxi_3"),
        (lambda actions: actions.update(taxi_3=None), r"shape \(2,\), got \(\) for taxi_3"),
        (lambda actions: actions.update(taxi_3=np.array([1.5, 0.0])), r"lie in \[-1, 1\]"),
        (lambda actions: actions.update(taxi_3=np.array([np.nan, 0.0])), "finite"),
    ],
)
def test_bad_actions_raise_and_change_nothing(change: Any, message: str) -> None:
    """The message says what is amiss; the episode goes on as if nothing had been asked."""
    env, twin = fleet_parallel_env(20, **SMALL), fleet_parallel_env(20, **SMALL)
    env.reset(seed=0), twin.reset(seed=0)
    actions = named(env, moves(20, 0))
    change(actions)
    with pytest.raises(ValueError, match=message):
        env.step(actions)
    assert flat(env.step(named(env, moves(20, 0)))) == flat(twin.step(named(twin, moves(20, 0))))


def test_steps_need_a_running_episode() -> None:
    """Before the first reset, and after the last step."""
    env = fleet_parallel_env(3, horizon=1, **SMALL)
    for act in (lambda: env.step({}), lambda: env.step_array(np.zeros((3, 2))), env.state):
        with pytest.raises(gym.error.ResetNeeded):
            act()
    env.reset(seed=0)
    env.step_array(np.zeros((3, 2), np.float32))
    with pytest.raises(gym.error.ResetNeeded):
        env.step_array(np.zeros((3, 2), np.float32))


def test_a_new_env_travels_to_other_processes() -> None:
    """Libraries pickle envs: the copy plays the same episode."""
    env = fleet_parallel_env(20, **SMALL)
    assert flat(episode(pickle.loads(pickle.dumps(env)), 4)) == flat(episode(env, 4))


def test_a_running_env_travels_to_other_processes() -> None:
    """In the middle of an episode, too: the copy goes on as the original does."""
    env = fleet_parallel_env(20, **SMALL)
    env.reset(seed=4)
    env.step(named(env, moves(20, 0)))
    copy = pickle.loads(pickle.dumps(env))
    assert flat(copy.step(named(copy, moves(20, 1)))) == flat(env.step(named(env, moves(20, 1))))
    assert copy.fleet.kilometres == env.fleet.kilometres


def test_unknown_and_bad_arguments_are_named() -> None:
    """As those of the Gymnasium envs."""
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'parameterization'; it has .*, n_taxis$"):
        fleet_parallel_env(5, parameterization="cells")  # type: ignore[call-arg]
    with pytest.raises(ValueError, match=r"n_taxis .* got 0"):
        fleet_parallel_env(0, **SMALL)
    with pytest.raises(ValueError, match=r"resolution .* got 'fine'"):
        fleet_parallel_env(5, resolution="fine", **SMALL)  # type: ignore[arg-type]
