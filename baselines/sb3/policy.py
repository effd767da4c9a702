"""What a model of Stable-Baselines3 has learned, as a policy of this library."""

from __future__ import annotations

from collections.abc import Callable

import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from baselines.sb3.adapter import LiftedVecEnv


class LiftedPolicy:
    """The deterministic actions of a model: by cell for the mean field, by position for a fleet.

    It follows the model: where that goes on learning, so does the policy.

    Args:
        model: Trained on ``envs``, or on envs wrapped around it that leave observations and actions as they are. One that was
            loaded from a file no longer holds them: ``envs`` is then to be made with the same arguments.
        envs: Says what is observed, and what an action means.

    Raises:
        ValueError: If the model is of other spaces or envs whose actions mean something else, sees observations that
            ``VecNormalize`` has changed, or does not see the distribution after trips.

    Example:
        >>> from stable_baselines3 import PPO
        >>> from mf_taxi_env import FleetSimulator, TaxiMDP, load_scenario
        >>> world = TaxiMDP(load_scenario("shenzhen", cells=5))
        >>> envs = LiftedVecEnv(world, 4, parameterization="bilinear:3")
        >>> policy = LiftedPolicy(PPO("MlpPolicy", envs, device="cpu"), envs)
        >>> world.rollout(policy).mu.shape
        torch.Size([13, 25])
        >>> FleetSimulator(world, 100).rollout(policy).distributions.shape
        torch.Size([13, 25])
    """

    def __init__(self, model: BaseAlgorithm, envs: LiftedVecEnv) -> None:
        if not envs.after_trips:
            raise ValueError(
                "envs must be made with after_trips=True: a policy is asked after trips, when what was before is gone"
            )
        for name in ("observation_space", "action_space"):
            if getattr(model, name) != getattr(envs, name):
                raise ValueError(f"model must have the {name} of envs, {getattr(envs, name)}, got {getattr(model, name)}")
        normalised = model.get_vec_normalize_env()
        if normalised is not None and normalised.norm_obs:
            raise ValueError(
                "model must be trained on observations as they are, got one under VecNormalize: use norm_obs=False"
            )
        if (trained := model.get_env()) is not None:
            _check_trained_on(trained.unwrapped, envs)
        self._actor = model.policy
        self._observe = envs.observe
        self._parameterization = envs.parameterization
        self._reach = envs.reach

    def field(self, mu: Tensor, t: int) -> Tensor:
        """Actions at the cell centres, ``[..., K, d]``, for ``mu`` ``[..., K]`` after trips at step ``t``."""
        return self._parameterization.field(self._parameters(mu, t))

    def at(self, mu: Tensor, t: int) -> Callable[[Tensor], Tensor]:
        """The policy of step ``t`` for one distribution ``[K]``: a function from positions ``[n, d]`` to actions ``[n, d]``."""
        parameters = self._parameters(mu, t)
        return lambda positions: self._parameterization.at(parameters, positions).to(positions.dtype)

    def __call__(self, positions: Tensor, mu: Tensor, t: int) -> Tensor:
        """Actions ``[m, d]`` of taxis at ``positions`` ``[m, d]``, given ``mu`` ``[K]`` after trips."""
        return self.at(mu, t)(positions)

    @torch.no_grad()
    def _parameters(self, mu: Tensor, t: int) -> Tensor:
        """Parameters of the field, ``[..., n]``, as the env would have used them."""
        seen = self._observe(mu, t).to(self._actor.device)
        self._actor.set_training_mode(False)
        # What SB3's predict() does, without leaving the device; it, too, clips what does not squash.
        flat = self._actor._predict(seen.reshape(-1, seen.shape[-1]), deterministic=True).clamp(-1.0, 1.0)
        return (self._reach * flat).to(mu.device, mu.dtype).reshape(*mu.shape[:-1], -1)


def _check_trained_on(base: VecEnv, envs: LiftedVecEnv) -> None:
    """What spaces do not tell: which distribution was seen, and how far an action went."""
    if not isinstance(base, LiftedVecEnv) or not base.after_trips:
        raise ValueError(
            f"model must be trained on a LiftedVecEnv with after_trips=True, got {base!r}: a policy acts on what "
            "is left after trips"
        )
    if base.reach != envs.reach:
        raise ValueError(f"envs must have the reach that the model was trained with, {base.reach!r}, got {envs.reach!r}")
    theirs, ours = (type(one.parameterization).__name__ for one in (base, envs))
    if theirs != ours:
        raise ValueError(f"envs must have the parameterization that the model was trained with, {theirs}, got {ours}")
