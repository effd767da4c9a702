"""Callbacks: called in order, able to stop, and never the reason why an episode is lost."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mf_taxi_env import TaxiMDP
from safe_m3_agent import (
    Callback,
    CallbackList,
    Config,
    Episode,
    SafeM3UCRL,
    StopAfterSeconds,
    StopOnScore,
    WandbCallback,
)
from safe_m3_agent.callbacks import Learner, as_callback, goes_on
from safe_m3_agent.run import RunFolder

EPISODE = Episode(0, math.nan, -5.25, 0.4, 0, 0.0, False, math.nan, 0.43, 3.5, 0.9, 1.0, 0.3, 1.5)


class Diary(Callback):
    """Writes down when it is called."""

    def __init__(self, name: str, pages: list[str]) -> None:
        self.name, self.pages = name, pages

    def on_training_start(self, agent: Learner) -> None:
        self.pages.append(f"{self.name} starts")

    def on_episode_start(self, agent: Learner) -> None:
        self.pages.append(f"{self.name} before {len(agent.history)}")

    def on_episode_end(self, agent: Learner, episode: Episode) -> None:
        assert agent.history[-1] is episode
        self.pages.append(f"{self.name} after {episode.episode}")

    def on_training_end(self, agent: Learner) -> None:
        self.pages.append(f"{self.name} ends")


class Saver(Diary):
    """One that puts episodes on disk."""

    saves = True


class Faulty(Callback):
    """Raises after an episode."""

    def on_episode_end(self, agent: Learner, episode: Episode) -> None:
        raise RuntimeError("a bug of the user's")


@pytest.fixture
def agent(world: TaxiMDP, tiny: Config) -> SafeM3UCRL:
    """An agent that learns an episode in a fraction of a second."""
    return SafeM3UCRL(world, tiny)


def test_callbacks_are_called_in_order(agent: SafeM3UCRL) -> None:
    """Start, before and after each episode, end; in a list those that save come first, and ends are in reverse."""
    pages: list[str] = []
    agent.learn(2, callback=[Diary("a", pages), Saver("s", pages)])
    assert pages == [
        *("s starts", "a starts"),
        *("s before 0", "a before 0", "s after 0", "a after 0"),
        *("s before 1", "a before 1", "s after 1", "a after 1"),
        *("a ends", "s ends"),
    ]


def test_lists_of_lists_save_first(agent: SafeM3UCRL) -> None:
    """A list that holds a saving callback counts as one itself."""
    pages: list[str] = []
    agent.learn(1, callback=[Diary("a", pages), CallbackList([Diary("b", pages), Saver("s", pages)])])
    assert [page for page in pages if "after" in page] == ["s after 0", "b after 0", "a after 0"]


def test_functions_are_callbacks(agent: SafeM3UCRL) -> None:
    """A plain function is called after each episode; False stops, True and None go on."""
    seen: list[int] = []
    agent.learn(2, callback=lambda learner, episode: seen.append(episode.episode))
    assert seen == [0, 1]
    assert len(agent.learn(5, callback=lambda learner, episode: episode.episode < 3)) == 4


def test_stopping_is_asked_for_after_all_have_seen_the_episode(agent: SafeM3UCRL) -> None:
    """One callback that stops does not hide the episode from those behind it, and the ends are told."""
    pages: list[str] = []
    agent.learn(5, callback=[lambda learner, episode: False, Diary("a", pages)])
    assert pages == ["a starts", "a before 0", "a after 0", "a ends"]
    assert len(agent.history) == 1


class Numbers(Callback):
    """Answers with what a comparison of numbers gives."""

    def on_episode_end(self, agent: Learner, episode: Episode) -> Any:
        return np.mean(agent.history.column("score")) > math.inf


def test_what_a_comparison_gives_stops_as_false_does(agent: SafeM3UCRL) -> None:
    """NumPy's and torch's False stop too: from a function, from a callback, from a list of either."""
    stops: list[Any] = [
        *(lambda learner, episode, no=no: no for no in (False, np.False_, torch.tensor(False))),
        *(Numbers(), [Callback(), Numbers()]),
    ]
    for number, stop in enumerate(stops, start=1):
        assert len(agent.learn(3, callback=stop)) == number
    for yes in (None, True, np.True_, torch.tensor(True)):
        assert goes_on(yes) is True


@pytest.mark.parametrize("answer", [0, 1.0, "no", Path("run"), torch.tensor(0), torch.tensor([False]), np.array([False])])
def test_answers_that_are_no_truth_values_are_refused(agent: SafeM3UCRL, answer: Any) -> None:
    """The message says what came back; the episode has happened all the same."""
    refused = rf"must return None, True or False after an episode, got .*{type(answer).__name__}"
    with pytest.raises(TypeError, match=refused):
        agent.learn(2, callback=[lambda learner, episode: answer])
    assert len(agent.history) == 1


def test_learning_with_callbacks_changes_no_bit(world: TaxiMDP, tiny: Config) -> None:
    """Looking on is free: the history is that of an agent left alone, stopped and continued or not."""
    alone, watched = SafeM3UCRL(world, tiny, seed=2), SafeM3UCRL(world, tiny, seed=2)
    watched.learn(4, callback=[Diary("a", []), lambda learner, episode: episode.episode < 1])
    assert len(watched.history) == 2
    assert watched.learn(2, callback=Callback()) == alone.learn(4)


def test_an_error_ends_the_training_for_all(agent: SafeM3UCRL) -> None:
    """What was started is ended, although a callback fails; nothing is started behind one that cannot start."""
    pages: list[str] = []
    with pytest.raises(RuntimeError, match="a bug"):
        agent.learn(3, callback=[Diary("a", pages), Faulty(), Diary("b", pages)])
    assert pages == ["a starts", "b starts", "a before 0", "b before 0", "a after 0", "b ends", "a ends"]
    pages.clear()

    class Stillborn(Callback):
        def on_training_start(self, agent: Learner) -> None:
            raise OSError("no connection")

    with pytest.raises(OSError, match="no connection"):
        agent.learn(3, callback=[Diary("a", pages), Stillborn(), Diary("b", pages)])
    assert pages == ["a starts", "a ends"] and len(agent.history) == 1


def test_a_faulty_callback_loses_no_episode(agent: SafeM3UCRL, tmp_path: Path) -> None:
    """Whatever the order they are given in, the run's folder holds the episode before another callback can fail."""
    with RunFolder(tmp_path) as run, pytest.raises(RuntimeError, match="a bug"):
        agent.learn(3, callback=[Faulty(), run])
    assert SafeM3UCRL.load(tmp_path).history == agent.history
    assert len(agent.history) == 1


