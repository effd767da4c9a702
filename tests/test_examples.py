"""The examples run as they stand; ``examples/clients.py`` needs libraries that are seldom all there, and is run by hand."""

from __future__ import annotations

import importlib.util
import math
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def shared_policy() -> ModuleType:
    """``examples/shared_policy.py`` as a module."""
    for needed in ("stable_baselines3", "pettingzoo", "tyro"):
        pytest.importorskip(needed)
    spec = importlib.util.spec_from_file_location("shared_policy", ROOT / "examples" / "shared_policy.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_one_policy_for_all_taxis_learns(
    shared_policy: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two updates for a few taxis, by eight epochs each, and what three policies earn."""
    made = []

    def make(*arguments: Any, **named: Any) -> Any:
        made.append(PPO(*arguments, **named))
        return made[-1]

    PPO = shared_policy.PPO
    monkeypatch.setattr(shared_policy, "PPO", make)
    shared_policy.main(taxis=18, cells=3, episodes=8, per_update=4, judged=3)
    told = capsys.readouterr().out
    assert told.startswith("8 episodes of 18 taxis in ") and "mean return of 3 others" in told
    returns = [float(value) for value in re.findall(r"^  \D+ (-[\d.]+)$", told, re.MULTILINE)]
    assert len(returns) == 3 and all(map(math.isfinite, returns))
    (model,) = made
    assert model.num_timesteps == 8 * 12 * 18 and model._n_updates == 2 * 8


def test_a_fleet_is_a_batch_of_envs(shared_policy: ModuleType) -> None:
    """A taxi each: one reward for all, and at the end of an episode the last observation beside the first of the next."""
    fleet = shared_policy.fleet_parallel_env(18, cells=3, horizon=2)
    env = shared_policy.SharedPolicyEnv(fleet, seed=0)
    first = env.reset()
    assert env.num_envs == 18 and first["position"].shape == (18, 2) and first["mu"].shape == (18, 9)
    env.step(np.zeros((18, 2), np.float32))
    seen, rewards, dones, infos = env.step(np.zeros((18, 2), np.float32))
    assert dones.all() and len(set(rewards.tolist())) == 1 and len(env.returns) == 1
    assert all(info["TimeLimit.truncated"] for info in infos)
    assert not np.array_equal(infos[7]["terminal_observation"]["position"], seen["position"][7])
