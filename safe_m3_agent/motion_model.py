"""The model of motion that an agent's settings name."""

from __future__ import annotations

from typing import Any

import torch

from mf_taxi_env import ParticleMDP
from safe_m3_agent.config import Config
from safe_m3_agent.model.dynamics_model import DynamicsModel, KnownModel
from safe_m3_agent.model.ensemble import ProbabilisticEnsemble
from safe_m3_agent.model.gaussian_process import GaussianProcess


def make_motion_model(config: Config, mdp: ParticleMDP, generator: torch.Generator) -> DynamicsModel:
    """A model that has seen nothing yet, or the true motion where it is known.

    Args:
        config: Which one, and its settings.
        mdp: The true world, of which a model is given space, grid and noise; its motion only if ``config.model`` is
            ``"known"``.
        generator: Source of what is drawn at the start.

    Raises:
        ValueError: If the model does not fit the world.
        ImportError: If a Gaussian process is asked for and GPyTorch is not installed.
    """
    noise_std = mdp.noise.std
    if config.model == "known":
        return KnownModel(mdp.motion, noise_std)
    shared: dict[str, Any] = {"dtype": mdp.dtype, "device": mdp.device}
    if config.model == "gp":
        if mdp.periodic:
            raise ValueError("model='gp' learns motion in the unit square, and this world is a ring: use model='ensemble'")
        return GaussianProcess(config.gp, mdp.grid, noise_std, generator, **shared)
    shared |= {"space": mdp.space, "reach": mdp.reach}
    return ProbabilisticEnsemble(config.ensemble, mdp.grid, noise_std, generator, **shared)