@pytest.mark.parametrize("callback", [3, "print", Callback, [Callback(), 3]])
def test_what_is_no_callback_is_refused(callback: Any) -> None:
    """A class instead of an instance is the usual slip."""
    with pytest.raises(TypeError, match="callback must be"):
        as_callback(callback)


def test_stop_on_score(agent: SafeM3UCRL) -> None:
    """Stops after as many consecutive good episodes as asked for; one without a score starts the count anew."""
    stop = StopOnScore(0.5, patience=2)
    scores = [0.6, math.nan, 0.5, 0.4, 0.7, 0.9]
    answers = [stop.on_episode_end(agent, replace(EPISODE, score=score)) for score in scores]
    assert answers == [True] * 5 + [False]
    stop.on_training_start(agent)
    assert stop.on_episode_end(agent, replace(EPISODE, score=0.9)) is True
    assert len(agent.learn(5, callback=StopOnScore(-10.0, patience=2))) == 2


def test_stop_after_seconds(agent: SafeM3UCRL, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first episode that ends too late is the last one; time counts from the start of the training."""
    now = iter([0.0, 100.0, 101.0, 104.9, 105.0])
    monkeypatch.setattr("safe_m3_agent.callbacks.time.monotonic", lambda: next(now))
    stop = StopAfterSeconds(5.0)
    stop.on_training_start(agent)
    assert [stop.on_episode_end(agent, EPISODE) for _ in range(3)] == [True, True, False]


def test_arguments_out_of_range_are_refused() -> None:
    """The message names the argument, its value and what is allowed."""
    for threshold in (1.5, math.nan, -math.inf):
        with pytest.raises(ValueError, match=r"threshold must be a number of at most 1 .* got"):
            StopOnScore(threshold)
    with pytest.raises(ValueError, match="patience must be at least 1, got 0"):
        StopOnScore(0.5, patience=0)
    for seconds in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="seconds must be positive"):
            StopAfterSeconds(seconds)


class FakeWandb:
    """What the callback needs of wandb, writing into lists."""

    def __init__(self) -> None:
        self.options: list[dict[str, Any]] = []
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.finished = 0

    def init(self, **options: Any) -> SimpleNamespace:
        self.options.append(options)
        return SimpleNamespace(log=self._log, finish=self._finish)

    def _log(self, numbers: dict[str, float], step: int) -> None:
        self.logged.append((step, numbers))

    def _finish(self) -> None:
        self.finished += 1


def test_wandb_gets_every_finite_number(agent: SafeM3UCRL, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings at the start, each episode's numbers at its step without NaN, and an end; under one id when resumed."""
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    callback = WandbCallback("fleet", name="one", run_id="abc")
    history = agent.learn(2, callback=callback)
    agent.learn(1, callback=callback)
    assert fake.finished == 2 and [step for step, _ in fake.logged] == [0, 1, 2]
    first = fake.logged[0][1]
    assert first["reward"] == history[0].reward and "objective" not in first and "episode" not in first
    assert fake.logged[1][1]["objective"] == history[1].objective
    options = fake.options[0]
    assert options["project"] == "fleet" and options["name"] == "one" and options["mode"] == "offline"
    assert options["id"] == "abc" and options["resume"] == "allow"
    assert options["config"]["seed"] == 0 and options["config"]["bptt"]["epochs"] == agent.config.bptt.epochs
    assert options["config"]["world"]["cells"] == 5


def test_a_missing_wandb_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says what to install, and comes before anything is learned."""
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match=r"safe-m3-taxi\[wandb\]"):
        WandbCallback()
