"""What a policy is worth: its return against staying put and against what is possible."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from mf_taxi_env.bound import NoBoundError, certified_bound, check_city
from mf_taxi_env.information import kl_divergence
from mf_taxi_env.mdp import MeanFieldMDP, ParticleMDP, Trajectory
from mf_taxi_env.swarm import SwarmMDP
from mf_taxi_env.taxi import TaxiMDP

#: A margin above ``-MARGIN_TOLERANCE`` nats counts as kept: the rounding of an entropy in float32.
MARGIN_TOLERANCE = 1e-6


def score(distributions: Tensor | ArrayLike, mdp: TaxiMDP) -> float:
    """The normalised return of a policy: 0 is staying put, 1 the certified bound.

    ``(R - R_stay) / (R* - R_stay)`` with ``R`` the sum of ``-KL(rho || mu_t)`` over the distributions ``mu_1 .. mu_T`` that the
    policy caused, ``R_stay`` that of staying put in the same world and ``R*`` the constrained bound.

    Args:
        distributions: ``[T, K]``: ``mu_1 .. mu_T``, without the initial one.
        mdp: The world that they happened in.

    Returns:
        The score, at most 1 up to the bound's gap; negative for a policy worse than staying put; NaN when a constraint was
        violated at any step, and where staying put is already the best that is possible.

    Raises:
        BoundExceededError: If no constraint is violated and ``R`` exceeds ``R*`` by more than rounding: something is wrong.
        TypeError: If the world is no :class:`~mf_taxi_env.TaxiMDP`, see :func:`episode_score`; and as
            :func:`~mf_taxi_env.bound.certified_bound`.
        ValueError: If the shape is not ``[T, K]``, or a row is not a distribution; and as for the bound.
    """
    check_city(mdp)
    mu = torch.as_tensor(distributions, device=mdp.device).double()
    if mu.shape != (mdp.horizon, mdp.grid.size):
        raise ValueError(f"distributions must have shape {(mdp.horizon, mdp.grid.size)} (mu_1 .. mu_T), got {tuple(mu.shape)}")
    if bool(mu.isnan().any()):
        return math.nan
    if not bool(((mu.sum(-1) - 1).abs() <= 1e-3).all() and (mu >= 0).all()):
        raise ValueError("distributions must be non-negative and sum to one in every row")
    mu = as_judged(mu)
    if not bool(kept(mdp.margins(mu)).all()):
        return math.nan
    bound = certified_bound(mdp)
    with torch.no_grad():
        staying = as_judged(mdp.rollout(_ConstantField(torch.zeros_like(mdp.centers))).mu[1:])
    earned, stay = demand_match(mu, mdp), demand_match(staying, mdp)
    bound.check(earned)
    if bound.reward - stay <= mdp.horizon * bound.gap:
        return math.nan
    return (earned - stay) / (bound.reward - stay)


def as_judged(mu: Tensor) -> Tensor:
    """Distributions ``[..., K]`` as they are judged: in float64, and of mass one, which masses in float32 only nearly have."""
    masses = mu.double()
    return masses / masses.sum(-1, keepdim=True)


def kept(margins: Tensor) -> Tensor:
    """Whether constraints count as kept where a policy is judged, ``[...]``: margins in nats, best of float64 distributions.

    Above ``-MARGIN_TOLERANCE`` they do; a margin that is no number does not.
    """
    return margins >= -MARGIN_TOLERANCE


def episode_score(episode: Trajectory, mdp: MeanFieldMDP) -> float:
    """The normalised return of an episode, where it is known what is possible: 0 is staying put.

    - In a city: :func:`score`, 1 is the certified bound.
    - In an unconstrained swarm: ``(R - R_stay) / (R_* - R_stay)`` with returns ``R``, of staying put ``R_stay`` and of the
      analytic control ``R_*`` in the same world. That control is the best stationary one in continuous time; with
      finite steps and a finite horizon a policy may exceed 1.

    Args:
        episode: One episode in the true world, without batch dimensions.
        mdp: The world that it happened in.

    Returns:
        The score; NaN when a constraint was violated, and where nobody knows the best policy: in a city whose constraints are
        not all convex or leave the solver without a bound, in a swarm with constraints or without its density term.

    Raises:
        BoundExceededError: As :func:`score`.
        ImportError: If CVXPY is not installed (extra ``bounds``).
        ValueError: If no distribution meets a city's constraints.
    """
    best = possible_return(mdp)
    if math.isnan(best) or not isinstance(mdp, ParticleMDP):
        return math.nan
    if isinstance(mdp, TaxiMDP):
        return score(episode.mu[1:], mdp)
    stay = stay_return(mdp)
    return math.nan if best <= stay else (float(episode.returns) - stay) / (best - stay)


def possible_return(mdp: MeanFieldMDP) -> float:
    """The return that scores 1: the certified bound of a city, the analytic control's of an unconstrained swarm; else NaN.

    Raises:
        ImportError: If CVXPY is not installed (extra ``bounds``).
        ValueError: If no distribution meets a city's constraints.
    """
    if isinstance(mdp, TaxiMDP):
        try:
            return certified_bound(mdp).reward
        except (TypeError, NoBoundError):  # a constraint that is not convex; a solver that is stuck
            return math.nan
    if isinstance(mdp, SwarmMDP) and mdp.density_term and not mdp.constraints:
        return analytic_return(mdp)
    return math.nan


@torch.no_grad()
def stay_return(mdp: ParticleMDP) -> float:
    """The return of staying put, ``a = 0``, from the world's initial distribution."""
    return float(mdp.rollout(_ConstantField(torch.zeros_like(mdp.centers))).returns)


@torch.no_grad()
def analytic_return(mdp: SwarmMDP) -> float:
    """The return of the ergodic solution's control, :meth:`~mf_taxi_env.SwarmMDP.optimal_actions`, from the world's start.

    At 100 cells, 100 steps of 0.01 and with the density term: 194.09 (arXiv 2107.04050).
    """
    return float(mdp.rollout(_ConstantField(mdp.optimal_actions())).returns)


def demand_match(distributions: Tensor, mdp: TaxiMDP) -> float:
    """``R``: the sum of ``-KL(rho_t || mu_{t+1})`` over distributions ``[T, K]`` caused at steps ``0 .. T - 1``, in nats."""
    demand = torch.stack([mdp.demand(t) for t in range(mdp.horizon)]).to(distributions.dtype)
    return -float(kl_divergence(demand, distributions).sum())


@dataclass(frozen=True, eq=False)
class _ConstantField:
    """The same field of actions at every step, ``[K, d]``."""

    actions: Tensor

    def field(self, mu: Tensor, t: int) -> Tensor:
        return self.actions
