"""Callbacks of :meth:`SafeM3UCRL.learn`, in the manner of Stable-Baselines3: record, watch, stop."""

from __future__ import annotations

import dataclasses
import importlib
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch

from mf_taxi_env import ParticleMDP
from safe_m3_agent.config import Config
from safe_m3_agent.history import Episode, History
from safe_m3_agent.policy import Policy
from safe_m3_agent.worlds import world_facts


class Learner(Protocol):
    """What a callback sees of the agent that learns."""

    config: Config
    mdp: ParticleMDP
    seed: int
    history: History

    @property
    def policy(self) -> Policy:
        """The policy in use."""
        ...

    @property
    def planner_metrics(self) -> dict[str, float]:
        """Figures of the last plan that only its planner has."""
        ...

    @property
    def trip_metrics(self) -> dict[str, float]:
        """What is known of the trips, where they are learned."""
        ...

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write a checkpoint."""
        ...

    def check_folder(self, folder: str | os.PathLike[str]) -> None:
        """Make sure that a folder holds no other run than this agent's, and none that is further."""
        ...


def goes_on(answer: object) -> bool:
    """Whether to go on learning, by what a callback answered after an episode.

    What a comparison gives is not always Python's own ``False``, and must stop learning all the same.

    Args:
        answer: None, a truth value of Python or NumPy, or one of torch without dimensions.

    Raises:
        TypeError: If it is something else, of which it is not plain what was meant.
    """
    if answer is None:
        return True
    if isinstance(answer, bool | np.bool_) or (
        isinstance(answer, torch.Tensor) and answer.dtype is torch.bool and answer.dim() == 0
    ):
        return bool(answer)
    raise TypeError(
        f"a callback must return None, True or False after an episode, got {answer!r} of type {type(answer).__name__}"
    )


class Callback:
    """Something that happens while an agent learns. A subclass overrides what it needs.

    Attributes:
        saves: Whether it puts the episode on disk: a :class:`CallbackList` calls such callbacks before all others, so that an
            episode is safe from whatever goes wrong in those.
    """

    saves: bool = False

    def on_training_start(self, agent: Learner) -> None:
        """Before the first episode of a call of ``learn``."""

    def on_episode_start(self, agent: Learner) -> None:
        """Before each episode."""

    def on_episode_end(self, agent: Learner, episode: Episode) -> bool | None:
        """After each episode, which is then the last one of ``agent.history``.

        Returns:
            False to stop learning; True or None to go on. NumPy's and torch's truth values do as well.
        """
        return None

    def on_training_end(self, agent: Learner) -> None:
        """After the last episode; also where an error ends the training."""

    def __call__(self, agent: Learner, episode: Episode) -> bool | None:
        """What ``learn`` would do after an episode, for callbacks that are plain functions and call this one."""
        return self.on_episode_end(agent, episode)


class CallbackList(Callback):
    """Several callbacks as one: those that save first, otherwise in the order given.

    A callback that raises ends the training: those after it do not see the episode. Every callback that was started is ended,
    in reverse order. All see an episode of which one wants to stop.

    Args:
        callbacks: Callbacks, or plain functions of agent and episode.
    """

    def __init__(self, callbacks: Sequence[Callback | Callable[[Any, Episode], object]]) -> None:
        self.callbacks = sorted(map(as_callback, callbacks), key=lambda callback: not callback.saves)
        self.saves = any(callback.saves for callback in self.callbacks)
        self._ends = ExitStack()

    def on_training_start(self, agent: Learner) -> None:
        with ExitStack() as started:
            for callback in self.callbacks:
                callback.on_training_start(agent)
                started.callback(callback.on_training_end, agent)
            self._ends = started.pop_all()

    def on_episode_start(self, agent: Learner) -> None:
        for callback in self.callbacks:
            callback.on_episode_start(agent)

    def on_episode_end(self, agent: Learner, episode: Episode) -> bool:
        answers = [goes_on(callback.on_episode_end(agent, episode)) for callback in self.callbacks]
        return all(answers)

    def on_training_end(self, agent: Learner) -> None:
        self._ends.close()


class _Function(Callback):
    def __init__(self, function: Callable[[Any, Episode], object]) -> None:
        self._function = function

    def on_episode_end(self, agent: Learner, episode: Episode) -> bool:
        return goes_on(self._function(agent, episode))


