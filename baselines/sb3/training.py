"""An algorithm of Stable-Baselines3 as one of the benchmark's."""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import numpy as np
import stable_baselines3
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import NormalActionNoise
from torch import nn

from baselines.algorithm import Recorder, Task
from baselines.sb3 import checkpoint
from baselines.sb3.adapter import LiftedVecEnv
from baselines.sb3.lagrangian import PIDLagrangian, Priced
from baselines.sb3.policy import LiftedPolicy
from baselines.sb3.settings import ACTOR_DECAY, Settings

#: Rows of a learning curve, about.
RECORDS = 40
#: Of how many records one is followed by a checkpoint.
RECORDS_PER_CHECKPOINT = 5


def train(task: Task, record: Recorder, settings: Settings) -> LiftedPolicy:
    """Learn a task with SB3, in the true world, and return the last policy, not the best one that was seen.

    Torch works in one thread, on ``task.device``; SB3 seeds the global generators of Python, NumPy and torch with the task's.
    A run that was killed goes on from the model, the replay and the counters in ``task.folder``. It loses what came after its
    last checkpoint and the episodes that were running then, and draws other random numbers than an undisturbed run would have.
    A run that ended leaves the model without the replay.

    Args:
        task: What to learn.
        record: Called about 40 times, by steps or by seconds, whichever passes faster.
        settings: Of the algorithm.

    Raises:
        ValueError: If settings do not fit the task.
    """
    with _one_thread():
        run = _begin(task, settings)
        reporter = _Reporter(run, task, record)
        policy = reporter.policy
        if reporter.report():
            callbacks: list[BaseCallback] = [reporter, *([run.lagrangian] if run.lagrangian else [])]
            run.model.learn(
                task.budget.env_steps - run.model.num_timesteps,
                callback=callbacks,
                log_interval=sys.maxsize,  # never: the recorder is the log
                reset_num_timesteps=False,
            )
        reporter.save(replay=False)
    return policy


class _Run(NamedTuple):
    """The parts of a run."""

    model: BaseAlgorithm
    envs: LiftedVecEnv
    priced: Priced
    lagrangian: PIDLagrangian | None


def _begin(task: Task, settings: Settings) -> _Run:
    """A new run, or the one that the task's folder holds."""
    envs = LiftedVecEnv(
        task.mdp,
        settings.num_envs,
        parameterization=settings.parameterization,
        observe_time=settings.observe_time or task.mdp.changes,  # where demand or trips change, so does what is best
        reach=settings.reach,
        bootstrap=settings.bootstrap,
    )
    priced = Priced(envs, settings.penalty, settings.caution)
    lagrangian = None if settings.lagrangian is None else PIDLagrangian(priced, settings.lagrangian)
    left = checkpoint.load(task.folder)
    if left is None:
        return _Run(make_model(settings, priced, seed=task.seed, device=task.device), envs, priced, lagrangian)
    file, replay, progress = left
    model = getattr(stable_baselines3, settings.algorithm).load(file, env=priced, device=task.device)
    if replay is not None:
        model.load_replay_buffer(replay)
    model.set_random_seed(task.seed + progress.env_steps)  # with the first seed alone, the first noise would come again
    envs.episodes, envs.violated, priced.multiplier = progress.episodes, progress.violated, progress.multiplier
    if lagrangian is not None:
        lagrangian.controller.integral, lagrangian.controller.previous = progress.integral, progress.previous
    return _Run(model, envs, priced, lagrangian)


def make_model(settings: Settings, envs: Priced, *, seed: int, device: torch.device | str) -> BaseAlgorithm:
    """A model of SB3 that starts near staying put.

    Args:
        settings: Of the algorithm.
        envs: To learn in.
        seed: Of everything random; SB3 hands it to the global generators.
        device: Of the networks.
    """
    arguments: dict[str, Any] = dict(settings.model)
    decay = arguments.pop(ACTOR_DECAY, 0.0)
    activation = {"tanh": nn.Tanh, "relu": nn.ReLU}[settings.activation]
    policy: dict[str, Any] = {"net_arch": list(settings.hidden), "activation_fn": activation}
    if settings.algorithm in ("PPO", "A2C"):
        policy["log_std_init"] = math.log(settings.noise)
    elif settings.algorithm in ("DDPG", "TD3"):
        size = envs.action_space.shape or (0,)
        arguments["action_noise"] = NormalActionNoise(np.zeros(size), np.full(size, settings.noise))
    made = getattr(stable_baselines3, settings.algorithm)
    model: BaseAlgorithm = made("MlpPolicy", envs, policy_kwargs=policy, seed=seed, device=device, **arguments)
    with torch.no_grad():
        for layer in _last_layers(model):
            layer.weight.mul_(settings.last_layer)
            layer.bias.mul_(settings.last_layer)
        if settings.algorithm == "SAC":
            _last_layers(model)[1].bias.fill_(math.log(settings.noise))
    if decay:  # optimizer_kwargs would make it the critic's, too
        for group in cast(Any, model.policy).actor.optimizer.param_groups:
            group["weight_decay"] = decay
    return model


def _last_layers(model: BaseAlgorithm) -> list[nn.Linear]:
    """Output layers of the actor: of its target too, where there is one; of SAC's, those of mean and logarithmic noise."""
    policy: Any = model.policy
    if hasattr(policy, "action_net"):
        return [policy.action_net]
    if isinstance(model, stable_baselines3.SAC):
        return [policy.actor.mu, policy.actor.log_std]
    return [actor.mu[-2] for actor in (policy.actor, policy.actor_target)]  # a tanh is behind it


class _Reporter(BaseCallback):
    """Shows the policy to the recorder while it learns, saves the run, and ends it with the budget."""

    def __init__(self, run: _Run, task: Task, record: Recorder) -> None:
        super().__init__()
        self.run = run
        self.task = task
        self.record = record
        self.policy = LiftedPolicy(run.model, run.envs)
        self._records = 0
        self._next_step = 0
        self._next_time = 0.0

    def report(self) -> bool:
        """Record the policy; whether the budget is left."""
        steps, budget = self.run.model.num_timesteps, self.task.budget
        envs = self.run.envs
        left = self.record(self.policy, env_steps=steps, episodes=envs.episodes, violated=envs.violated)
        self._records += 1
        left = left and steps < budget.env_steps
        if left and self._records % RECORDS_PER_CHECKPOINT == 0:
            self.save(replay=True)
        self._next_step = steps + max(1, budget.env_steps // RECORDS)
        self._next_time = time.perf_counter() + budget.seconds / RECORDS
        return left

    def save(self, *, replay: bool) -> None:
        """Write the run as it is."""
        run = self.run
        progress = checkpoint.Progress(run.model.num_timesteps, run.envs.episodes, run.envs.violated, run.priced.multiplier)
        if run.lagrangian is not None:
            controller = run.lagrangian.controller
            progress = dataclasses.replace(progress, integral=controller.integral, previous=controller.previous)
        checkpoint.save(self.task.folder, run.model, progress, replay=replay)

    def _on_step(self) -> bool:
        steps = self.run.model.num_timesteps
        if steps < min(self._next_step, self.task.budget.env_steps) and time.perf_counter() < self._next_time:
            return True
        return self.report()


@contextmanager
def _one_thread() -> Iterator[None]:
    """Torch in one thread: networks this small are no faster in more, and runs side by side would fight for the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
