"""``MFTaxi-v0``: reposition a fleet of taxis, seen as one distribution, through Gymnasium."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, TypedDict, Unpack

import torch

from mf_taxi_env.envs.mean_field_env import MeanFieldEnv
from mf_taxi_env.envs.shell import Observation, check_arguments
from mf_taxi_env.envs.vector_env import Backend, MeanFieldVectorEnv
from mf_taxi_env.envs.viewer import RenderMode
from mf_taxi_env.mdp import checked_constraints
from mf_taxi_env.motion import Motion
from mf_taxi_env.parameterization import Parameterization
from mf_taxi_env.safety import Constraint
from mf_taxi_env.scenarios import Scenario, load_scenario
from mf_taxi_env.taxi import RewardTiming, TaxiMDP

DayOfTaxis = str | os.PathLike[str] | Scenario


class CitySettings(TypedDict, total=False):
    """Arguments that say which city an env is in, see :class:`MFTaxiEnv`."""

    scenario: DayOfTaxis
    cells: int
    horizon: int
    constraints: Sequence[Constraint] | None
    motion: Literal["free", "congested"] | Motion
    noise_std: float
    reward_timing: RewardTiming
    device: str | torch.device


class TaxiSettings(CitySettings, total=False):
    """Arguments of ``MFTaxi-v0``, see :class:`MFTaxiEnv`."""

    observation: Observation
    parameterization: str | Parameterization
    observe_time: bool


def _shell_arguments(
    *,
    observation: Observation = "mass",
    parameterization: str | Parameterization = "bilinear:8",
    observe_time: bool = False,
    **city: Unpack[CitySettings],
) -> dict[str, Any]:
    """The arguments of a shell for the arguments of the env: their defaults live here and in :func:`cities`, once."""
    return {
        "world": cities(**city),
        "parameterization": parameterization,
        "observation": observation,
        "observe_time": observe_time,
    }


def cities(
    *,
    scenario: DayOfTaxis = "shenzhen",
    cells: int = 25,
    horizon: int = 12,
    constraints: Sequence[Constraint] | None = None,
    motion: Literal["free", "congested"] | Motion = "free",
    noise_std: float = 0.0175,
    reward_timing: RewardTiming = "current",
    device: str | torch.device = "cpu",
) -> Callable[[DayOfTaxis | None], TaxiMDP]:
    """What builds the city of the day, or, of ``None``, the env's own."""
    build = partial(
        TaxiMDP,
        horizon=horizon,
        noise_std=noise_std,
        motion=motion,
        constraints=None if constraints is None else checked_constraints(constraints),
        reward_timing=reward_timing,
        device=device,
    )
    return partial(_world, build, scenario, cells)


def _world(build: Callable[[Scenario], TaxiMDP], home: DayOfTaxis, cells: int, day: DayOfTaxis | None) -> TaxiMDP:
    """The world of the day, or the env's own; a function of the module, so that envs can be pickled."""
    chosen = home if day is None else day
    if not isinstance(chosen, (str, os.PathLike, Scenario)):
        raise ValueError(f"scenario must be a name, a path or a Scenario, got {chosen!r}")
    city = chosen if isinstance(chosen, Scenario) else load_scenario(chosen, cells=cells)
    return build(city.resample(cells))


