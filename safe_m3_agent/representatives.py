"""Representative agents: a few taxis or particles in the true world, whose moves are all that the agent learns from."""

from __future__ import annotations

import torch
from torch import Tensor

from mf_taxi_env import FleetSimulator, ParticleMDP, Trajectory
from safe_m3_agent.config import Config
from safe_m3_agent.model.dynamics_model import DynamicsModel
from safe_m3_agent.policy import Policy
from safe_m3_agent.transitions import Transitions


def observe(
    executed: Trajectory, world: ParticleMDP, model: DynamicsModel, policy: Policy, config: Config, generator: torch.Generator
) -> tuple[Transitions, float]:
    """Send representative taxis through an episode of the fleet.

    They carry no mass: the fleet's distributions are those of ``executed``, whatever the taxis do.

    Args:
        executed: The fleet's episode in the true mean field.
        world: The true world.
        model: What the agent believes of moves.
        policy: What the fleet does.
        config: How many taxis, and how they explore.
        generator: Source of randomness.

    Returns:
        The taxis' moves, and the share of them whose true destination lay in the model's confidence set: a diagnostic that
        uses the truth.
    """
    seed = int(torch.randint(2**62, (1,), generator=generator, device=world.device))
    taxis = FleetSimulator(world, config.representative_agents, seed=seed, resolution="continuous")
    moves, covered = [], []
    for t in range(world.horizon):
        taxis.serve(executed.mu[t])
        mu, positions = world.shift(executed.mu[t], t), taxis.positions
        if config.exploration == "policy" or model.exact:
            actions = policy(positions, mu, t)
        else:
            actions = most_doubtful(model, positions, mu, config.exploration_candidates, generator)
        belief = model.predict(positions, mu, actions)
        error = world.space.displacement(belief.mean, world.motion(positions, mu, actions)).abs()
        # A thousandth of a cell is forgiven: beyond the city's edge belief and truth agree but for rounding.
        covered.append((error <= config.beta * belief.epistemic + 1e-3 / world.grid.cells).all(-1))
        taxis.step(actions, mu)
        moves.append(Transitions(positions, mu.expand(len(positions), -1), actions, taxis.positions))
    joined = Transitions(*(torch.cat(parts) for parts in zip(*moves, strict=True)))
    return joined, float(torch.cat(covered).float().mean())


def most_doubtful(model: DynamicsModel, positions: Tensor, mu: Tensor, candidates: int, generator: torch.Generator) -> Tensor:
    """For each taxi the one of some random actions whose outcome the model is least sure of.

    Args:
        model: What is believed of moves.
        positions: ``[m, d]``.
        mu: Distribution after trips ``[K]``.
        candidates: Random actions per taxi, uniform in ``[-1, 1]^d``.
        generator: Source of the actions.

    Returns:
        Actions ``[m, d]``.
    """
    shape = (candidates, *positions.shape)
    actions = 2.0 * torch.rand(shape, generator=generator, dtype=positions.dtype, device=positions.device) - 1.0
    doubt = model.predict(positions, mu, actions).epistemic.square().sum(-1)
    return actions[doubt.argmax(0), torch.arange(len(positions), device=positions.device)]
