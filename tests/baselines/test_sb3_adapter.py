"""The batch as SB3's ``VecEnv``: the same numbers as an env per process, SB3's contract, and policies in return."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

pytest.importorskip("stable_baselines3")
from stable_baselines3 import PPO, TD3
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecMonitor, VecNormalize

from baselines.sb3.adapter import LiftedVecEnv
from baselines.sb3.lagrangian import Priced
from baselines.sb3.policy import LiftedPolicy
from mf_taxi_env import EntropyFloor, FleetSimulator, Scenario, TaxiMDP, load_scenario
from mf_taxi_env.envs.vector_env import MeanFieldVectorEnv

HORIZON = 3
FLOOR = EntropyFloor(0.95)


def city(**settings: Any) -> TaxiMDP:
    """A small city with short episodes."""
    given: dict[str, Any] = {"horizon": HORIZON, "constraints": [FLOOR], "reward_timing": "next", **settings}
    return TaxiMDP(load_scenario("shenzhen", cells=5), **given)


def changing_city() -> Scenario:
    """Demand and trips of another city at every step, three of them."""
    days = [load_scenario(f"synthetic:{seed}", cells=5) for seed in range(3)]
    return replace(
        days[0], demand=np.stack([day.demand for day in days]), trips=np.stack([np.asarray(day.trips) for day in days])
    )


def batch(num_envs: int = 3, mdp: TaxiMDP | None = None, **settings: Any) -> LiftedVecEnv:
    """The adapter."""
    return LiftedVecEnv(mdp or city(), num_envs, **{"parameterization": "bilinear:3", **settings})


def single(**settings: Any) -> gym.Env[Any, Any]:
    """The env that the adapter stands for."""
    return gym.make(
        "mf_taxi_env:MFTaxi-v0", cells=5, horizon=HORIZON, constraints=[FLOOR], reward_timing="next",
        parameterization="bilinear:3", observation="density", **settings,
    )  # fmt: skip


def actions(envs: VecEnv, seed: int, size: float = 0.5) -> np.ndarray:
    """Legal actions, large enough to break the floor in some envs and not in others."""
    shape = (envs.num_envs, *(envs.action_space.shape or ()))
    sizes = np.linspace(0.02, size, envs.num_envs)[:, None]
    return (sizes * np.random.default_rng(seed).uniform(-1, 1, shape)).astype(np.float32)


@pytest.mark.parametrize("vectorized", [DummyVecEnv, SubprocVecEnv])
@pytest.mark.parametrize("observe_time", [False, True])
def test_same_numbers_as_an_env_each(vectorized: type[VecEnv], observe_time: bool) -> None:
    """Observations, rewards, ends, terminal observations and costs, over two episodes and a step."""
    theirs = vectorized([lambda: single(observe_time=observe_time)] * 3)  # type: ignore[call-arg]
    ours = batch(observe_time=observe_time, after_trips=False)
    try:
        assert (ours.observation_space, ours.action_space) == (theirs.observation_space, theirs.action_space)
        for envs in (ours, theirs):
            envs.seed(5)
            envs.set_options({"initial": "gaussian"})
        np.testing.assert_allclose(ours.reset(), theirs.reset(), rtol=1e-5, atol=1e-5)
        costs = 0
        for t in range(2 * HORIZON + 1):
            given = actions(ours, t)
            (seen, rewards, dones, infos), (seen_0, rewards_0, dones_0, infos_0) = ours.step(given), theirs.step(given)
            np.testing.assert_allclose(seen, seen_0, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(rewards, rewards_0, rtol=1e-4, atol=1e-5)
            np.testing.assert_array_equal(dones, dones_0)
            assert (seen.dtype, rewards.dtype, dones.dtype) == (seen_0.dtype, np.float32, dones_0.dtype)
            for i, (info, info_0) in enumerate(zip(infos, infos_0, strict=True)):
                assert info.get("cost", 0.0) == pytest.approx(info_0["cost"], abs=1e-5)
                assert ours.margin[i] == pytest.approx(info_0["margin"], abs=1e-5)
                assert info.get("TimeLimit.truncated", False) == info_0["TimeLimit.truncated"]
                assert ("terminal_observation" in info) == dones[i] == ("terminal_observation" in info_0)
                if dones[i]:
                    np.testing.assert_allclose(info["terminal_observation"], info_0["terminal_observation"], atol=1e-4)
                costs += info_0["cost"] > 0
        assert 0 < costs < 3 * (2 * HORIZON + 1)
    finally:
        theirs.close()
        ours.close()


def test_a_new_episode_begins_within_the_step() -> None:
    """No step is lost between episodes, and what the next one starts from differs from the terminal observation."""
    envs = batch(2)
    first = envs.reset()
    for t in range(3 * HORIZON):
        seen, rewards, dones, infos = envs.step(actions(envs, t))
        assert dones.all() == ((t + 1) % HORIZON == 0) and rewards.all()
        if dones.all():
            np.testing.assert_array_equal(seen, first)
            assert all(np.abs(info["terminal_observation"] - row).max() > 1e-3 for info, row in zip(infos, first, strict=True))
    assert envs.episodes == 6


def test_shows_what_a_policy_acts_on() -> None:
    """Unless told otherwise: the distribution after trips, at every step and at the last, also of trips that change by step."""
    mdp = TaxiMDP(changing_city(), horizon=HORIZON, constraints=[FLOOR], reward_timing="next")
    envs, plain = batch(mdp=mdp), batch(mdp=mdp, after_trips=False)
    np.testing.assert_allclose(envs.reset() / 25, mdp.shift(torch.from_numpy(plain.reset() / 25)), atol=1e-6)
    for t in range(HORIZON):
        given = actions(envs, t)
        seen, infos = envs.step(given)[0::3]
        before, infos_before = plain.step(given)[0::3]
        if t + 1 == HORIZON:
            seen, before = (np.stack([i["terminal_observation"] for i in those]) for those in (infos, infos_before))
        assert np.abs(seen - before).max() > 1e-2
        np.testing.assert_allclose(seen / 25, mdp.shift(torch.from_numpy(before / 25), t + 1), atol=1e-6)


def test_counts_episodes_and_violations(monkeypatch: pytest.MonkeyPatch) -> None:
    """An episode counts once, when it ends, and as violated wherever in it the violation was; a reset counts nothing."""
    envs = batch(3)
    envs.reset()
    margins = iter([[-1.0, 1.0, 1.0], [1.0, 1.0, 0.0], [1.0, -1.0, 1.0]])
    step = MeanFieldVectorEnv.step

    def told(self: MeanFieldVectorEnv, actions: Any) -> Any:
        *rest, report = step(self, actions)
        return *rest, {**report, "margin": torch.tensor(next(margins, [1.0, math.inf, 1.0]))}

    monkeypatch.setattr(MeanFieldVectorEnv, "step", told)
    still = np.zeros((3, 18), np.float32)
    for t in range(HORIZON):
        assert (envs.episodes, envs.violated) == (0, 0)
        infos = envs.step(still)[3]
        assert [info.get("cost") for info in infos] == [[1.0, None, None], [None] * 3, [None, 1.0, None]][t]
    assert (envs.episodes, envs.violated) == (3, 2)
    for _ in range(HORIZON):
        envs.step(still)
    assert (envs.episodes, envs.violated) == (6, 2)  # the past is forgotten
    margins = iter([[math.nan] * 3] + [[1.0] * 3] * HORIZON + [[1.0, 1.0, math.nan]])
    envs.step(still)
    envs.reset()
    for _ in range(HORIZON):
        envs.step(still)
    assert (envs.episodes, envs.violated) == (9, 2)
    for _ in range(HORIZON):
        envs.step(still)
    assert (envs.episodes, envs.violated) == (12, 3)  # a margin that is no number is not kept


def test_reach_shortens_moves() -> None:
    """The action 1 of a reach of 0.2 is the action 0.2."""
    short, long = batch(reach=0.2), batch()
    short.reset(), long.reset()
    given = actions(short, 0)
    np.testing.assert_array_equal(short.step(given)[0], long.step(np.float32(0.2) * given)[0])


@pytest.mark.parametrize("reach", [0.2, 1.0])
def test_refuses_what_is_no_action(reach: float) -> None:
    """Also where reach would have made it one; no episode moves."""
    envs = batch(reach=reach)
    envs.reset()
    for wrong, message in ((1.5, "lie in"), (np.nan, "lie in")):
        with pytest.raises(ValueError, match=message):
            envs.step(np.full((3, 18), wrong, np.float32))
    with pytest.raises(ValueError, match="shape"):
        envs.step(np.zeros((2, 18), np.float32))
    for t in range(HORIZON):
        assert envs.step(np.zeros((3, 18), np.float32))[2].all() == (t + 1 == HORIZON)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reach": 0.0}, "reach"),
        ({"reach": 1.5}, "reach"),
        ({"bootstrap": False}, "observe_time"),
        ({"num_envs": 0}, "num_envs"),
    ],
)
def test_refuses_settings_out_of_range(settings: dict[str, Any], message: str) -> None:
    """Errors name the argument."""
    with pytest.raises(ValueError, match=message):
        batch(**{"num_envs": 3, **settings})


def test_the_end_may_be_the_end() -> None:
    """Without bootstrapping nothing is said to be cut."""
    envs = batch(observe_time=True, bootstrap=False)
    envs.reset()
    for _ in range(HORIZON):
        infos = envs.step(np.zeros((3, 18), np.float32))[3]
    assert [info["TimeLimit.truncated"] for info in infos] == [False] * 3


def test_starts() -> None:
    """Options hold for one reset: a distribution for all or for each; seeds are used once."""
    envs = batch(2, after_trips=False)
    uniform = envs.reset()
    envs.set_options([{"initial": np.eye(25)[i]} for i in range(2)])
    np.testing.assert_allclose(envs.reset() / 25, np.eye(25)[:2], atol=1e-6)
    np.testing.assert_array_equal(envs.reset(), uniform)
    drawn = []
    for seed in (3, 3, 4):
        envs.seed(seed)
        envs.set_options({"initial": "gaussian"})
        drawn.append(envs.reset())
    np.testing.assert_array_equal(drawn[0], drawn[1])
    np.testing.assert_array_equal(drawn[0][1], drawn[2][0])  # env i is seeded with seed + i
    envs.set_options({"initial": "gaussian"})
    assert not np.array_equal(envs.reset(), drawn[2])
    for options in ([{"initial": "gaussian"}, {}], {"scenario": "shenzhen"}, {"weather": "rain"}):
        envs.set_options(options)
        with pytest.raises(ValueError, match=r"initial|scenario|weather"):
            envs.reset()


def test_sb3s_contract() -> None:
    """Attributes per env, nothing wrapped, and a step before any reset is told."""
    envs = batch()
    assert envs.get_attr("reach") == [1.0] * 3 and envs.get_attr("reach", [0, 2]) == [1.0] * 2
    assert envs.has_attr("mdp") and not envs.has_attr("weather")
    assert envs.env_is_wrapped(gym.Wrapper, 1) == [False]
    for refused in (lambda: envs.set_attr("reach", 1), lambda: envs.env_method("render")):
        with pytest.raises(NotImplementedError, match="batch"):
            refused()
    with pytest.raises(gym.error.ResetNeeded):
        envs.step(np.zeros((3, 18), np.float32))
    envs.close()
    envs.close()


def test_sb3s_wrappers() -> None:
    """VecMonitor and VecNormalize do around the adapter what they do around envs of their own."""
    ours, theirs = (
        VecNormalize(VecMonitor(envs))
        for envs in (batch(after_trips=False), DummyVecEnv([single] * 3))  # type: ignore[list-item]
    )
    np.testing.assert_allclose(ours.reset(), theirs.reset(), atol=1e-3)
    for t in range(HORIZON + 1):
        given = actions(ours, t)
        (seen, rewards, _, infos), (seen_0, rewards_0, _, infos_0) = ours.step(given), theirs.step(given)
        np.testing.assert_allclose(seen, seen_0, atol=2e-3)
        np.testing.assert_allclose(rewards, rewards_0, rtol=1e-3)
        for info, info_0 in zip(infos, infos_0, strict=True):
            assert ("episode" in info) == ("episode" in info_0) == (t + 1 == HORIZON)
            if "episode" in info:
                assert info["episode"]["r"] == pytest.approx(info_0["episode"]["r"], rel=1e-4)
                assert info["episode"]["l"] == HORIZON
                np.testing.assert_allclose(info["terminal_observation"], info_0["terminal_observation"], atol=2e-3)


@pytest.mark.parametrize("parameterization", ["bilinear:3", "cells"])
@pytest.mark.parametrize("algorithm", [PPO, TD3])
def test_a_policy_does_what_the_model_would(parameterization: str, algorithm: type[PPO | TD3]) -> None:
    """The rollout in the lifted MDP is the episode that predict() makes in the envs, in both precisions and on fleets."""
    mdp = city()
    envs = batch(2, mdp, parameterization=parameterization, observe_time=True, reach=0.3)
    model = algorithm("MlpPolicy", envs, seed=0, device="cpu")
    with torch.no_grad():
        for parameter in model.policy.parameters():
            if parameter.ndim == 1:  # biases: a policy that does something, clips some, and is no amplifier of sampling noise
                parameter.add_(torch.randn_like(parameter))
    policy = LiftedPolicy(model, envs)
    seen, path = envs.reset(), []
    for _ in range(HORIZON):
        seen, rewards, _, infos = envs.step(model.predict(seen, deterministic=True)[0])
        path.append(rewards[0])
    rollout = mdp.rollout(policy, mdp.initial((4,)))
    np.testing.assert_allclose(rollout.rewards[3], path, rtol=1e-4)
    last = mdp.shift(rollout.mu[3, -1], HORIZON)
    np.testing.assert_allclose(infos[1]["terminal_observation"][:-1] / 25, last, atol=1e-5)

    mu = mdp.shift(mdp.initial())
    field = policy.field(mu, 1)
    assert field.abs().max() <= 0.3 and field.std() > 0.01 and not field.requires_grad
    torch.testing.assert_close(policy(mdp.centers, mu, 1), field)
    torch.testing.assert_close(policy.at(mu, 1)(mdp.centers[:7]), field[:7])
    assert policy.field(mu.double(), 1).dtype == torch.float64
    fleet = FleetSimulator(mdp, 20_000, seed=0, resolution="cell").rollout(policy)
    np.testing.assert_allclose(fleet.distributions[-1], mdp.rollout(policy).mu[-1], atol=0.02)
    assert FleetSimulator(mdp, 50, seed=0).rollout(policy).distributions.shape == (HORIZON + 1, 25)  # asks at positions


def test_a_policy_needs_what_it_acts_on() -> None:
    """A model that saw the distribution before trips cannot be asked after them; nor can one of other spaces."""
    envs = batch(after_trips=False)
    with pytest.raises(ValueError, match="after_trips"):
        LiftedPolicy(PPO("MlpPolicy", envs, device="cpu"), envs)
    with pytest.raises(ValueError, match="action_space"):
        LiftedPolicy(PPO("MlpPolicy", batch(parameterization="cells"), device="cpu"), batch())


def test_a_policy_is_of_the_envs_that_its_model_knows(tmp_path: Path) -> None:
    """Spaces do not tell how far an action goes, or which distribution was seen: moves five times as long are no policy."""
    model = PPO("MlpPolicy", batch(reach=0.2), n_steps=2, batch_size=2, device="cpu")
    with pytest.raises(ValueError, match=r"envs must have the reach that the model was trained with, 0\.2, got 1\.0"):
        LiftedPolicy(model, batch())
    LiftedPolicy(model, batch(reach=0.2))  # made anew, as after loading
    fine = PPO("MlpPolicy", batch(parameterization="bilinear:5"), n_steps=2, batch_size=2, device="cpu")
    with pytest.raises(ValueError, match=r"trained with, BilinearField, got CellField"):
        LiftedPolicy(fine, batch(parameterization="cells"))  # as many numbers
    plain = PPO("MlpPolicy", batch(after_trips=False), n_steps=2, batch_size=2, device="cpu")
    with pytest.raises(ValueError, match=r"model must be trained on a LiftedVecEnv with after_trips=True"):
        LiftedPolicy(plain, batch())
    alone = PPO("MlpPolicy", single(), n_steps=2, batch_size=2, device="cpu")
    with pytest.raises(ValueError, match=r"model must be trained on a LiftedVecEnv"):
        LiftedPolicy(alone, batch())
    plain.save(tmp_path / "model")
    LiftedPolicy(PPO.load(tmp_path / "model", device="cpu"), batch())  # without its envs nobody knows


def test_episodes_start_where_they_are_told_to() -> None:
    """All of them, not the first alone; and anew each time where the start is random."""
    envs = batch(initial="gaussian")
    envs.seed(1)
    starts = [envs.reset()]
    for t in range(2 * HORIZON):
        seen, _, dones, _ = envs.step(actions(envs, t))
        starts += [seen] * bool(dones.all())
    assert len(starts) == 3 and all(np.abs(start - 1.0).max() > 0.05 for start in starts)
    assert np.abs(starts[0] - starts[1]).max() > 0.05 < np.abs(starts[1] - starts[2]).max()
    corner = np.full(25, 0.5 / 24)
    corner[0] = 0.5
    given = batch(initial=torch.from_numpy(corner), after_trips=False)
    np.testing.assert_allclose(given.reset() / 25, np.tile(corner, (3, 1)), atol=1e-6)


def test_what_starts_cannot_be_is_named() -> None:
    """As an error of the option, not of torch."""
    envs = batch()
    envs.set_options({"initial": object()})
    with pytest.raises(ValueError, match="set_options: 'initial' must be a name or a distribution"):
        envs.reset()


def test_infos_are_each_envs_own() -> None:
    """Empty where nothing is to be said; a wrapper that writes to one env's writes to no other's."""
    envs = batch()
    envs.reset()
    infos = envs.step(np.zeros((3, 18), np.float32))[3]
    assert infos == [{}] * 3
    infos[0]["mine"] = 1.0
    assert [info.get("mine") for info in infos] == [1.0, None, None]


def test_saturated_actions_are_a_policys_too() -> None:
    """A model whose every action is at its bounds can be asked by a fleet: interpolation leaves nothing beyond them."""
    world = TaxiMDP(load_scenario("shenzhen"), horizon=1)
    envs = LiftedVecEnv(world, 1, parameterization="bilinear:8")
    policy = LiftedPolicy(PPO("MlpPolicy", envs, n_steps=2, batch_size=2, device="cpu"), envs)
    signs = torch.from_numpy(np.random.default_rng(0).choice([-1.0, 1.0], (50, 128)).astype(np.float32))
    assert float(envs.parameterization.field(signs).abs().max()) == 1.0
    policy._parameters = lambda mu, t: signs[0]  # type: ignore[method-assign]
    assert FleetSimulator(world, 100).rollout(policy).distributions.shape == (2, 625)


def test_a_model_under_normalised_observations_is_refused() -> None:
    """It was trained on other numbers than this policy would show it; normalised rewards change nothing."""
    envs = batch()
    for given, allowed in (({"norm_obs": True}, False), ({"norm_obs": False}, True)):
        model = PPO("MlpPolicy", VecNormalize(envs, **given), n_steps=2, batch_size=2, device="cpu")
        if allowed:
            LiftedPolicy(model, envs)
            continue
        with pytest.raises(ValueError, match="under VecNormalize"):
            LiftedPolicy(model, envs)


def test_a_price_is_taken_off_plain_rewards_alone() -> None:
    """Of normalised ones it would be a price in no unit; around the priced envs it may be normalised."""
    with pytest.raises(ValueError, match="must not normalise rewards"):
        Priced(VecNormalize(batch()), 1.0)
    assert VecNormalize(Priced(batch(), 1.0)).num_envs == 3