def as_callback(callback: Callback | Callable[[Any, Episode], object] | Sequence[Any] | None) -> Callback:
    """One callback of whatever ``learn`` accepts.

    Args:
        callback: A callback; a function of agent and episode, which stops learning by returning False; a list or tuple of
            both; or None. What a function may return is what :meth:`Callback.on_episode_end` may.

    Raises:
        TypeError: If it is something else, or a class instead of an instance.
    """
    if isinstance(callback, Callback):
        return callback
    if callback is None:
        return Callback()
    if isinstance(callback, list | tuple):
        return CallbackList(callback)
    if not callable(callback) or (isinstance(callback, type) and issubclass(callback, Callback)):
        raise TypeError(f"callback must be a Callback, a function of agent and episode, or a list of them, got {callback!r}")
    return _Function(callback)


@contextmanager
def training(callback: Callback, agent: Learner) -> Iterator[None]:
    """The time between a callback's start and its end."""
    callback.on_training_start(agent)
    try:
        yield
    finally:
        callback.on_training_end(agent)


class StopOnScore(Callback):
    """Stop once the score has reached a threshold in some consecutive episodes.

    Args:
        threshold: Share of the possible to reach, at most 1.
        patience: Consecutive episodes, at least 1. An episode with a violation has no score and starts the count anew.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(self, threshold: float, patience: int = 1) -> None:
        if not (math.isfinite(threshold) and threshold <= 1):
            raise ValueError(f"threshold must be a number of at most 1 (the certified bound), got {threshold!r}")
        if patience < 1:
            raise ValueError(f"patience must be at least 1, got {patience!r}")
        self.threshold = threshold
        self.patience = patience
        self._reached = 0

    def on_training_start(self, agent: Learner) -> None:
        self._reached = 0

    def on_episode_end(self, agent: Learner, episode: Episode) -> bool:
        self._reached = self._reached + 1 if episode.score >= self.threshold else 0  # NaN reaches nothing
        return self._reached < self.patience


class StopAfterSeconds(Callback):
    """Stop with the first episode that ends later than some time after the start of the training.

    Args:
        seconds: Time by the wall clock, positive.

    Raises:
        ValueError: If it is not.
    """

    def __init__(self, seconds: float) -> None:
        if not seconds > 0:
            raise ValueError(f"seconds must be positive, got {seconds!r}")
        self.seconds = seconds
        self._start = time.monotonic()

    def on_training_start(self, agent: Learner) -> None:
        self._start = time.monotonic()

    def on_episode_end(self, agent: Learner, episode: Episode) -> bool:
        return time.monotonic() - self._start < self.seconds


class WandbCallback(Callback):
    """Log every finite number of every episode to Weights & Biases, with the settings of the run. Needs the extra ``wandb``.

    Args:
        project: Project of the run.
        name: Name of the run; default one that the service makes up.
        run_id: Identifier of the run; given again, a resumed run goes on under it.
        mode: ``"offline"`` writes to the local folder ``wandb/`` only; ``"online"`` sends; ``"disabled"`` does nothing.

    Raises:
        ImportError: If wandb is not installed.
    """

    def __init__(
        self,
        project: str = "safe-m3-taxi",
        name: str | None = None,
        run_id: str | None = None,
        mode: Literal["online", "offline", "disabled"] = "offline",
    ) -> None:
        try:
            self._wandb: Any = importlib.import_module("wandb")
        except ImportError as error:
            raise ImportError("WandbCallback needs wandb: pip install 'safe-m3-taxi[wandb]'") from error
        self._options: dict[str, Any] = {"project": project, "name": name, "mode": mode}
        if run_id is not None:
            self._options |= {"id": run_id, "resume": "allow"}
        self._run: Any = None

    def on_training_start(self, agent: Learner) -> None:
        config = {**dataclasses.asdict(agent.config), "seed": agent.seed, "world": world_facts(agent.mdp)}
        self._run = self._wandb.init(config=config, **self._options)

    def on_episode_end(self, agent: Learner, episode: Episode) -> None:
        self._run.log(finite_numbers(episode), step=episode.episode)

    def on_training_end(self, agent: Learner) -> None:
        self._run.finish()
        self._run = None


def finite_numbers(episode: Episode) -> dict[str, float]:
    """The episode's columns by name, less its number and those that are no finite number."""
    values = {name: float(value) for name, value in dataclasses.asdict(episode).items() if name != "episode"}
    return {name: value for name, value in values.items() if math.isfinite(value)}
