"""What holds on a CPU holds on a GPU, too: each test runs here, and on CUDA where there is one."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

import mf_taxi_env
from mf_taxi_env import EntropyFloor, FleetSimulator, Grid, TaxiMDP, load_scenario
from mf_taxi_env.wrapped_noise import WrappedGaussian
from safe_m3_agent import Config, SafeM3UCRL
from safe_m3_agent.certificate import CertificateConfig
from safe_m3_agent.model.ensemble import EnsembleConfig
from safe_m3_agent.model.gaussian_process import GPConfig
from safe_m3_agent.planners.bptt import BPTTConfig
from safe_m3_agent.planners.ddpg_config import DDPGConfig

pytestmark = pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]
)
SMALL: dict[str, dict[str, Any]] = {"MFTaxi-v0": {"cells": 6}, "MFSwarm1D-v0": {"cells": 20}}


def plain(value: Any) -> np.ndarray:
    """An array of what a client is given."""
    return value.cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_every_env_gives_what_the_single_one_gives(name: str, backend: str, device: str) -> None:
    """Observations, rewards and infos of three steps, from random starts."""
    assert mf_taxi_env.__version__  # registers the ids
    single = gym.make(name, **SMALL[name])
    envs: Any = gym.make_vec(name, num_envs=2, backend=backend, device=device, **SMALL[name])
    options = {"initial": "gaussian"}
    mu, info = single.reset(seed=1, options=options)
    several, infos = envs.reset(seed=0, options=options)  # episode 1 has seed 1
    rng = np.random.default_rng(0)
    reward, rewards = 0.0, np.zeros(2)
    for _ in range(3):
        np.testing.assert_allclose(plain(several)[1], mu, atol=1e-5)
        np.testing.assert_allclose(plain(rewards)[1], reward, rtol=1e-4, atol=1e-4)
        for key in ("margin", "entropy", "kl", "cost"):
            np.testing.assert_allclose(plain(infos[key])[1], info[key], rtol=1e-3, atol=1e-4)
        taken = 0.1 * rng.uniform(-1, 1, single.action_space.shape).astype(np.float32)
        both = np.stack([taken, taken])
        given = torch.from_numpy(both).to(device) if backend == "torch" else both
        mu, reward, _, _, info = single.step(taken)  # type: ignore[assignment]
        several, rewards, _, _, infos = envs.step(given)


def test_a_destination_that_is_no_number_ends_no_process(device: str) -> None:
    """As an index it would be a fault, on a GPU one that ends the process; the others keep their probabilities."""
    at = torch.tensor([[math.nan], [0.5]], device=device)
    found = WrappedGaussian(Grid(5, 1), 0.05).cell_probabilities(at)
    assert bool(found[0].isnan().any()) and bool(found[1].isfinite().all())


@pytest.mark.parametrize("taxis", [1, 5, 50_000])
def test_a_fleet_is_the_same_again(taxis: int, device: str) -> None:
    """Of any size, from its seed; and a large one is the mean field, to its scatter."""
    mdp = TaxiMDP(load_scenario("shenzhen", cells=5), device=device, horizon=3)
    one, two = (FleetSimulator(mdp, taxis, seed=1).rollout(lambda s, mu, t: 0.1 * (0.5 - s)) for _ in range(2))
    assert torch.equal(one.positions, two.positions) and one.distributions.device.type == device
    torch.testing.assert_close(one.distributions.sum(-1).cpu(), torch.ones(4))
    if taxis == 50_000:
        field = mdp.rollout(_Inwards(mdp))
        assert float((one.distributions - field.mu).abs().sum(-1).max()) < 0.03


class _Inwards:
    def __init__(self, mdp: TaxiMDP) -> None:
        self.actions = 0.1 * (0.5 - mdp.centers)

    def field(self, mu: torch.Tensor, t: int) -> torch.Tensor:
        return self.actions


@pytest.mark.parametrize("planner", ["bptt", "ddpg"])
@pytest.mark.parametrize("model", ["ensemble", "gp", "known"])
def test_an_agent_goes_on_where_it_was(tmp_path: Path, planner: Any, model: Any, device: str) -> None:
    """Two episodes, saved and loaded, and a third one are three in a row."""
    world = TaxiMDP(
        load_scenario("shenzhen", cells=5), constraints=[EntropyFloor(0.8)], horizon=3, noise_std=0.1, reward_timing="next",
        device=device,
    )  # fmt: skip
    config = Config(
        planner=planner, model=model, representative_agents=4, rounds=2,
        ensemble=EnsembleConfig(members=3, hidden=(4, 4), steps=6),
        gp=GPConfig(members=3, inducing=10, features=8, steps=2), bptt=BPTTConfig(epochs=4),
        ddpg=DDPGConfig(
            rounds=2, episodes=4, critic_steps=3, critic_batch=4, actor_batch=2, hidden=8, modes=3, replay_episodes=6
        ),
        certificate=CertificateConfig(restarts=2, steps=1, attempts=2),
    )  # fmt: skip
    whole, first = SafeM3UCRL(world, config, seed=3), SafeM3UCRL(world, config, seed=3)
    whole.learn(3)
    first.learn(2)
    again = SafeM3UCRL.load(first.save(tmp_path), device=device)
    again.learn(1)
    assert again.mdp.device.type == device
    if device == "cpu":
        assert again.history == whole.history
    else:  # sums of a GPU may be taken in another order
        np.testing.assert_allclose(again.history.column("reward"), whole.history.column("reward"), rtol=1e-3)
