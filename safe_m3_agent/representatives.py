"""Representative agents: a few taxis or particles in the true world, whose moves are all that the agent learns from."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mf_taxi_env import FleetSimulator, ParticleMDP, Trajectory
from safe_m3_agent.calibration import HeldOut
from safe_m3_agent.config import Config
from safe_m3_agent.model.dynamics_model import DynamicsModel
from safe_m3_agent.policy import Policy
from safe_m3_agent.transitions import Transitions, Trips


class Observed(NamedTuple):
    """What representative taxis bring home from an episode."""

    transitions: Transitions  #: their moves
    held_out: HeldOut  #: what the model predicted of them, and what came of it
    coverage: float  #: share of true destinations within the confidence set: a diagnostic that uses the truth
    trips: Trips  #: their passengers


def observe(
    executed: Trajectory,
    world: ParticleMDP,
    model: DynamicsModel,
    policy: Policy,
    config: Config,
    generator: torch.Generator,
    *,
    radius: float,
    tau: float = 1.0,
) -> Observed:
    """Send representative taxis through an episode of the fleet.

    They carry no mass: the fleet's distributions are those of ``executed``, whatever the taxis do.

    Args:
        executed: The fleet's episode in the true mean field.
        world: The true world.
        model: What the agent believes of moves.
        policy: What the fleet does.
        config: How many taxis, and how they explore.
        generator: Source of randomness.
        radius: Half-width of the confidence set in epistemic standard deviations, as certificates take it.
        tau: Factor by which the agent takes these to be too small.
    """
    seed = int(torch.randint(2**62, (1,), generator=generator, device=world.device))
    taxis = FleetSimulator(world, config.representative_agents, seed=seed, resolution="continuous")
    moves, trips, held_out, covered = [], [Trips.empty(world.device)], [], []
    for t in range(world.horizon):
        origins = world.grid.index(taxis.positions)
        taxis.serve(executed.mu[t])
        trips.append(Trips(origins[taxis.occupied], world.grid.index(taxis.positions)[taxis.occupied]))
        mu, positions = world.shift(executed.mu[t], t), taxis.positions
        if config.exploration == "policy" or model.exact:
            actions = policy(positions, mu, t)
        else:
            actions = most_doubtful(model, positions, mu, config.exploration_candidates, generator)
        belief = model.predict(positions, mu, actions)
        error = world.space.displacement(belief.mean, world.motion(positions, mu, actions)).abs()
        # A thousandth of a cell is forgiven: beyond the city's edge belief and truth agree but for rounding.
        covered.append((error <= radius * belief.epistemic + 1e-3 / world.grid.cells).all(-1))
        taxis.step(actions, mu)
        moves.append(Transitions.of(positions, mu, actions, taxis.positions))
        held_out.append(HeldOut.of_landings(belief, taxis.positions, world.space, tau, world.noise.std))
    coverage = float(torch.cat(covered).float().mean())
    return Observed(moves[0].join(*moves[1:]), HeldOut.join(*held_out), coverage, trips[0].join(*trips[1:]))


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
