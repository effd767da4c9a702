"""Safe-M3-UCRL in the benchmark: its variants differ where they say, and a killed run goes on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from baselines import algorithm
from baselines.algorithm import Budget, Task
from baselines.algorithms.safe_m3 import BASE, VARIANTS, learner
from baselines.plans import Benchmark
from baselines.run_folder import read_run
from baselines.runner import run_all
from mf_taxi_env import EntropyFloor, TaxiMDP, load_scenario
from mf_taxi_env.mdp import Field
from safe_m3_agent import Config
from safe_m3_agent.certificate import CertificateConfig
from safe_m3_agent.model.ensemble import EnsembleConfig
from safe_m3_agent.planners.bptt import BPTTConfig

QUICK = Config(
    rounds=1,
    ensemble=EnsembleConfig(members=3, hidden=(4, 4), steps=6),
    bptt=BPTTConfig(epochs=2),
    certificate=CertificateConfig(restarts=1, steps=1, attempts=1),
)


class KilledError(Exception):
    """Stands for the end of a process."""


class Rows:
    """A recorder that remembers, and ends the budget, or the process, after some rows."""

    def __init__(self, stop: int = 100, kill: int = 100) -> None:
        self.rows: list[tuple[int, int, int, float]] = []
        self.stop, self.kill = stop, kill

    def __call__(self, policy: Field, *, env_steps: int, episodes: int, violated: int) -> bool:
        if len(self.rows) == self.kill:
            raise KilledError
        field = policy.field(torch.full((25,), 0.04), 0)
        self.rows.append((env_steps, episodes, violated, float(field.detach().double().sum())))
        return len(self.rows) < self.stop


@pytest.fixture
def task(tmp_path: Path) -> Task:
    """Six episodes of three steps."""
    world = TaxiMDP(
        load_scenario("shenzhen", cells=5), horizon=3, noise_std=0.1, constraints=[EntropyFloor(0.8)], reward_timing="next"
    )
    return Task(world, 1, Budget(20, 1e9), tmp_path, torch.device("cpu"))


def test_a_run_ends_with_its_budget(task: Task) -> None:
    """Of steps, where an episode that is not whole does not count; or when the recorder says so."""
    record = Rows()
    learner(QUICK)(task, record)
    assert [row[:3] for row in record.rows] == [(3 * n, n, 0) for n in range(1, 7)]
    short = Rows(stop=2)
    learner(QUICK)(replace(task, folder=task.folder / "short"), short)
    assert short.rows == record.rows[:2]
    again = Rows()
    learner(QUICK)(task, again)  # nothing is left to do but to show what there is
    assert again.rows == record.rows[-1:]
    none = Rows()
    learner(QUICK)(replace(task, folder=task.folder / "none", budget=Budget(2, 1e9)), none)
    assert [row[:3] for row in none.rows] == [(0, 0, 0)]


def test_a_killed_run_goes_on_where_it_was(task: Task) -> None:
    """The episode whose row was lost is shown again, and the rest is what it would have been."""
    whole, first, rest = Rows(), Rows(kill=3), Rows()
    learner(QUICK)(replace(task, folder=task.folder / "whole"), whole)
    with pytest.raises(KilledError):
        learner(QUICK)(task, first)
    learner(QUICK)(task, rest)
    assert first.rows + rest.rows == whole.rows


@pytest.mark.parametrize("episodes", [1, 2])
def test_a_kill_before_the_last_record_costs_nothing(
    benchmark_of: Callable[..., Benchmark], monkeypatch: pytest.MonkeyPatch, episodes: int
) -> None:
    """The budget's last episode is in the checkpoint and not in the curve: the run is finished with it, and runs none again."""
    monkeypatch.setitem(algorithm._ALGORITHMS, "quick", algorithm.Algorithm("quick", learner(QUICK), "Quick"))
    benchmark = benchmark_of("quick", budget=Budget(12 * episodes, 1e6))
    cities = benchmark.cities()
    ((plan, whole),) = run_all(benchmark.plans(cities), cities, "cpu", workers=1, isolated=False)
    rows = read_run(plan.folder).rows
    assert whole is not None and len(rows) == episodes
    lines = (plan.folder / "curve.csv").read_text().splitlines(keepends=True)
    (plan.folder / "curve.csv").write_text("".join(lines[:-1]))
    (plan.folder / "result.json").unlink()
    ((_, again),) = run_all([plan], cities, "cpu", workers=1, isolated=False)
    assert again is not None, read_run(plan.folder).error
    assert replace(again, seconds=0.0) == replace(whole, seconds=0.0)
    assert [replace(row, seconds=0.0) for row in read_run(plan.folder).rows] == [replace(row, seconds=0.0) for row in rows]


def test_ablations_take_one_thing_away() -> None:
    """What the table says of a difference is due to one setting."""
    ablations = [name for name in VARIANTS if name.startswith("safe-m3-") and name not in ("safe-m3-ddpg",)]
    assert len(ablations) >= 6
    for name in ablations:
        config = VARIANTS[name][1]
        changed = [f.name for f in dataclasses.fields(Config) if getattr(config, f.name) != getattr(BASE, f.name)]
        assert len(changed) == 1, f"{name} differs in {changed}"


def test_published_settings_are_the_papers() -> None:
    """No certificate, weight 1, L_h = 0.1, a network without a field, representative taxis that follow the policy; the rate and
    the width of the published configuration files, and no linearisation."""
    config = VARIANTS["published"][1]
    assert not config.certified and config.constrained and config.exploration == "policy"
    assert config.barrier.initial == config.barrier.final == 1.0 and EntropyFloor(0.95).lipschitz == 0.1
    assert config.policy.kind == "network" and config.policy.hidden == (256, 256) and not config.policy.residual
    assert config.beta == 1.0 and config.bptt.learning_rate == 1e-4 and config.bptt.renewal == 0
