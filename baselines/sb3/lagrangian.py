"""Safety for algorithms that only know rewards: a price on violations, fixed or controlled (PID-Lagrangian)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnvWrapper, unwrap_vec_normalize

from baselines.sb3.adapter import Array, LiftedVecEnv
from baselines.sb3.settings import Lagrangian
from mf_taxi_env.checks import finite_number


class Priced(VecEnvWrapper):
    """Rewards less a price times the cost of a step, ``r - multiplier * c`` with ``c = max(0, caution - margin)``.

    Args:
        venv: The envs, or a wrapper around them: they tell the margin of a step.
        multiplier: Price per nat, at least 0; may be changed at any time.
        caution: Margin in nats below which a step costs, at least 0; 0 for violations only.

    Raises:
        TypeError: If the envs have no ``margin``.
        ValueError: If a number is out of range, or rewards are normalised: a price in nats cannot be taken off them. Normalise
            what this wrapper gives instead.
    """

    def __init__(self, venv: LiftedVecEnv | VecEnvWrapper, multiplier: float, caution: float = 0.0) -> None:
        if not hasattr(getattr(venv, "unwrapped", None), "margin"):
            raise TypeError(
                f"venv must be a LiftedVecEnv or a wrapper around one, got a {type(venv).__name__} without a margin"
            )
        inner = unwrap_vec_normalize(venv)
        if inner is not None and inner.norm_reward:
            raise ValueError(
                "venv must not normalise rewards, got VecNormalize inside: wrap it around, VecNormalize(Priced(envs, ...))"
            )
        for name, value in (("multiplier", multiplier), ("caution", caution)):
            finite_number(name, value)
        super().__init__(venv)
        self.multiplier = multiplier
        self.caution = caution
        self._ended, self._cost_of_ended = 0, 0.0  # since the last take_cost()
        self._running = np.zeros(self.num_envs)

    def reset(self) -> Any:
        """Start all episodes."""
        self._running[:] = 0.0
        return self.venv.reset()

    def step_wait(self) -> tuple[Any, Array, Array, list[dict[str, Any]]]:
        """As the envs, with the price taken off the rewards."""
        observations, rewards, dones, infos = self.venv.step_wait()
        margin: Array = self.venv.unwrapped.margin  # type: ignore[attr-defined]
        cost = np.maximum(0.0, self.caution - margin)  # NaN where the margin is none
        self._running += cost
        if dones.any():
            self._ended += int(dones.sum())
            self._cost_of_ended += float(self._running[dones].sum())
            self._running[dones] = 0.0
        return observations, (rewards - self.multiplier * cost).astype(np.float32), dones, infos

    def take_cost(self) -> float | None:
        """Mean cost, summed over steps, of the episodes that ended since the last call; ``None`` where none did."""
        ended, cost = self._ended, self._cost_of_ended
        self._ended, self._cost_of_ended = 0, 0.0
        return cost / ended if ended else None


@dataclass
class PIDController:
    """The multiplier of PID-Lagrangian methods (Stooke, Achiam and Abbeel 2020, arXiv 2007.03964, Algorithm 2).

    ``Delta = J_C - d``, ``I <- (I + K_I Delta)_+``, ``multiplier = (K_P Delta + I + K_D (J_C - J_C_previous)_+)_+``.

    Attributes:
        gains: ``K_P, K_I, K_D`` and the limit ``d``.
        integral: ``I``, which the paper has before its factor ``K_I``; where it starts is the first multiplier.
        previous: ``J_C`` of the last update; ``None`` before the first, which then has no derivative.
    """

    gains: Lagrangian
    integral: float
    previous: float | None = None

    def update(self, cost: float) -> float:
        """The new multiplier, at least 0, after episodes of a mean cost ``J_C``."""
        gains = self.gains
        excess = cost - gains.limit
        rise = 0.0 if self.previous is None else max(0.0, cost - self.previous)
        self.integral = max(0.0, self.integral + gains.integral * excess)
        self.previous = cost
        return max(0.0, gains.proportional * excess + self.integral + gains.derivative * rise)


class PIDLagrangian(BaseCallback):
    """Sets the price of :class:`Priced` after every rollout in which episodes ended, by their mean cost.

    Args:
        priced: The wrapper; its price at the start is where the integral starts.
        gains: The controller's.
    """

    def __init__(self, priced: Priced, gains: Lagrangian) -> None:
        super().__init__()
        self.priced = priced
        self.controller = PIDController(gains, integral=priced.multiplier)

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        cost = self.priced.take_cost()
        if cost is not None:
            self.priced.multiplier = self.controller.update(cost)
