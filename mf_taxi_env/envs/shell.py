"""What the single and the vector env of a world have in common: spaces, starts, observations, infos."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mf_taxi_env.information import entropy_fraction, floored_log
from mf_taxi_env.mdp import MeanFieldMDP, broken, worst
from mf_taxi_env.parameterization import Parameterization, make_parameterization

Observation = Literal["mass", "density"]
Array = NDArray[np.float32]

#: What ``options`` of ``reset`` may hold.
OPTIONS = ("initial", "scenario")
#: Named initial distributions.
STARTS = ("uniform", "gaussian")
#: Sums of a given initial distribution may be off by rounding only.
SUM_TOLERANCE = 1e-4
#: Widths of Gaussian starts, in sides of the unit square.
GAUSSIAN_STD = (0.1, 0.5)


# OpenMP's threads do not survive a fork: a forked worker, such as those of Gymnasium's AsyncVectorEnv, would wait for them for
# ever. One thread needs none, and one process per env leaves no core for more.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=partial(torch.set_num_threads, 1))


class Day(NamedTuple):
    """How episodes are to start."""

    mdp: MeanFieldMDP  #: their world
    initial: str | Tensor  #: one of ``STARTS``, or distributions [*batch, K]


class Report(NamedTuple):
    """What an info says of distributions ``[..., K]``; every entry but ``margins`` has shape ``[...]``."""

    margin: Tensor  #: worst margin; infinite without constraints
    margins: Tensor  #: [..., n_constraints]
    entropy: Tensor  #: share of log K
    kl: Tensor  #: KL(target || mu) in nats; NaN in a world without a target

    @classmethod
    def of(cls, mdp: MeanFieldMDP, mu: Tensor, t: int) -> Report:
        """What is to be said of ``mu`` ``[..., K]``, caused at step ``t``."""
        log = floored_log(mu)  # one for all: this is half of what a report costs
        margins = mdp.margins(mu, log)
        return cls(worst(margins), margins, entropy_fraction(mu, log), mdp.target_kl(mu, t, log))

    def info(self, constraint_names: Sequence[str]) -> dict[str, Any]:
        """The same of a single distribution as an info has it."""
        margin = float(self.margin)
        return {
            "cost": 0.0 if margin >= 0.0 else -margin,  # NaN where the state is no distribution
            "margin": margin,
            "margins": dict(zip(constraint_names, self.margins.tolist(), strict=True)),
            "entropy": float(self.entropy),
            "kl": float(self.kl),
        }


class Shell:
    """A world, a parameterization of its policies, and how both look to a client.

    Args:
        world: Builds the lifted MDP of a scenario; ``None`` stands for the env's own.
        parameterization: Name or object, see :func:`mf_taxi_env.parameterization.make_parameterization`.
        observation: ``"mass"``, or ``"density"`` for ``K mu``, of order one.
        observe_time: Append ``t / T``.
    """

    def __init__(
        self,
        world: Callable[[Any], MeanFieldMDP],
        *,
        parameterization: str | Parameterization,
        observation: Observation,
        observe_time: bool,
    ) -> None:
        if observation not in get_args(Observation):
            raise ValueError(f"observation must be one of {get_args(Observation)}, got {observation!r}")
        self._world = world
        self._home = world(None)
        self.mdp = self._home
        self.mdp.margins(self.mdp.initial())  # a constraint of another grid is to fail here, not in an episode
        self.parameterization = make_parameterization(parameterization, self.mdp.grid, self.mdp.action_dim)
        self._ours = is_ours(self.mdp, self.parameterization)
        self.observe_time = observe_time
        self.scale = float(self.mdp.grid.size if observation == "density" else 1.0)
        high = np.full(self.mdp.grid.size + observe_time, self.scale, np.float32)
        if observe_time:
            high[-1] = 1.0
        self.observation_space = gym.spaces.Box(np.zeros_like(high), high, dtype=np.float32)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (self.parameterization.n_parameters,), np.float32)
        self.constraint_names = constraint_names(self.mdp)

    def parameters(self, action: Any, batch: tuple[int, ...] = ()) -> Tensor:
        """A client's action as a checked tensor ``[*batch, n]`` on the world's device.

        Raises:
            ValueError: If it has the wrong shape, is not finite, or leaves ``[-1, 1]``.
        """
        shape = (*batch, self.parameterization.n_parameters)
        values: Any  # a tensor stays on its device; an array is checked where it is, for that is faster
        if isinstance(action, Tensor):
            values = action.detach().to(self.mdp.device, torch.float32)
        else:
            values = np.array(action, dtype=np.float32)  # a copy: torch takes no read-only or reversed arrays
        if values.shape != shape:
            raise ValueError(f"action must have shape {shape}, got {tuple(values.shape)}")
        if not (values.min() >= -1.0 and values.max() <= 1.0):  # a NaN passes neither
            legal = abs(values) <= 1.0
            wrong = int((~legal).sum())
            where = "" if not batch else f", in the envs {[i for i, row in enumerate(legal) if not row.all()][:10]}"
            raise ValueError(f"action must be finite and lie in [-1, 1]; {wrong} of {math.prod(shape)} entries do not{where}")
        parameters: Tensor = values if isinstance(values, Tensor) else torch.from_numpy(values).to(self.mdp.device)
        return parameters

    def without_gradients(self) -> torch.inference_mode | torch.no_grad:
        """What to compute a step in."""
        return without_gradients(self._ours)

    def day(self, options: Mapping[str, Any] | None, batch: tuple[int, ...]) -> Day:
        """What ``options`` of ``reset`` ask for, checked; nothing has changed yet.

        Args:
            options: ``"initial"`` and ``"scenario"``, or ``None``.
            batch: ``()`` or ``(N,)``.

        Raises:
            ValueError: If an option is unknown or does not fit the env.
        """
        options = options or {}
        unknown = sorted(map(str, set(options) - set(OPTIONS)))
        if unknown:
            raise ValueError(f"unknown reset options {unknown}; allowed are {list(OPTIONS)}")
        scenario, initial = options.get("scenario"), options.get("initial", "uniform")
        mdp = self._home if scenario is None else self._world(scenario)
        if len(mdp.constraints) != len(self.constraint_names):
            raise ValueError("options['scenario'] must give the world as many constraints as it has")
        if isinstance(initial, str):
            if initial not in STARTS:
                raise ValueError(f"options['initial'] must be one of {STARTS} or a distribution, got {initial!r}")
            return Day(mdp, initial)
        try:
            mass = torch.as_tensor(initial, dtype=torch.float64, device="cpu")
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"options['initial'] must be one of {STARTS} or a distribution, got {initial!r}") from error
        size = mdp.grid.size
        if mass.shape not in {(size,), (*batch, size)}:
            allowed = " or ".join(dict.fromkeys((f"({size},)", str((*batch, size)))))
            raise ValueError(f"options['initial'] must have shape {allowed}, got {tuple(mass.shape)}")
        sums = mass.sum(-1, keepdim=True)
        if not (bool((mass >= 0).all()) and bool(((sums - 1).abs() <= SUM_TOLERANCE).all())):
            raise ValueError("options['initial'] must be non-negative and sum to one")
        return Day(mdp, (mass / sums).to(mdp.dtype).to(mdp.device).expand(*batch, size).clone())

    def start(self, day: Day, batch: tuple[int, ...], generators: Callable[[], list[np.random.Generator]]) -> Tensor:
        """Begin ``day``: initial distributions ``[*batch, K]``.

        Args:
            day: From :meth:`day`.
            batch: As there.
            generators: Sources of randomness, one per batch element; asked for where a start is random.
        """
        self.mdp, self._ours = day.mdp, is_ours(day.mdp, self.parameterization)
        if isinstance(day.initial, Tensor):
            return day.initial
        if day.initial == "uniform":
            return self.mdp.initial(batch)
        drawn = torch.from_numpy(np.stack([self._gaussian(generator) for generator in generators()]))
        return self._kept_safe(drawn.to(self.mdp.dtype).to(self.mdp.device)).reshape(*batch, -1)

    def _gaussian(self, generator: np.random.Generator) -> NDArray[np.float64]:
        """Cell masses ``[K]`` of a Gaussian with a random centre and widths, cut off at the edges where there are any."""
        grid = self.mdp.grid
        axis = (np.arange(grid.cells) + 0.5) / grid.cells
        mass = np.ones(1)
        for centre, std in zip(generator.random(grid.dimension), generator.uniform(*GAUSSIAN_STD, grid.dimension), strict=True):
            away = np.abs(axis - centre)
            if self.mdp.periodic:
                away = np.minimum(away, 1.0 - away)
            bump = np.exp(-0.5 * (away / std) ** 2)
            mass = np.outer(mass, bump / bump.sum()).ravel()
        return mass

    def _kept_safe(self, mu: Tensor) -> Tensor:
        """``mu`` ``[N, K]``, mixed with the world's own start by halves until it keeps the constraints, if that ever does."""
        home = self.mdp.initial((len(mu),))
        for _ in range(20):
            unsafe = broken(self.mdp.margins(mu)).unsqueeze(-1)
            if not unsafe.any():
                return mu
            mu = torch.where(unsafe, 0.5 * (mu + home), mu)
        return torch.where(broken(self.mdp.margins(mu)).unsqueeze(-1), home, mu)

    def observe(self, mu: Tensor, t: int) -> Tensor:
        """Observations ``[..., n]``, float32, of ``mu`` ``[..., K]`` at step ``t``."""
        # Rounding may leave a mass a few ulps outside of the box.
        seen = (mu.float() * self.scale).clamp(0.0, self.scale)
        if not self.observe_time:
            return seen
        return torch.cat([seen, seen.new_full((*mu.shape[:-1], 1), t / self.mdp.horizon)], -1)

    def report(self, mu: Tensor, t: int) -> Report:
        """What the info says of ``mu`` ``[..., K]``, caused at step ``t``."""
        return Report.of(self.mdp, mu, t)


