"""Policies that learn nothing, as algorithms of the benchmark."""

from __future__ import annotations

from baselines.algorithm import Recorder, Task, register
from baselines.heuristics import Stay
from mf_taxi_env.mdp import Field


@register("stay", label="Stay")
def stay(task: Task, record: Recorder) -> Field:
    """Nobody moves."""
    policy = Stay(task.mdp)
    record(policy, env_steps=0, episodes=0, violated=0)
    return policy
