"""The cost as a value of its own."""

from __future__ import annotations

from typing import Any, SupportsFloat

import gymnasium as gym

from mf_taxi_env.envs.shell import Array


class CostWrapper(gym.Wrapper[Array, Array, Array, Array]):
    """``step`` returns ``(observation, reward, cost, terminated, truncated, info)``, as safe RL libraries expect.

    The cost is ``info["cost"]``: the worst violation of a constraint, at least zero. It belongs outermost, for a six-tuple is
    not what Gymnasium's own wrappers know.

    Args:
        env: An env whose infos hold ``"cost"``.

    Example:
        >>> import mf_taxi_env
        >>> env = CostWrapper(gym.make("MFTaxi-v0", cells=6))
        >>> observation, info = env.reset(seed=0)
        >>> observation, reward, cost, terminated, truncated, info = env.step(env.action_space.sample())
        >>> cost >= 0
        True
    """

    def step(  # type: ignore[override]  # a six-tuple is the purpose
        self, action: Array
    ) -> tuple[Array, SupportsFloat, float, bool, bool, dict[str, Any]]:
        """One step of the env, with its cost between reward and termination.

        Raises:
            KeyError: If the env reports no cost.
        """
        observation, reward, terminated, truncated, info = self.env.step(action)
        if "cost" not in info:
            raise KeyError(f"info['cost'] is missing: {self.env} is no env with constraints")
        return observation, reward, float(info["cost"]), terminated, truncated, info