def is_ours(mdp: MeanFieldMDP, *others: object) -> bool:
    """Whether all that a step of a world calls, and the ``others``, is of this package."""
    parts = (mdp, getattr(mdp, "motion", mdp), *mdp.constraints, *others)
    return all(type(part).__module__.startswith("mf_taxi_env.") for part in parts)


def without_gradients(ours: bool) -> torch.inference_mode | torch.no_grad:
    """What to compute a step in: inference mode spares a seventh of its time over no_grad, but a world, motion, constraint or
    parameterization of the user's own that differentiates inside could not do so there."""
    return torch.inference_mode() if ours else torch.no_grad()


def constraint_names(mdp: MeanFieldMDP) -> list[str]:
    """A name for each constraint; two of one kind are told apart by their place."""
    names = [constraint.name for constraint in mdp.constraints]
    return [f"{name}:{i}" if names.count(name) > 1 else name for i, name in enumerate(names)]


def check_arguments(name: str, given: Mapping[str, Any], settings: type, *own: str) -> None:
    """Refuse arguments that an env does not have.

    Args:
        name: The env's.
        given: Its arguments beside those that the shell names itself.
        settings: What they may be: a ``TypedDict``.
        own: Names of the shell's own arguments, to tell of.

    Raises:
        TypeError: Naming the first of them, the env, and what it has.
    """
    allowed = [*settings.__annotations__, *own]
    unknown = sorted(set(given) - set(allowed))
    if unknown:
        # In Python's own words, which some clients look for, to learn what an env takes by trying.
        raise TypeError(f"{name} got an unexpected keyword argument {unknown[0]!r}; it has {', '.join(allowed)}")
