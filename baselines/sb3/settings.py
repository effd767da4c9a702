"""Settings of the algorithms, read from one file; nothing here needs Stable-Baselines3."""

from __future__ import annotations

import dataclasses
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from mf_taxi_env.checks import whole_number

#: The settings of the built-in algorithms, and where each comes from.
HYPERPARAMETERS = Path(__file__).with_name("hyperparameters.toml")

ClassName = Literal["PPO", "A2C", "DDPG", "TD3", "SAC"]
Activation = Literal["tanh", "relu"]

_COMMON = {"learning_rate", "gamma"}
_ON_POLICY = _COMMON | {"n_steps", "gae_lambda", "ent_coef", "vf_coef", "max_grad_norm", "normalize_advantage"}
_OFF_POLICY = _COMMON | {"buffer_size", "learning_starts", "batch_size", "tau", "train_freq", "gradient_steps"}

#: Of an algorithm whose actor is deterministic, the one argument that SB3's class does not have, see :class:`Settings`.
ACTOR_DECAY = "actor_decay"
_DETERMINISTIC = _OFF_POLICY | {ACTOR_DECAY}

#: Arguments of SB3's classes that are stated, all of them, so that no default of a version of SB3 decides; and our own.
ARGUMENTS: Mapping[ClassName, frozenset[str]] = {
    "PPO": frozenset(_ON_POLICY | {"batch_size", "n_epochs", "clip_range"}),
    "A2C": frozenset(_ON_POLICY | {"rms_prop_eps", "use_rms_prop"}),
    "DDPG": frozenset(_DETERMINISTIC),
    "TD3": frozenset(_DETERMINISTIC | {"policy_delay", "target_policy_noise", "target_noise_clip"}),
    "SAC": frozenset(_OFF_POLICY | {"ent_coef", "target_entropy", "target_update_interval"}),
}


@dataclass(frozen=True)
class Lagrangian:
    """A price that follows the cost, see :class:`~baselines.sb3.lagrangian.PIDController`.

    Attributes:
        limit: ``d``, the mean cost of an episode that is tolerated, at least 0.
        proportional: ``K_P``, at least 0.
        integral: ``K_I``, at least 0.
        derivative: ``K_D``, at least 0.
    """

    limit: float
    proportional: float
    integral: float
    derivative: float

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _number(field.name, getattr(self, field.name), least=0.0)


@dataclass(frozen=True)
class Settings:
    """One algorithm, completely.

    Attributes:
        label: What tables and figures call it.
        algorithm: The class of SB3.
        parameterization: What an action means, see :func:`mf_taxi_env.parameterization.make_parameterization`.
        reach: What the action 1 stands for, in (0, 1], in sides of the city.
        observe_time: Whether the policy knows the step where nothing changes; where demand or trips do, it always does.
        bootstrap: Whether the value of the last distribution is added to the last reward; ``False`` needs ``observe_time``.
        num_envs: Episodes at once, at least 1.
        penalty: Price of a nat of cost, at least 0; with a Lagrangian the first price.
        caution: Margin in nats below which a step costs, at least 0.
        hidden: Widths of the hidden layers, of actors and critics alike.
        activation: What is between them: ``"tanh"`` or ``"relu"``.
        last_layer: Factor, in (0, 1], on the first weights of the actor's last layer: near 0 the policy starts by staying put.
        noise: Standard deviation of exploration in units of ``reach``, positive: the first one for PPO, A2C and SAC, which
            learn it, and that of all for DDPG and TD3.
        model: Arguments of the class, all of :data:`ARGUMENTS` and no others. ``actor_decay``, at least 0, of DDPG and TD3:
            so many times the actor's weights are added to their gradient before Adam scales it, which keeps tanh from its ends.
        lagrangian: A controller of the price; ``None`` keeps it.
    """

    label: str
    algorithm: ClassName
    parameterization: str
    reach: float
    observe_time: bool
    bootstrap: bool
    num_envs: int
    penalty: float
    caution: float
    hidden: tuple[int, ...]
    activation: Activation
    last_layer: float
    noise: float
    model: Mapping[str, Any]
    lagrangian: Lagrangian | None = None

    def __post_init__(self) -> None:
        for name, kind in (("algorithm", ClassName), ("activation", Activation)):
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"{name} must be one of {get_args(kind)}, got {getattr(self, name)!r}")
        _number("reach", self.reach, least=0.0, most=1.0, positive=True)
        _number("last_layer", self.last_layer, least=0.0, most=1.0, positive=True)
        _number("noise", self.noise, least=0.0, positive=True)
        _number("penalty", self.penalty, least=0.0)
        _number("caution", self.caution, least=0.0)
        whole_number("num_envs", self.num_envs, least=1)
        if not (self.bootstrap or self.observe_time):
            raise ValueError("bootstrap = false makes time matter: it needs observe_time = true")
        for width in self.hidden:
            whole_number("hidden", width, least=1)
        _complete("model", self.model, ARGUMENTS[self.algorithm])
        _number(ACTOR_DECAY, self.model.get(ACTOR_DECAY, 0.0), least=0.0)


def read_settings(path: Path = HYPERPARAMETERS) -> dict[str, Settings]:
    """The settings of every section of a TOML file, by the section's name.

    Args:
        path: A file whose sections have the keys of :class:`Settings`; all are to be there, but for ``lagrangian``.

    Raises:
        ValueError: If a key is missing, unknown or out of range; the message names file, section and key.
        OSError: If there is no such file.
    """
    sections = tomllib.loads(path.read_text(encoding="utf-8"))
    read = {}
    for name, section in sections.items():
        try:
            read[name] = _settings(section)
        except ValueError as error:
            raise ValueError(f"{path.name}, [{name}]: {error}") from error
    return read


def _settings(section: Any) -> Settings:
    if not isinstance(section, dict):
        raise ValueError(f"must be a section, got {section!r}")
    given = dict(section)
    lagrangian = given.pop("lagrangian", None)
    names = {field.name for field in dataclasses.fields(Settings)} - {"lagrangian"}
    _complete("section", given, names)
    for name, kind in get_type_hints(Settings).items():
        if isinstance(kind, type) and kind in (str, bool, int) and type(given[name]) is not kind:
            raise ValueError(f"{name} must be of type {kind.__name__}, got {given[name]!r}")
    for name, kind in (("hidden", list), ("model", dict)):
        if not isinstance(given[name], kind):
            raise ValueError(f"{name} must be of type {kind.__name__}, got {given[name]!r}")
    given["hidden"] = tuple(given["hidden"])
    if lagrangian is not None:
        if not isinstance(lagrangian, dict):
            raise ValueError(f"lagrangian must be a section, got {lagrangian!r}")
        _complete("lagrangian", lagrangian, {field.name for field in dataclasses.fields(Lagrangian)})
        given["lagrangian"] = Lagrangian(**lagrangian)
    return Settings(**given)


def _complete(name: str, given: Mapping[str, Any], wanted: set[str] | frozenset[str]) -> None:
    if unknown := sorted(set(given) - wanted):
        raise ValueError(f"{name} has unknown keys {unknown}; allowed are {sorted(wanted)}")
    if missing := sorted(wanted - set(given)):
        raise ValueError(f"{name} lacks the keys {missing}")


def _number(name: str, value: Any, *, least: float, most: float = math.inf, positive: bool = False) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not number or not least <= value <= most or (positive and value <= 0):
        left = "(" if positive else "["
        right = ")" if most == math.inf else "]"
        raise ValueError(f"{name} must be a number in {left}{least:g}, {most:g}{right}, got {value!r}")
