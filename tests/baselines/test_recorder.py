"""The recorder: budgets, clocks, restarts, and what it does not let pass."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from baselines import Stay
from baselines.algorithm import Budget
from baselines.curve import Curve
from baselines.judgement import Judge, judge_fleets
from baselines.recorder import CurveRecorder
from mf_taxi_env import TaxiMDP, load_scenario
from mf_taxi_env.bound import BoundExceededError
from mf_taxi_env.mdp import Move
from mf_taxi_env.scoring import kept


class Clock:
    """Tells the time that it is told."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


class Constant:
    """The same action everywhere."""

    def __init__(self, world: TaxiMDP, action: float) -> None:
        self.actions = torch.full_like(world.centers, action)

    def field(self, mu: Tensor, t: int) -> Tensor:
        return self.actions


@pytest.fixture(scope="module")
def judge() -> Judge:
    """Of a city in which staying put is safe."""
    return Judge(TaxiMDP(load_scenario("synthetic", 5), reward_timing="next"))


@pytest.fixture
def clock() -> Clock:
    """It starts at 100 s."""
    return Clock()


@pytest.fixture
def made(judge: Judge, clock: Clock, tmp_path: Path) -> Any:
    """A recorder of the run in this folder, as each start of it makes one."""

    def make(env_steps: int = 1000, seconds: float = 1000.0, resumed: bool = False) -> CurveRecorder:
        curve = Curve(tmp_path / "curve.csv")
        return CurveRecorder(judge, curve, Budget(env_steps, seconds), resumed=resumed, clock=clock)

    return make


def test_steps_use_up_the_budget(made: Any, judge: Judge) -> None:
    """The record that reaches it is the last; steps after it are refused, another look at the policy is not."""
    record, policy = made(env_steps=24), Stay(judge.world)
    assert record(policy, env_steps=0, episodes=0, violated=0)
    assert record(policy, env_steps=23, episodes=1, violated=0)
    assert not record(policy, env_steps=24, episodes=2, violated=0)
    assert not record(policy, env_steps=24, episodes=2, violated=0)
    with pytest.raises(ValueError, match="the budget was used up at env_steps=24"):
        record(policy, env_steps=36, episodes=3, violated=0)


