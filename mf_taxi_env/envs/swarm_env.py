"""``MFSwarm1D-v0``: a swarm on a ring, the benchmark with a known solution, through Gymnasium."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, TypedDict, Unpack

import torch

from mf_taxi_env.envs.mean_field_env import MeanFieldEnv
from mf_taxi_env.envs.shell import Observation, check_arguments
from mf_taxi_env.envs.vector_env import Backend, MeanFieldVectorEnv
from mf_taxi_env.envs.viewer import RenderMode
from mf_taxi_env.mdp import checked_constraints
from mf_taxi_env.parameterization import Parameterization
from mf_taxi_env.safety import Constraint
from mf_taxi_env.swarm import SwarmMDP


class SwarmSettings(TypedDict, total=False):
    """Arguments of ``MFSwarm1D-v0``, see :class:`MFSwarm1DEnv`."""

    cells: int
    horizon: int
    dt: float
    max_speed: float
    observation: Observation
    parameterization: str | Parameterization
    constraints: Sequence[Constraint]
    density_term: bool | None
    observe_time: bool
    device: str | torch.device


def _shell_arguments(
    *,
    cells: int = 100,
    horizon: int = 100,
    dt: float = 0.01,
    max_speed: float = 7.0,
    observation: Observation = "mass",
    parameterization: str | Parameterization = "cells",
    constraints: Sequence[Constraint] = (),
    density_term: bool | None = None,
    observe_time: bool = False,
    device: str | torch.device = "cpu",
) -> dict[str, Any]:
    """The arguments of a shell for the arguments of the env: their defaults live here, once."""
    build = partial(
        SwarmMDP,
        cells=cells,
        horizon=horizon,
        dt=dt,
        max_speed=max_speed,
        constraints=checked_constraints(constraints),
        density_term=density_term,
        device=device,
    )
    return {
        "world": partial(_world, build),
        "parameterization": parameterization,
        "observation": observation,
        "observe_time": observe_time,
    }


def _world(build: partial[SwarmMDP], day: object) -> SwarmMDP:
    """The one world there is; a function of the module, so that envs can be pickled."""
    if day is not None:
        raise ValueError(f"options['scenario'] must be None: the swarm has no scenarios, got {day!r}")
    return build()


class MFSwarm1DEnv(MeanFieldEnv):
    """A swarm on a ring seeks a peak of a landscape, pays for its speed, and, in the mean field, avoids crowds.

    ## Description
    The state is a distribution ``mu`` over ``k`` cells of the ring ``[0, 1)``; each particle moves by
    ``x' = x + a dt + N(0, dt)``. The benchmark of M3-UCRL (arXiv 2107.04050): its ergodic solution is known in closed form,
    ``a*(x) = 2 pi cos(2 pi x)`` with ``mu*`` proportional to ``exp(2 sin(2 pi x))``, see ``mf_taxi_env.SwarmMDP``.

    ## Action Space
    ``Box(-1, 1, (n,), float32)``: parameters of a field of speeds in units of ``max_speed``.

    | parameterization | n | meaning |
    |---|---|---|
    | ``"cells"`` | ``k`` | speed of every cell |
    | ``"bilinear:M"`` | ``M`` | speed at ``M`` nodes from 0 to 1, interpolated between them |
    | ``"fourier:N"`` | ``N`` | coefficients of ``N`` cosines ``cos(pi i x)``, squashed by ``tanh`` |
    | ``"network:H1,H2"`` | ``2 H1 + (H1 + 1) H2 + H2 + 1`` | weights of a network from position to speed |

    ## Observation Space
    ``Box(float32)`` of length ``k``, or ``k + 1`` with ``observe_time``:

    | part | min | max |
    |---|---|---|
    | mass of cell ``i`` | 0 | 1 |
    | or, with ``observation="density"``, mass times ``k`` | 0 | ``k`` |
    | ``t / T``, with ``observe_time`` | 0 | 1 |

    ## Rewards
    The mean over the swarm of ``2 pi^2 (sin 2 pi x - cos^2 2 pi x) + 2 sin 2 pi x - speed^2 / 2 - log mu(x)``, with ``mu(x)``
    the mass of a cell; the last term is dropped where a constraint is set, unless ``density_term`` says otherwise.

    ## Cost
    As in ``MFTaxi-v0``: ``info["cost"]``, ``margin``, ``margins``, ``entropy``; ``kl`` is ``KL(mu* || mu)``. Without
    constraints, the default, the margin is infinite and the cost 0.

    ## Starting State
    The uniform distribution, or ``reset(options={"initial": ...})``.

    ## Episode End
    Truncation after ``horizon`` steps; there is no termination.

    ## Arguments
    >>> import gymnasium as gym, mf_taxi_env
    >>> env = gym.make("MFSwarm1D-v0")
    >>> observation, info = env.reset(seed=0)
    >>> observation, reward, terminated, truncated, info = env.step(env.unwrapped.mdp.optimal_actions().flatten().numpy())

    | argument | default | meaning |
    |---|---|---|
    | ``cells`` | 100 | cells of the ring, ``k`` |
    | ``horizon`` | 100 | steps per episode |
    | ``dt`` | 0.01 | duration of a step |
    | ``max_speed`` | 7 | speed of an action of 1 |
    | ``observation`` | ``"mass"`` | ``"mass"`` or ``"density"`` |
    | ``parameterization`` | ``"cells"`` | see Action Space |
    | ``constraints`` | ``()`` | a sequence of constraints, such as ``(EntropyFloor(0.95),)`` |
    | ``density_term`` | ``None`` | keep ``-log mu`` in the reward; default: where there is no constraint |
    | ``observe_time`` | ``False`` | append ``t / T`` to the observation |
    | ``device`` | ``"cpu"`` | torch device |
    | ``render_mode`` | ``None`` | ``"rgb_array"`` or ``"human"`` (extra ``render``) |

    ## Vectorized environment
    ``gym.make_vec("MFSwarm1D-v0", num_envs=N)`` gives a native batch, as in ``MFTaxi-v0``.

    ## Version History
    * v0: initial version.

    ## References
    Pásztor, Krause and Bogunovic, *Efficient Model-Based Multi-Agent Mean-Field Reinforcement Learning*, TMLR 2023,
    arXiv 2107.04050.
    """

    def __init__(self, *, render_mode: RenderMode | None = None, **settings: Unpack[SwarmSettings]) -> None:
        check_arguments("MFSwarm1D-v0", settings, SwarmSettings, "render_mode")
        super().__init__(**_shell_arguments(**settings), render_mode=render_mode)


class MFSwarm1DVectorEnv(MeanFieldVectorEnv):
    """``MFSwarm1D-v0`` in a batch; see :class:`MFSwarm1DEnv` for the world and its arguments.

    Args:
        num_envs: Episodes.
        backend: ``"numpy"`` arrays, or ``"torch"`` tensors that never leave the device.
        max_episode_steps: Truncate earlier than the horizon.
        render_mode: None: a batch is not rendered.
        settings: Arguments of :class:`MFSwarm1DEnv`.
    """

    def __init__(
        self,
        num_envs: int = 1,
        *,
        backend: Backend = "numpy",
        max_episode_steps: int | None = None,
        render_mode: None = None,
        **settings: Unpack[SwarmSettings],
    ) -> None:
        check_arguments("MFSwarm1D-v0", settings, SwarmSettings, "num_envs", "backend", "max_episode_steps", "render_mode")
        super().__init__(
            num_envs,
            **_shell_arguments(**settings),
            backend=backend,
            max_episode_steps=max_episode_steps,
            render_mode=render_mode,
        )
