"""Algorithms of SB3 as the benchmark runs them: they run, learn, keep to the budget, and go on after a kill."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

pytest.importorskip("stable_baselines3")
from baselines import Stay
from baselines.algorithm import Budget, Task, algorithms
from baselines.sb3 import checkpoint, training
from baselines.sb3.adapter import LiftedVecEnv
from baselines.sb3.lagrangian import Priced
from baselines.sb3.settings import Settings, read_settings
from mf_taxi_env import EntropyFloor, TaxiMDP, load_scenario
from mf_taxi_env.mdp import Field

SECTIONS = read_settings()


def task(folder: Path, env_steps: int, *, cells: int = 5, seed: int = 0, seconds: float = 600.0) -> Task:
    """A small city; with noise as wide as its cells are, or small moves would change nothing."""
    scenario = load_scenario("shenzhen", cells=cells)
    world = TaxiMDP(scenario, constraints=[EntropyFloor(0.9)], reward_timing="next", noise_std=0.08)
    return Task(world, seed, Budget(env_steps, seconds), folder, torch.device("cpu"))


@dataclasses.dataclass
class Curve:
    """A recorder: what was shown, and the return of the policy then."""

    task: Task
    stop_at: float = math.inf
    rows: list[tuple[int, int, int, float]] = dataclasses.field(default_factory=list)

    def __call__(self, policy: Field, *, env_steps: int, episodes: int, violated: int) -> bool:
        self.rows.append((env_steps, episodes, violated, float(self.task.mdp.rollout(policy).returns)))
        return env_steps < self.stop_at

    @property
    def returns(self) -> list[float]:
        return [row[3] for row in self.rows]


def small(name: str, **changes: Any) -> Settings:
    """The settings of an algorithm for a machine in a hurry: small batches and buffers."""
    settings = SECTIONS[name]
    model = dict(settings.model)
    model |= {key: value for key, value in {"batch_size": 24, "buffer_size": 480, "n_epochs": 2}.items() if key in model}
    model |= changes.pop("model", {})
    return dataclasses.replace(settings, num_envs=4, hidden=(16,), model=model, **changes)


@pytest.mark.parametrize("name", SECTIONS)
def test_every_algorithm_runs(name: str, tmp_path: Path) -> None:
    """As registered: it starts near staying put, records about every fortieth of the budget, and returns the last policy."""
    job = task(tmp_path, 40 * SECTIONS[name].num_envs)
    curve = Curve(job)
    policy = algorithms()[name].train(job, curve)
    steps = [row[0] for row in curve.rows]
    assert steps[0] == 0 and steps[-1] >= 40 * SECTIONS[name].num_envs and 38 <= len(steps) <= 42
    still = float(job.mdp.rollout(Stay(job.mdp)).returns)
    assert curve.returns[0] == pytest.approx(still, abs=0.05)
    assert float(job.mdp.rollout(policy).returns) == curve.returns[-1] != curve.returns[0]
    episodes, violated = curve.rows[-1][1:3]
    assert episodes == 3 * SECTIONS[name].num_envs and 0 <= violated <= episodes


def test_ppo_learns(tmp_path: Path) -> None:
    """From staying put upwards, in seconds: by three tenths of the sum of KL that staying put has."""
    job = task(tmp_path, 24_000)
    curve = Curve(job)
    settings = dataclasses.replace(SECTIONS["sb3-ppo"], parameterization="bilinear:3")
    training.train(job, curve, settings)
    start, end = curve.returns[0], curve.returns[-1]
    print(f"PPO: {start:.2f} to {end:.2f}")
    assert start == pytest.approx(float(job.mdp.rollout(Stay(job.mdp)).returns), abs=0.05)
    assert end > 0.7 * start


def test_the_time_is_seen_where_demand_changes(tmp_path: Path) -> None:
    """Else one answer would have to do for all steps; where nothing changes the settings decide."""
    for changing in (False, True):
        job = task(tmp_path, 48)
        demand = np.asarray(job.mdp.scenario.demand)
        if changing:
            city = dataclasses.replace(job.mdp.scenario, demand=np.stack([demand, demand[::-1]]))
            job = dataclasses.replace(job, mdp=TaxiMDP(city, constraints=[EntropyFloor(0.9)], reward_timing="next"))
        job = dataclasses.replace(job, folder=tmp_path / str(changing))
        job.folder.mkdir()
        policy = training.train(job, Curve(job), small("sb3-ppo"))
        early, late = (policy.field(job.mdp.initial(), t) for t in (0, 11))
        assert torch.equal(early, late) != changing


@pytest.mark.parametrize("name", ["sb3-ppo-lagrangian", "sb3-sac"])
def test_same_seed_same_run(name: str, tmp_path: Path) -> None:
    """Two runs are exactly equal, and another seed is another run."""
    curves = []
    for i, seed in enumerate((3, 3, 4)):
        folder = tmp_path / str(i)
        folder.mkdir()
        job = task(folder, 240, seed=seed)
        curves.append(Curve(job))
        training.train(job, curves[-1], small(name))
    assert curves[0].rows == curves[1].rows != curves[2].rows


def test_ends_with_the_recorder_and_with_the_budget(tmp_path: Path) -> None:
    """The recorder's word ends a run at once; so do the budget's steps, whatever the recorder says."""
    stopped = Curve(task(tmp_path, 480), stop_at=100)
    training.train(stopped.task, stopped, small("sb3-td3"))
    assert 100 <= stopped.rows[-1][0] <= 100 + 480 // 40 + 4
    refused = Curve(task(tmp_path / "new", 480), stop_at=0)
    refused.task.folder.mkdir()
    training.train(refused.task, refused, small("sb3-td3"))
    assert len(refused.rows) == 1
    ended = Curve(task(tmp_path / "all", 96))
    ended.task.folder.mkdir()
    training.train(ended.task, ended, small("sb3-td3"))
    assert ended.rows[-1][0] == 96


def test_records_by_seconds_where_they_pass_faster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A budget of very many steps and few seconds still has a curve: a record per fortieth of the time."""
    ticks = itertools.count()  # a second per look at the clock
    monkeypatch.setattr(training, "time", SimpleNamespace(perf_counter=lambda: float(next(ticks))))
    job = task(tmp_path, 10**9, seconds=80.0)
    curve = Curve(job, stop_at=40)
    training.train(job, curve, small("sb3-ppo"))
    steps = [row[0] for row in curve.rows]
    assert steps[0] == 0 and steps[-1] == 40 and set(np.diff(steps)) <= {4, 8, 12}