class MFTaxiEnv(MeanFieldEnv):
    """A fleet of taxis, in the mean-field limit, has to stand where the demand is while it stays spread out over the city.

    ## Description
    The state is a distribution ``mu`` over ``k x k`` cells of a city; one step is a quarter of an hour, or a slice of time
    where the city's trips were cut into slices. First passengers are served and carried to where the city's trips end, then
    every taxi moves as the action tells it to, and noise perturbs where it arrives. The transition is deterministic: a
    distribution moves. See ``mf_taxi_env.TaxiMDP`` for the equations and arXiv 2306.17052 for their source.

    ## Action Space
    ``Box(-1, 1, (n,), float32)``: parameters of a field of moves over the city, see ``parameterization``. A move of 1 crosses
    the city; an action of zeros leaves every taxi where it is.

    | parameterization | n | meaning |
    |---|---|---|
    | ``"cells"`` | ``2 k^2`` | ``(dx, dy)`` of every cell, in the order of the observation |
    | ``"bilinear:M"`` | ``2 M^2`` | ``(dx, dy)`` at ``M x M`` nodes, interpolated between them |
    | ``"fourier:N"`` | ``2 N^2`` | coefficients of ``N x N`` cosines, squashed by ``tanh`` |
    | ``"network:H1,H2"`` | ``3 H1 + (H1 + 1) H2 + 2 (H2 + 1)`` | weights of a network from position to move |

    ## Observation Space
    ``Box(float32)`` of length ``k^2``, or ``k^2 + 1`` with ``observe_time``:

    | part | min | max |
    |---|---|---|
    | mass of cell ``i * k + j`` (``i`` along longitude) | 0 | 1 |
    | or, with ``observation="density"``, mass times ``k^2`` | 0 | ``k^2`` |
    | ``t / T``, with ``observe_time`` | 0 | 1 |

    ## Rewards
    ``-KL(rho || mu)`` in nats, at most 0, with ``rho`` the demand. Where the demand is constant, or with
    ``reward_timing="next"``, no policy earns more per step than ``mf_taxi_env.certified_bound(env.unwrapped.mdp).per_step``, up
    to its certified gap, from distributions that it causes and that are safe.

    ## Cost
    ``info["cost"]`` is the worst violation ``max(0, -margin)`` of the new distribution in the constraint's unit. Every
    ``info`` also holds ``margin`` (the worst), ``margins`` (name to margin), ``entropy`` (share of ``log K``) and ``kl``
    (``KL(rho || mu)`` with the demand of the step that led there), all of the distribution observed with it.
    ``mf_taxi_env.CostWrapper`` returns the cost as a value of its own.

    ## Starting State
    The uniform distribution. ``reset(options={"initial": ...})`` takes a distribution instead, or ``"gaussian"`` for a random
    one; ``options={"scenario": ...}`` sets the city of this episode.

    ## Episode End
    Truncation after ``horizon`` steps; there is no termination.

    ## Arguments
    >>> import gymnasium as gym, mf_taxi_env
    >>> env = gym.make("MFTaxi-v0", cells=10, parameterization="cells")
    >>> observation, info = env.reset(seed=0)
    >>> observation, reward, terminated, truncated, info = env.step(env.action_space.sample() * 0)
    >>> sorted(info)
    ['cost', 'entropy', 'kl', 'margin', 'margins']

    | argument | default | meaning |
    |---|---|---|
    | ``scenario`` | ``"shenzhen"`` | name, path of a scenario file, or ``mf_taxi_env.Scenario`` |
    | ``cells`` | 25 | cells per axis, ``k``; the scenario is resampled to it |
    | ``horizon`` | 12 | steps per episode |
    | ``observation`` | ``"mass"`` | ``"mass"`` or ``"density"`` |
    | ``parameterization`` | ``"bilinear:8"`` | see Action Space |
    | ``constraints`` | ``None`` | the scenario's entropy floor, or a sequence of constraints; ``()`` for none |
    | ``motion`` | ``"free"`` | ``"free"``, ``"congested"`` or a callable |
    | ``noise_std`` | 0.0175 | standard deviation of the noise, in sides of the square |
    | ``reward_timing`` | ``"current"`` | reward of the distribution acted from, or of the ``"next"`` |
    | ``observe_time`` | ``False`` | append ``t / T`` to the observation |
    | ``device`` | ``"cpu"`` | torch device |
    | ``render_mode`` | ``None`` | ``"rgb_array"`` or ``"human"`` (extra ``render``) |

    ## Vectorized environment
    ``gym.make_vec`` gives a native batch: all episodes are one tensor, on any device, stepped together.

    >>> envs = gym.make_vec("MFTaxi-v0", num_envs=4, cells=10, parameterization="cells")
    >>> observations, infos = envs.reset(seed=0)
    >>> observations, rewards, terminated, truncated, infos = envs.step(envs.action_space.sample() * 0)
    >>> rewards.shape
    (4,)

    Further arguments are ``backend`` (``"numpy"``, or ``"torch"`` for tensors that never leave ``device``) and
    ``max_episode_steps``. Autoreset is ``NEXT_STEP``.

    ## Version History
    * v0: initial version.

    ## References
    Jusup et al., *Safe Model-Based Multi-Agent Mean-Field Reinforcement Learning*, AAMAS 2024, arXiv 2306.17052.
    """

    def __init__(self, *, render_mode: RenderMode | None = None, **settings: Unpack[TaxiSettings]) -> None:
        check_arguments("MFTaxi-v0", settings, TaxiSettings, "render_mode")
        super().__init__(**_shell_arguments(**settings), render_mode=render_mode)

    @property
    def _box(self) -> tuple[float, float, float, float] | None:
        assert isinstance(self.mdp, TaxiMDP)
        return self.mdp.scenario.box


class MFTaxiVectorEnv(MeanFieldVectorEnv):
    """``MFTaxi-v0`` in a batch; see :class:`MFTaxiEnv` for the world and its arguments.

    Args:
        num_envs: Episodes.
        backend: ``"numpy"`` arrays, or ``"torch"`` tensors that never leave the device.
        max_episode_steps: Truncate earlier than the horizon.
        render_mode: None: a batch is not rendered.
        settings: Arguments of :class:`MFTaxiEnv`.
    """

    def __init__(
        self,
        num_envs: int = 1,
        *,
        backend: Backend = "numpy",
        max_episode_steps: int | None = None,
        render_mode: None = None,
        **settings: Unpack[TaxiSettings],
    ) -> None:
        check_arguments("MFTaxi-v0", settings, TaxiSettings, "num_envs", "backend", "max_episode_steps", "render_mode")
        super().__init__(
            num_envs,
            **_shell_arguments(**settings),
            backend=backend,
            max_episode_steps=max_episode_steps,
            render_mode=render_mode,
        )
