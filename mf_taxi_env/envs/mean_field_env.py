"""``MFTaxi-v0``: reposition a fleet of taxis, seen as one distribution, through Gymnasium."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any, Literal, get_args

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray

from mf_taxi_env.information import entropy_fraction, kl_divergence
from mf_taxi_env.motion import Motion
from mf_taxi_env.parameterization import Parameterization, make_parameterization
from mf_taxi_env.safety import Constraint
from mf_taxi_env.scenarios import Scenario, load_scenario
from mf_taxi_env.taxi import RewardTiming, TaxiMDP

Observation = Literal["mass", "density"]
Array = NDArray[np.float32]


class MFTaxiEnv(gym.Env[Array, Array]):
    """A fleet of taxis, in the mean-field limit, has to stand where the demand is without leaving any district unserved.

    ## Description
    The state is a distribution ``mu`` over ``k x k`` cells of a city; one step is a quarter of an hour. First passengers are
    served and carried to where the city's trips end, then every taxi moves as the action tells it to, and noise perturbs
    where it arrives. The transition is deterministic: a distribution moves. See ``mf_taxi_env.TaxiMDP`` for the
    equations and arXiv 2306.17052 for their source.

    ## Action Space
    ``Box(-1, 1, (n,), float32)``: parameters of a field of moves over the city, see ``parameterization``. A move of 1 crosses
    the city.

    | parameterization | n | meaning |
    |---|---|---|
    | ``"cells"`` | ``2 k^2`` | ``(dx, dy)`` of every cell, in the order of the observation |
    | ``"bilinear:M"`` | ``2 M^2`` | ``(dx, dy)`` at ``M x M`` nodes, interpolated between them |

    ## Observation Space
    ``Box(float32)`` of length ``k^2``, or ``k^2 + 1`` with ``observe_time``:

    | part | min | max |
    |---|---|---|
    | mass of cell ``i * k + j`` (``i`` along longitude) | 0 | 1 |
    | or, with ``observation="density"``, mass times ``k^2`` | 0 | ``k^2`` |
    | ``t / T``, with ``observe_time`` | 0 | 1 |

    ## Rewards
    ``-KL(rho || mu)`` in nats, at most 0, with ``rho`` the demand. No policy earns more
    per step than ``mf_taxi_env.certified_bound(env.unwrapped.mdp).per_step``, up to its certified gap, from a distribution that
    it causes and that is safe.

    ## Cost
    ``info["cost"]`` is the worst violation ``max(0, -margin)`` of the new distribution in the constraint's unit. Every
    ``info`` also holds ``margin`` (the worst), ``margins`` (name to margin), ``entropy`` (share of ``log K``) and ``kl``, all
    of the distribution observed with it.

    ## Starting State
    The uniform distribution.

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
    | ``scenario`` | ``"shenzhen"`` | name, path of a ``.npz`` scenario, or ``mf_taxi_env.Scenario`` |
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

    ## Version History
    * v0: initial version.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 - Gymnasium declares it on the instance

    def __init__(
        self,
        *,
        scenario: str | os.PathLike[str] | Scenario = "shenzhen",
        cells: int = 25,
        horizon: int = 12,
        observation: Observation = "mass",
        parameterization: str | Parameterization = "bilinear:8",
        constraints: Sequence[Constraint] | None = None,
        motion: Literal["free", "congested"] | Motion = "free",
        noise_std: float = 0.0175,
        reward_timing: RewardTiming = "current",
        observe_time: bool = False,
        device: str | torch.device = "cpu",
        render_mode: None = None,
    ) -> None:
        if observation not in get_args(Observation):
            raise ValueError(f"observation must be one of {get_args(Observation)}, got {observation!r}")
        if render_mode is not None:
            raise ValueError(f"render_mode must be None, got {render_mode!r}; `mf-taxi show` draws a scenario")
        if not isinstance(scenario, Scenario):
            scenario = load_scenario(scenario, cells=cells)
        self.mdp = TaxiMDP(
            scenario.resample(cells),
            horizon=horizon,
            noise_std=noise_std,
            motion=motion,
            constraints=constraints,
            reward_timing=reward_timing,
            device=device,
        )
        self.parameterization = make_parameterization(parameterization, self.mdp.grid, self.mdp.action_dim)
        self.render_mode = render_mode
        self._scale = np.float32(self.mdp.grid.size if observation == "density" else 1.0)
        self._observe_time = observe_time
        high = np.full(self.mdp.grid.size, self._scale, np.float32)
        if observe_time:
            high = np.append(high, np.float32(1.0))
        self.observation_space = gym.spaces.Box(np.zeros_like(high), high, dtype=np.float32)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (self.parameterization.n_parameters,), np.float32)
        names = [constraint.name for constraint in self.mdp.constraints]
        # Two constraints of one kind are told apart by their place.
        self._constraint_names = [f"{name}:{i}" if names.count(name) > 1 else name for i, name in enumerate(names)]
        self._mu: torch.Tensor | None = None
        self._t = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """Start an episode at the uniform distribution. ``seed`` only seeds ``np_random``: nothing in this world is random."""
        super().reset(seed=seed)
        self._t = 0
        self._mu = self.mdp.initial()
        return self._observation(self._mu), self._info(self._mu)

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Move the fleet.

        Args:
            action: ``[n]`` in ``[-1, 1]``.

        Raises:
            ValueError: If the action has the wrong shape, is not finite, or leaves ``[-1, 1]``. The state is unchanged.
            gymnasium.error.ResetNeeded: If the episode is over or has not begun.
        """
        if self._mu is None or self._t >= self.mdp.horizon:
            raise gym.error.ResetNeeded("call reset() before step(): no episode is running")
        parameters = np.array(action, dtype=np.float32)  # a copy: torch takes no read-only or reversed arrays
        if parameters.shape != self.action_space.shape:
            raise ValueError(f"action must have shape {self.action_space.shape}, got {parameters.shape}")
        if not (np.abs(parameters) <= 1.0).all():
            bad = int((~(np.abs(parameters) <= 1.0)).sum())
            raise ValueError(f"action must be finite and lie in [-1, 1]; {bad} of {parameters.size} entries do not")
        with torch.no_grad():
            actions = self.parameterization.field(torch.from_numpy(parameters).to(self.mdp.device))
            next_mu = self.mdp.transition(self._mu, actions, self._t)
            reward = float(self.mdp.reward(self._mu, actions, next_mu, self._t))
        self._mu = next_mu
        self._t += 1
        return self._observation(next_mu), reward, False, self._t >= self.mdp.horizon, self._info(next_mu)

    def _observation(self, mu: torch.Tensor) -> Array:
        # Rounding may leave a mass a few ulps outside of the box.
        mass: Array = np.clip(mu.cpu().numpy() * self._scale, 0.0, self._scale, dtype=np.float32)
        if self._observe_time:
            mass = np.append(mass, np.float32(self._t / self.mdp.horizon))
        return mass

    def _info(self, mu: torch.Tensor) -> dict[str, Any]:
        values = self.mdp.margins(mu).tolist()
        margins = dict(zip(self._constraint_names, values, strict=True))
        worst = min(values, default=math.inf)
        return {
            "cost": max(0.0, -worst),
            "margin": worst,
            "margins": margins,
            "entropy": float(entropy_fraction(mu)),
            "kl": float(kl_divergence(self.mdp.demand(max(self._t - 1, 0)), mu)),
        }
