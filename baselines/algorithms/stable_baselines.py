"""Algorithms of Stable-Baselines3, one per section of ``baselines/sb3/hyperparameters.toml``."""

from __future__ import annotations

from baselines.algorithm import Recorder, Task, Train, register
from baselines.sb3.settings import Settings, read_settings
from mf_taxi_env.mdp import Field


def _algorithm(name: str, settings: Settings) -> Train:
    def train(task: Task, record: Recorder) -> Field:
        try:
            from baselines.sb3 import training
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] != "stable_baselines3":
                raise
            message = f"the algorithm {name!r} needs Stable-Baselines3: pip install 'safe-m3-taxi[baselines]'"
            raise ImportError(message) from error
        return training.train(task, record, settings)

    train.__qualname__ = train.__name__ = name
    train.__doc__ = f"{settings.algorithm} of Stable-Baselines3 with the settings of the section {name!r}."
    return train


for _name, _settings in read_settings().items():
    register(_name, label=_settings.label, settings=_settings)(_algorithm(_name, _settings))
