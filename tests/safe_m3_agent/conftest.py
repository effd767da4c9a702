"""Small worlds and quick settings that the agent's tests share."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from mf_taxi_env import EntropyFloor, Grid, Motion, Scenario, TaxiMDP, load_scenario
from mf_taxi_env.noise import TruncatedGaussian
from safe_m3_agent import Config
from safe_m3_agent.certificate import CertificateConfig
from safe_m3_agent.model.ensemble import EnsembleConfig
from safe_m3_agent.model.gaussian_process import GPConfig
from safe_m3_agent.planners.bptt import BPTTConfig
from safe_m3_agent.planners.ddpg_config import DDPGConfig
from safe_m3_agent.transitions import Transitions

SIX_BY_SIX = Grid(6)


@pytest.fixture(scope="session")
def make_world() -> Callable[..., TaxiMDP]:
    """A small Shenzhen. The floor is low and the noise wide, for on a coarse grid staying put concentrates the fleet."""

    def make(cells: int = 5, floor: float = 0.8, **options: object) -> TaxiMDP:
        settings: dict[str, object] = {
            "constraints": [EntropyFloor(floor)],
            "horizon": 3,
            "noise_std": 0.1,
            "reward_timing": "next",
        }
        return TaxiMDP(load_scenario("shenzhen", cells=cells), **{**settings, **options})  # type: ignore[arg-type]

    return make


@pytest.fixture
def world(make_world: Callable[..., TaxiMDP]) -> TaxiMDP:
    """Three steps on 5 x 5 cells."""
    return make_world()


@pytest.fixture(scope="session")
def town(make_world: Callable[..., TaxiMDP]) -> TaxiMDP:
    """Six by six cells, six steps, a floor that the demand itself would break."""
    return make_world(cells=6, floor=0.9, horizon=6)


@pytest.fixture(scope="session")
def random_city() -> Callable[..., Scenario]:
    """A city drawn from a seed; with ``steps``, one with a demand and trips of its own at each of them."""

    def make(seed: int, cells: int = 5, steps: int | None = None) -> Scenario:
        rng = np.random.default_rng(seed)
        lead = () if steps is None else (steps,)
        demand, trips = rng.dirichlet(np.ones(cells**2), lead or None), rng.dirichlet(np.ones(cells**2), (*lead, cells**2))
        return Scenario(f"random {seed}", demand, trips, box=(0.0, 0.1, 0.0, 0.1), entropy_floor=0.5)

    return make


@pytest.fixture(scope="session")
def tiny() -> Config:
    """Settings so small that an episode takes a fraction of a second; too small to learn anything."""
    return Config(
        representative_agents=4,
        rounds=2,
        ensemble=EnsembleConfig(members=3, hidden=(4, 4), steps=6),
        gp=GPConfig(members=3, inducing=10, features=8, steps=2),
        bptt=BPTTConfig(epochs=4),
        ddpg=DDPGConfig(
            rounds=2, episodes=4, critic_steps=3, critic_batch=4, actor_batch=2, hidden=8, modes=3, replay_episodes=6
        ),
        certificate=CertificateConfig(restarts=2, steps=1, attempts=2),
    )


@pytest.fixture(scope="session")
def roam() -> Callable[..., tuple[Transitions, Tensor]]:
    """Random moves in random distributions, and where they headed."""

    def make(
        motion: Motion,
        n: int,
        seed: int,
        *,
        grid: Grid = SIX_BY_SIX,
        noise_std: float = 0.0175,
        dtype: torch.dtype = torch.float32,
    ) -> tuple[Transitions, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        positions = torch.rand(n, 2, generator=generator, dtype=dtype)
        actions = 2 * torch.rand(n, 2, generator=generator, dtype=dtype) - 1
        mass = torch.rand(n, grid.size, generator=generator, dtype=dtype).pow(3)
        mu = mass / mass.sum(-1, keepdim=True)
        goals = motion(positions.unsqueeze(-2), mu, actions.unsqueeze(-2)).squeeze(-2)
        return Transitions.of(positions, mu, actions, TruncatedGaussian(grid, noise_std).sample(goals, generator)), goals

    return make
