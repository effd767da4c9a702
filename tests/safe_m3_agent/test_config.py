"""All settings: validated where they enter, and the same after a trip through a run file."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest

from safe_m3_agent import Config
from safe_m3_agent.barrier import BarrierConfig
from safe_m3_agent.certificate import CertificateConfig
from safe_m3_agent.checkpoint import from_dict
from safe_m3_agent.model.ensemble import EnsembleConfig
from safe_m3_agent.model.gaussian_process import GPConfig
from safe_m3_agent.model.trip_model import TripConfig
from safe_m3_agent.planners.bptt import BPTTConfig
from safe_m3_agent.planners.ddpg_config import DDPGConfig
from safe_m3_agent.policy import PolicyConfig
from safe_m3_agent.tightening import LipschitzConfig

CHANGED = Config(
    planner="ddpg",
    model="known",
    learn_trips=True,
    constrained=False,
    certified=False,
    fleet=10_000,
    optimistic=False,
    beta=1.5,
    calibrate=False,
    delta=0.05,
    representative_agents=7,
    exploration="policy",
    exploration_candidates=3,
    adversaries=0,
    rounds=2,
    growth=0.5,
    anew=0.0,
    tightening="lemma2",
    lipschitz=LipschitzConfig(motion=0.5, doubt=0.0),
    policy=PolicyConfig("network", per_step=True, hidden=(8, 4, 2)),
    ensemble=EnsembleConfig(members=3, hidden=(5, 6), learn_noise=True, residual_scale=1 / 3),
    gp=GPConfig(kind="exact", lengthscale=1 / 7),
    trips=TripConfig(members=4, decay_scale=0.1),
    bptt=BPTTConfig(epochs=9, learning_rate=0.1 + 0.2),
    ddpg=DDPGConfig(critic="grid", noise="none", replay=False, tau=1.0),
    barrier=BarrierConfig(initial=1.0),
    certificate=CertificateConfig(restarts=9),
)


@pytest.mark.parametrize("config", [Config(), CHANGED])
def test_round_trip_through_json(config: Config) -> None:
    """A run file gives back exactly these settings: nested ones, tuples and all digits."""
    again = from_dict(Config, json.loads(json.dumps(dataclasses.asdict(config))))
    assert again == config
    assert isinstance(again.policy.hidden, tuple) and isinstance(again.ensemble, EnsembleConfig)


def test_the_example_changes_every_kind_of_setting() -> None:
    """The round trip above is not of defaults alone."""
    same = [f.name for f in dataclasses.fields(Config) if getattr(CHANGED, f.name) == getattr(Config(), f.name)]
    assert not same


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"planner": "mpc"}, r"planner must be one of .*'bptt'.*got 'mpc'"),
        ({"model": "oracle"}, r"model must be one of .*'known'.*got 'oracle'"),
        ({"exploration": "none"}, r"exploration must be one of .*'free'.*got 'none'"),
        ({"beta": -1.0}, "beta must be a finite number >= 0, got -1.0"),
        ({"beta": math.inf}, "beta must be a finite number >= 0, got inf"),
        ({"beta": math.nan}, "beta must be a finite number >= 0, got nan"),
        ({"delta": 0.0}, r"delta must lie in \(0, 1\), got 0.0"),
        ({"delta": math.nan}, r"delta must lie in \(0, 1\), got nan"),
        ({"tightening": "none"}, r"tightening must be one of .*'lemma2'.*got 'none'"),
        ({"representative_agents": 0}, "representative_agents must be an integer >= 1, got 0"),
        ({"exploration_candidates": 0}, "exploration_candidates must be an integer >= 1, got 0"),
        ({"anew": 1.0}, "anew must be a finite number > 1, or 0 for never, got 1.0"),
        ({"anew": math.inf}, "anew must be a finite number > 1, or 0 for never, got inf"),
        ({"adversaries": -1}, "adversaries must be an integer >= 0, got -1"),
        ({"fleet": -1}, "fleet must be an integer >= 0, got -1"),
        ({"fleet": 0.5}, "fleet must be an integer >= 0, got 0.5"),
        ({"rounds": 1.5}, "rounds must be an integer >= 1, got 1.5"),
        ({"representative_agents": 2.5}, "representative_agents must be an integer >= 1, got 2.5"),
        ({"adversaries": True}, "adversaries must be an integer >= 0, got True"),
        ({"growth": math.nan}, "growth must be a finite number >= 0, got nan"),
        ({"growth": math.inf}, "growth must be a finite number >= 0, got inf"),
    ],
)
def test_settings_are_validated(options: dict[str, object], message: str) -> None:
    """The message names the setting, what was given and what is allowed."""
    with pytest.raises(ValueError, match=message):
        Config(**options)  # type: ignore[arg-type]


def test_nested_settings_are_validated_when_read() -> None:
    """A run file with a value out of range is refused as the constructor refuses it."""
    values = dataclasses.asdict(Config())
    values["certificate"]["restarts"] = 0
    with pytest.raises(ValueError, match="restarts"):
        from_dict(Config, values)


def test_settings_are_frozen() -> None:
    """Nobody changes the settings of a run that has begun."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().beta = 1.0  # type: ignore[misc]
    assert hash(Config()) == hash(Config())
