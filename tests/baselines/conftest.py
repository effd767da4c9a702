"""Small benchmarks that the tests share, and algorithms that are scripts, as a third party's are."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from baselines import algorithm
from baselines.algorithm import Budget
from baselines.cli import main
from baselines.plans import Benchmark
from baselines.runner import run_all

#: Learns nothing, but looks like it: it drifts towards the centre, records every episode, and saves how far it is. At the
#: episode named in the file ``plan`` beside the script something happens to it, once.
DRIFT = """
import os, signal, time
from pathlib import Path
import torch
from baselines.algorithm import register

PLAN = Path(__file__).with_name("plan")

class Drift:
    def __init__(self, mdp, pace):
        self.actions = pace * (0.5 - mdp.centers)
    def field(self, mu, t):
        return self.actions

@register("drift", label="Drift")
def drift(task, record):
    saved = task.folder / "episode"
    done = int(saved.read_text()) if saved.exists() else 0
    generator = torch.Generator().manual_seed(task.seed)
    paces = torch.rand(1000, generator=generator).cumsum(0) / 30
    left = True
    while left:
        policy = Drift(task.mdp, float(paces[done]))
        done += 1
        left = record(policy, env_steps=12 * done, episodes=done, violated=done // 3)
        temporary = task.folder / "next"
        temporary.write_text(str(done))
        temporary.replace(saved)
        happens(task, done)
    return policy

def happens(task, done):
    plan = PLAN.read_text().split() if PLAN.exists() else []
    if plan[:2] != [str(task.seed), str(done)]:
        return
    PLAN.unlink()
    if plan[2] == "crash":
        raise ArithmeticError("as planned")
    if plan[2] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    PLAN.with_name("waiting").touch()
    time.sleep(60)  # until it is killed from outside
"""


@pytest.fixture(autouse=True)
def no_traces(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is forgotten after it."""
    algorithm.algorithms()
    monkeypatch.setattr(algorithm, "_ALGORITHMS", dict(algorithm._ALGORITHMS))


@pytest.fixture
def drift(tmp_path: Path) -> Path:
    """The script."""
    path = tmp_path / "drift.py"
    path.write_text(DRIFT)
    return path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., SimpleNamespace]:
    """``python -m baselines`` in this process, its runs as well, which saves imports: exit status and what it printed."""
    monkeypatch.setattr("baselines.cli.run_all", partial(run_all, isolated=False))

    def call(*arguments: object) -> SimpleNamespace:
        status = 0
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else 1
        printed = capsys.readouterr()
        return SimpleNamespace(status=status, out=printed.out, err=printed.err)

    return call


#: A city of 5 x 5 cells in which staying put is safe, six episodes, no fleets, one worker.
QUICK = (
    "--scenarios", "synthetic", "--cells", 5, "--env-steps", 72, "--seconds", 60, "--seeds", 1, "--taxis", 0, "--workers", 1,
)  # fmt: skip


@pytest.fixture
def quick() -> tuple[object, ...]:
    """Options of ``run``; later ones overrule them."""
    return QUICK


@pytest.fixture
def benchmark_of(tmp_path: Path) -> Callable[..., Benchmark]:
    """The same from Python."""

    def make(*algorithms: str, **changes: object) -> Benchmark:
        settings = {
            "scenarios": ["synthetic"], "seeds": [0], "cells": 5, "budget": Budget(72, 60.0), "out": tmp_path / "out",
            "taxis": 0, "fleet_runs": 0, "device": "cpu",
        }  # fmt: skip
        return Benchmark(algorithms=algorithms, **{**settings, **changes})  # type: ignore[arg-type]

    return make