def test_seconds_use_up_the_budget(made: Any, judge: Judge, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Learning counts, evaluation does not, however long it takes."""
    record, policy = made(seconds=10.0), Stay(judge.world)
    measured = type(judge).__call__

    def slowly(self: Judge, policy: Any) -> Any:
        clock.now += 1000.0
        return measured(self, policy)

    monkeypatch.setattr(Judge, "__call__", slowly)
    left = []
    for episode in range(1, 4):
        clock.now += 4.0
        left.append(record(policy, env_steps=12 * episode, episodes=episode, violated=0))
    assert left == [True, True, False]
    assert [row.seconds for row in record.curve.rows] == [4.0, 8.0, 12.0]
    clock.now += 3.0
    assert record.seconds == 15.0


def test_time_goes_on_after_a_kill(made: Any, judge: Judge, clock: Clock) -> None:
    """It accumulates over starts from the last row kept; rows of as many steps or more are replaced."""
    policy, record = Stay(judge.world), made()
    for episode in range(4):
        clock.now += 10.0
        record(policy, env_steps=12 * episode, episodes=episode, violated=0)
    clock.now += 99.0  # killed here: nobody knows of this time
    again = made(seconds=38.0)
    assert again.seconds == 40.0  # as long as nothing else is known
    clock.now += 5.0
    assert again(policy, env_steps=23, episodes=2, violated=1)
    rows = [(row.env_steps, row.seconds, row.violated) for row in again.curve.rows]
    assert rows == [(0, 10.0, 0), (12, 20.0, 0), (23, 25.0, 1)]
    clock.now += 13.0
    assert not again(policy, env_steps=36, episodes=3, violated=1)
    saved = made()
    clock.now += 2.0
    saved(policy, env_steps=36, episodes=3, violated=1)
    assert saved.curve.rows[-1].seconds == 38.0, "recorded once more after a kill, a policy is as old as it was"
    anew = made()
    clock.now += 1.0
    anew(policy, env_steps=0, episodes=0, violated=0)
    assert [row.seconds for row in Curve(anew.curve.path).rows] == [1.0], "a run that starts anew has no time to its account"


def test_records_of_as_many_steps_stand_side_by_side(made: Any, judge: Judge, clock: Clock) -> None:
    """A planner makes no steps and still has a curve over time."""
    record = made()
    for _ in range(3):
        clock.now += 1.0
        record(Stay(judge.world), env_steps=0, episodes=0, violated=0)
    assert [row.seconds for row in Curve(record.curve.path).rows] == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("env_steps", [0, 120])
def test_a_planner_that_goes_on_is_not_younger(made: Any, judge: Judge, clock: Clock, env_steps: int) -> None:
    """Its steps stand still, before its first one or after its last, and no kill gives it its time again."""
    record, policy = made(), Stay(judge.world)
    for _ in range(3):
        clock.now += 10.0
        record(policy, env_steps=env_steps, episodes=1, violated=0)
    again = made(seconds=32.0, resumed=True)
    clock.now += 1.0
    assert again(policy, env_steps=env_steps, episodes=1, violated=0)
    clock.now += 5.0
    assert not again(policy, env_steps=env_steps, episodes=1, violated=0)
    assert [row.seconds for row in Curve(again.curve.path).rows] == [10.0, 20.0, 30.0, 35.0]


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ((11, 1, 0), "env_steps counts all so far and cannot fall, got 11 after 12"),
        ((24, 0, 0), "episodes counts all so far and cannot fall, got 0 after 1"),
        ((24, 2, 0), "violated counts all so far and cannot fall, got 0 after 1"),
        ((24, 2, 3), "violated counts among the episodes, 2, got 3"),
        ((24.5, 2, 1), "env_steps must be an integer >= 0, got 24.5"),
        ((24, -1, 1), "episodes must be an integer >= 0, got -1"),
    ],
)
def test_counts_that_cannot_be_are_refused(made: Any, judge: Judge, counts: Any, message: str) -> None:
    """They are what the table says of an algorithm."""
    record, policy = made(), Stay(judge.world)
    record(policy, env_steps=12, episodes=1, violated=1)
    with pytest.raises(ValueError, match=message):
        record(policy, env_steps=counts[0], episodes=counts[1], violated=counts[2])
    assert len(Curve(record.curve.path).rows) == 1


def test_a_full_disk_leaves_the_rows_before(made: Any, judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a line is written over by the next one, and dropped by a reader."""
    record, policy = made(), Stay(judge.world)
    record(policy, env_steps=12, episodes=1, violated=0)
    whole = record.curve.path.read_bytes()

    def refuse(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", refuse)
        with pytest.raises(OSError, match="No space left"):
            record(policy, env_steps=24, episodes=2, violated=0)
    record.curve.path.write_bytes(whole + b"24," + b"9" * 300)
    assert len(Curve(record.curve.path).rows) == 1
    record(policy, env_steps=36, episodes=3, violated=0)
    assert record.curve.path.read_bytes().startswith(whole) and record.curve.path.read_bytes().endswith(b"\n")
    assert [row.env_steps for row in Curve(record.curve.path).rows] == [12, 36]


@pytest.mark.parametrize("what", ["bound", "return"])
def test_more_than_is_possible_fails_loudly(made: Any, judge: Judge, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """A safe policy above the certified bound is a bug of ours, and no number to be put in a table."""
    if what == "bound":
        low = dataclasses.replace(judge.bound, reward=judge.bound.reward - 20.0)
        monkeypatch.setattr("mf_taxi_env.scoring.certified_bound", lambda world: low)
    else:
        earned = TaxiMDP.reward
        monkeypatch.setattr(TaxiMDP, "reward", lambda *arguments: earned(*arguments) + 20.0)
    record = made()
    with pytest.raises(BoundExceededError, match="none can earn more than"):
        record(Stay(judge.world), env_steps=0, episodes=0, violated=0)
    assert record.curve.rows == []


@pytest.fixture
def teleport(judge: Judge, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A policy that puts the fleet wherever it is told to, step by step; others move as ever."""

    def make(steps: Tensor) -> Constant:
        move = judge.world.move

        def moved(mu: Tensor, actions: Tensor, t: int = 0) -> Move:
            there = move(mu, actions, t)
            return there._replace(mu=steps[t]) if bool((actions == 0.5).all()) else there

        monkeypatch.setattr(judge.world, "move", moved)
        return Constant(judge.world, 0.5)

    return make


def test_the_best_possible_passes(judge: Judge, teleport: Any) -> None:
    """A policy that reaches the bound itself, up to its gap and to rounding, is none that exceeds it."""
    best = torch.as_tensor(judge.bound.mu, dtype=judge.world.dtype)
    judgement, _ = judge(teleport(best + 1e-5 * (1 / 25 - best)))  # the floor is met there, up to rounding
    assert judgement.score == pytest.approx(1.0, abs=1e-3) and judgement.violations == 0


def test_a_violation_may_earn_more(judge: Judge, teleport: Any) -> None:
    """Who breaks a constraint has no score, and is not held to the bound of those who keep it."""
    judgement, mu = judge(teleport(torch.stack([judge.world.demand(t) for t in range(12)])))
    assert judgement.reward > judge.bound.upper + 1.0 and judgement.violations == 12
    assert judgement.score != judgement.score and judgement.min_margin < 0 and mu.shape == (13, 25)


def test_the_judge_and_the_score_mean_the_same_by_violated(judge: Judge, teleport: Any) -> None:
    """At the edge of the tolerance, too, where margins are kept in float32 and are not in float64, or the other way round."""
    world = judge.world
    demand = torch.stack([world.demand(t) for t in range(12)])
    inside, outside = torch.full_like(demand, 1 / 25), demand
    for _ in range(40):  # to a margin of -1e-6, in float64
        middle = (inside.double() + outside.double()) / 2
        low = bool((world.margins(middle) < -1e-6).any())
        inside, outside = (inside, middle) if low else (middle, outside)
    near = (inside + s * 1e-7 * (demand - inside) for s in range(-20, 21))
    steps = [mu.float() for mu in near]
    split = [mu for mu in steps if bool(kept(world.margins(mu)).all() != kept(world.margins(mu.double())).all())]
    assert split, "no distribution is rounded across the edge: the test shows nothing"
    for mu in (*split, steps[0], steps[-1]):
        judgement, _ = judge(teleport(mu))
        assert math.isnan(judgement.score) == (judgement.violations > 0) == (judgement.min_margin < -1e-6)


def test_a_city_without_anything_to_earn_has_no_judge() -> None:
    """Its scores would all be NaN, of policies that keep the constraints."""
    city = load_scenario("synthetic", 5)
    flat = dataclasses.replace(city, demand=np.full(25, 1 / 25), trips=np.full((25, 25), 1 / 25))
    with pytest.raises(ValueError, match="in which more can be earned than by staying put"):
        Judge(TaxiMDP(flat, reward_timing="next"))
    with pytest.raises(ValueError, match="reward_timing='next'"):  # returns would be of other distributions than the bound
        Judge(TaxiMDP(load_scenario("synthetic", 5)))


@pytest.mark.parametrize("action", [1.5, float("nan")])
def test_actions_out_of_range_fail(judge: Judge, action: float) -> None:
    """In the mean field and for a fleet: nobody drives further than the others may."""
    with pytest.raises(ValueError, match=rf"lie in \[-1, 1\], got {action} at step 0"):
        judge(Constant(judge.world, action))
    with pytest.raises(ValueError, match=r"lie in \[-1, 1\]"):
        judge_fleets(Constant(judge.world, action), judge.world, 10, 1)


class Writing:
    """Puts the fleet where it is wanted, in the tensor that it is shown."""

    def __init__(self, world: TaxiMDP) -> None:
        self.world = world

    def field(self, mu: Tensor, t: int) -> Tensor:
        mu.copy_(self.world.demand(t))
        return torch.zeros_like(self.world.centers)


def test_a_policy_moves_the_fleet_by_its_actions_alone(judge: Judge) -> None:
    """What it writes to the distribution that it is shown changes no number, in the mean field or of a fleet."""
    honest, writing = Stay(judge.world), Writing(judge.world)
    assert judge(writing)[0] == judge(honest)[0]
    assert judge_fleets(writing, judge.world, 40, 1)[0] == judge_fleets(honest, judge.world, 40, 1)[0]


def test_what_is_no_policy_is_named(judge: Judge) -> None:
    """An algorithm that forgets its return hands over None."""
    with pytest.raises(TypeError, match=r"must have a method field\(mu, t\), got None"):
        judge(None)  # type: ignore[arg-type]


def test_fleets_are_the_same_for_every_policy(judge: Judge) -> None:
    """Fleet i has the seed i; the share that violates is of fleets, and the correction forgives what few taxis lack."""
    few, first = judge_fleets(Stay(judge.world), judge.world, 40, 3)
    _, again = judge_fleets(Stay(judge.world), judge.world, 40, 3)
    assert torch.equal(first, again) and first.shape == (3, 13, 25) and not torch.equal(first[0], first[1])
    many, _ = judge_fleets(Stay(judge.world), judge.world, 20_000, 2)
    assert few["violated"] == 1.0 > few["corrected"] and many["violated"] == many["corrected"] == 0.0
    assert 0 < many["served_demand"] <= 1


def test_a_correction_that_is_not_known_calls_no_fleet_safe(judge: Judge) -> None:
    """Ten taxis on 25 cells: all violate as they are, and after a correction nobody can say."""
    few, _ = judge_fleets(Stay(judge.world), judge.world, 10, 2)
    assert few["violated"] == 1.0 and math.isnan(few["corrected"]) and math.isnan(few["corrected_margin"])