def test_one_thread_while_it_learns(tmp_path: Path) -> None:
    """And as many as before after it."""
    job, seen = task(tmp_path, 24), []

    def record(policy: Field, **counted: int) -> bool:
        seen.append(torch.get_num_threads())
        return True

    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        training.train(job, record, small("sb3-ppo"))
        assert set(seen) == {1} and torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


class KilledError(Exception):
    """Stands for a kill."""


def killed_at(curve: Curve, steps: int) -> Callable[..., bool]:
    """A recorder whose process dies."""

    def record(policy: Field, **counted: int) -> bool:
        if counted["env_steps"] >= steps:
            raise KilledError
        return curve(policy, **counted)

    return record


@pytest.mark.parametrize("name", ["sb3-ppo-lagrangian", "sb3-td3", "sb3-sac-lagrangian"])
def test_goes_on_after_a_kill(name: str, tmp_path: Path) -> None:
    """From the last checkpoint: its weights, counters, replay and price; and the folder holds no more than is needed."""
    settings = small(name)
    before, after = Curve(task(tmp_path, 480)), Curve(task(tmp_path, 480))
    with pytest.raises(KilledError):
        training.train(before.task, killed_at(before, 300), settings)
    left = checkpoint.load(tmp_path)
    assert left is not None
    saved = left[2]
    assert 200 <= saved.env_steps < 300
    assert (left[1] is None) == (settings.algorithm == "PPO")
    replay = {}

    class Watched(training.LiftedPolicy):
        def __init__(self, model: Any, envs: LiftedVecEnv) -> None:
            replay["size"] = model.replay_buffer.size() if hasattr(model, "replay_buffer") else None
            super().__init__(model, envs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "LiftedPolicy", Watched)
        training.train(after.task, after, settings)
    row = next(row for row in before.rows if row[0] == saved.env_steps)
    assert after.rows[0] == row == (saved.env_steps, saved.episodes, saved.violated, row[3])
    assert replay["size"] == (None if settings.algorithm == "PPO" else (saved.env_steps - 4) // 4)
    assert after.rows[-1][0] == 480 and after.rows[-1][1] <= 40
    assert {path.name for path in tmp_path.iterdir()} == {"progress.json", "model-480.zip"}


def test_a_run_that_ended_gives_its_policy_again(tmp_path: Path) -> None:
    """Without another step."""
    first, again = Curve(task(tmp_path, 240)), Curve(task(tmp_path, 240))
    training.train(first.task, first, small("sb3-sac"))
    training.train(again.task, again, small("sb3-sac"))
    assert again.rows == first.rows[-1:]


def test_the_controller_goes_on_after_a_kill(tmp_path: Path) -> None:
    """Price, integral and last cost are what they were."""
    settings = small("sb3-ppo-lagrangian", noise=1.0, reach=1.0)
    job = task(tmp_path, 480)
    with pytest.raises(KilledError):
        training.train(job, killed_at(Curve(job), 300), settings)
    left = checkpoint.load(tmp_path)
    assert left is not None and left[2].integral > settings.penalty and left[2].previous is not None
    run = training._begin(job, settings)
    assert run.lagrangian is not None
    controller = run.lagrangian.controller
    assert (run.priced.multiplier, controller.integral, controller.previous) == (
        left[2].multiplier, left[2].integral, left[2].previous,
    )  # fmt: skip


def test_half_a_checkpoint_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill between the files leaves the set of before."""
    settings = small("sb3-td3")
    job = task(tmp_path, 480)
    envs = Priced(LiftedVecEnv(job.mdp, 4, parameterization="bilinear:8"), 1.0)
    model = training.make_model(settings, envs, seed=0, device="cpu")
    progress = checkpoint.Progress(env_steps=4, episodes=0, violated=0, multiplier=1.0)
    checkpoint.save(tmp_path, model, progress, replay=True)

    def die(*_: object) -> None:
        raise KilledError

    monkeypatch.setattr(type(model), "save_replay_buffer", die)
    with pytest.raises(KilledError):
        checkpoint.save(tmp_path, model, dataclasses.replace(progress, env_steps=8), replay=True)
    left = checkpoint.load(tmp_path)
    assert left is not None and left[2] == progress
    assert left[0].is_file() and left[1] is not None and left[1].is_file()


@pytest.mark.parametrize("name", ["sb3-ddpg", "sb3-td3"])
def test_decay_is_the_actors_alone(name: str, tmp_path: Path) -> None:
    """Critics are to follow their targets freely; and a run that goes on after a kill keeps its decay."""
    job, settings = task(tmp_path, 240), small(name, model={"actor_decay": 0.25})
    with pytest.raises(KilledError):
        training.train(job, killed_at(Curve(job), 200), settings)
    envs = Priced(LiftedVecEnv(job.mdp, 4, parameterization=settings.parameterization), 1.0)
    new, left = training.make_model(settings, envs, seed=0, device="cpu"), training._begin(job, settings).model
    assert left.num_timesteps > 0
    for policy in (cast(Any, new.policy), cast(Any, left.policy)):
        decays = [[group["weight_decay"] for group in one.optimizer.param_groups] for one in (policy.actor, policy.critic)]
        assert decays == [[0.25], [0.0]]


@pytest.mark.parametrize("name", ["sb3-a2c", "sb3-ddpg", "sb3-sac-cells"])
def test_starts_near_staying_put_with_the_stated_noise(name: str, tmp_path: Path) -> None:
    """Deterministic actions are almost zero, and exploring ones have the standard deviation of the settings."""
    settings = SECTIONS[name]
    envs = Priced(LiftedVecEnv(task(tmp_path, 1).mdp, 64, parameterization=settings.parameterization), 1.0)
    model = training.make_model(dataclasses.replace(settings, noise=0.07), envs, seed=0, device="cpu")
    model._last_obs = seen = envs.reset()
    assert np.abs(model.predict(seen, deterministic=True)[0]).mean() < 0.02
    if name == "sb3-ddpg":
        assert model.action_noise is not None
        drawn = np.stack([model.action_noise() for _ in range(64)])
    else:
        drawn = model.predict(seen, deterministic=False)[0]
    assert drawn.std() == pytest.approx(0.07, rel=0.15)
