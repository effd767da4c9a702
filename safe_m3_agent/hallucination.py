"""The learned world with hallucinated control: a mean-field MDP in which planners work, with no way to the true motion."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Never

import torch
from torch import Tensor

from mf_taxi_env.checks import whole_number
from mf_taxi_env.mdp import Field, MeanFieldMDP, Move, ParticleMDP
from mf_taxi_env.safety import Constraint, scatter
from mf_taxi_env.taxi import TaxiMDP
from safe_m3_agent.confidence import Confidence
from safe_m3_agent.model.dynamics_model import DynamicsModel
from safe_m3_agent.model.trip_model import TripModel
from safe_m3_agent.tangent import Tangent, applied
from safe_m3_agent.tightening import LipschitzConfig, lemma2_tightening

#: Standard deviations of a finite fleet's margins that plans and certificates keep: a Gaussian falls lower once in 4,300 times.
FLEET_DEVIATIONS = 3.5


@dataclass(frozen=True)
class UnknownMotion:
    """Stands where the true motion stood, and refuses to move anyone."""

    def __call__(self, positions: Tensor, mu: Tensor, actions: Tensor) -> Never:
        raise RuntimeError("the true motion is not known here: plan in a HallucinatedMDP")


class HallucinatedMDP(MeanFieldMDP):
    """The world as the agent knows it: its noise, reward, constraints and demand, a learned motion, and true or learned trips.

    An action is ``(a, eta)`` per cell: the policy's action and the hallucinated control that picks, within the confidence
    set, where it leads: ``m(z) + beta sigma_e(z) eta`` with ``z = (s, mu', a)`` (arXiv 2306.17052, Eq. 7, diagonal case;
    ``sigma_e`` is the epistemic standard deviation), clipped to a city or wrapped on a ring. A plain action ``a`` stands for
    ``eta = 0``, the nominal world.

    Args:
        world: The known parts of the world. Its motion is dropped, and its trips are where they are learned: nothing of this
            object leads to them.
        model: The learned motion.
        beta: Half-width of the confidence set in epistemic standard deviations, at least 0, or all that there is to say of it.
        trips: The learned trips of a city; None where the true ones are known.
        trip_beta: The same of their confidence set, in posterior standard deviations; None for the half-width of ``trips``.

    Raises:
        ValueError: If ``beta`` is out of range, or trips are given for a world that is not a city.
    """

    def __init__(
        self,
        world: ParticleMDP,
        model: DynamicsModel,
        beta: float | Confidence,
        trips: TripModel | None = None,
        trip_beta: float | Confidence | None = None,
    ) -> None:
        confidence = _confidence(beta)
        super().__init__(
            world.grid,
            horizon=world.horizon,
            action_dim=2 * world.action_dim,
            constraints=world.constraints,
            dtype=world.dtype,
            device=world.device,
        )
        self._world = world.with_motion(UnknownMotion())
        self.space = world.space
        self.trips = trips
        self.model = model
        #: Half-width of the motion's confidence set in epistemic standard deviations.
        self.beta = confidence.width
        #: Members and radius of each confidence set: the motion's, and the trips' where they are learned.
        self.doubts = [(model.members, confidence.radius(model.members))]
        if trips is not None:
            self._world = self._carrying(trips.probabilities())
            of_trips = _confidence(trips.beta if trip_beta is None else trip_beta)
            self.doubts.append((trips.members, of_trips.radius(trips.members)))
        self._z: Tensor | None = None
        self._tangent: list[Tangent] | None = None
        self._forms: dict[int, Tensor] = {}  # of the tangent, in this world's direction, as far as they were needed
        self._steps_of_doubt: Tensor | None = None
        self._taxis = 0

    @property
    def exact(self) -> bool:
        """Whether motion and trips are the true ones, so that there is nothing to doubt."""
        return self.model.exact and self.trips is None

    @property
    def directions(self) -> int:
        """Length of a direction of :meth:`plausible`: the members of all confidence sets."""
        return sum(members for members, _ in self.doubts)

    def _carrying(self, trips: Tensor) -> TaxiMDP:
        if not isinstance(self._world, TaxiMDP):
            raise ValueError(f"trips can be learned of a TaxiMDP, got a {type(self._world).__name__}")
        return self._world.with_trips(trips)

    def initial(self, batch: Sequence[int] = ()) -> Tensor:
        return self._world.initial(batch)

    def shift(self, mu: Tensor, t: int = 0) -> Tensor:
        return self._world.shift(mu, t)

    def reward(self, mu: Tensor, actions: Tensor, next_mu: Tensor, t: int = 0) -> Tensor:
        return self._world.reward(mu, actions[..., : self._world.action_dim], next_mu, t)

    def target(self, t: int = 0) -> Tensor | None:
        return self._world.target(t)

    def target_kl(self, mu: Tensor, t: int = 0, log_mu: Tensor | None = None) -> Tensor:
        return self._world.target_kl(mu, t, log_mu)

    def move(self, mu: Tensor, actions: Tensor, t: int = 0) -> Move:
        if self._z is not None:
            batch = torch.broadcast_shapes(actions.shape[:-2], self._z.shape[:-1])
            actions = actions.expand(*batch, *actions.shape[-2:])
        moves, eta = actions[..., : self._world.action_dim], actions[..., self._world.action_dim :]
        if self.model.exact:
            destinations = self.model.predict(self._world.centers, mu, moves).mean
            return Move(self._world.noise.push_forward(mu, destinations), mu.new_zeros(destinations.shape[:-2]))
        destinations, epistemic = self._believed(mu, moves, t)
        if eta.shape[-1]:
            destinations = destinations + self.beta * epistemic * eta
        destinations = self.space.admissible(destinations)
        if self._steps_of_doubt is None:
            uncertainty = (mu * epistemic.square().sum(-1).clamp_min(1e-20).sqrt()).sum(-1)
        else:
            uncertainty = self._steps_of_doubt[t].expand(destinations.shape[:-2])
        return Move(self._world.noise.push_forward(mu, destinations), uncertainty)

    def _believed(self, mu: Tensor, moves: Tensor, t: int) -> tuple[Tensor, Tensor]:
        """Destinations in the motion of this world, before they are made admissible, and epistemic deviations."""
        if self._tangent is not None:
            step = self._tangent[t]
            away = step.away(self.grid, mu, moves)
            return applied(self._form(t, step), away), step.epistemic(away)
        belief = self.model.predict(self._world.centers, mu, moves)
        if self._z is None:
            return belief.mean, belief.epistemic
        return belief.mean + (self._z.movedim(-1, 0)[..., None, None] * belief.deviations).sum(0), belief.epistemic

    def _form(self, t: int, step: Tangent) -> Tensor:
        """The form of this world's motion at step ``t``; kept, unless a direction is differentiated by: a graph serves once."""
        if self._z is not None and self._z.requires_grad:
            return step.among(self._z)
        if t not in self._forms:
            self._forms[t] = step.among(self._z)
        return self._forms[t]

    @torch.no_grad()
    def near(self, policy: Field) -> HallucinatedMDP:
        """The same world with its motion linearised about the episode that ``policy`` has in the nominal world.

        Near that episode its motions, and what is not known of them, are those of this world to first order in actions and
        densities. A rollout costs next to nothing however expensive the model is. Where the model is exact, this very world.
        """
        if self.model.exact:
            return self
        world = copy.copy(self)
        world._tangent, world._forms, mu = [], {}, self.initial()
        for t in range(self.horizon):
            shifted = self.shift(mu, t)
            actions = policy.field(shifted, t)[..., : self._world.action_dim]
            step = Tangent.of(self.model, self.grid, self._world.centers, shifted, actions, self.space)
            world._tangent.append(step)
            mu = self._world.noise.push_forward(shifted, self.space.admissible(step.mean[0].mT))
        return world

    def plausible(self, z: Tensor) -> HallucinatedMDP:
        """The world in which the motion is another one of the confidence set, the same function at every place and step; and,
        where they are learned, the trips others of theirs (:class:`~safe_m3_agent.model.trip_model.TripModel`).

        ``m(x) + sum_e z_e (f_e(x) - m(x)) / sqrt(E - 1)`` with ``|z| <= r`` stays within ``r`` epistemic standard deviations of
        the mean everywhere (Cauchy-Schwarz), and it errs at different places as the members do, together. The
        least of a functional that is linear in the motion, over all such ``z``, is its mean less ``r`` of its standard
        deviations.

        Args:
            z: Directions ``[..., E]``, those of the motion first and then those of learned trips, :attr:`directions` in all;
                their batch dimensions become those of a rollout.
        """
        world = copy.copy(self)
        world._z = z
        if self.trips is not None:
            world._z, others = z.split([self.model.members, self.trips.members], -1)
            world._world = self._carrying(self.trips.probabilities(others))
        world._forms = {}
        return world

    def with_lemma2(self, lipschitz: LipschitzConfig) -> HallucinatedMDP:
        """The same world, whose uncertainty sums to the tightening of Lemma 2 (arXiv 2306.17052) along an episode.

        What tightens a plan's constraints is the sum of :attr:`Move.uncertainty` so far; a planner need not know which one.

        Args:
            lipschitz: What Lemma 2 assumes.
        """
        world = copy.copy(self)
        reached = lemma2_tightening(self.largest_uncertainty(), self.horizon, self.beta, lipschitz)
        world._steps_of_doubt = reached.diff(prepend=reached.new_zeros(1))
        return world

    def for_fleet(self, taxis: int) -> HallucinatedMDP:
        """The same world, whose margins are those that a finite fleet keeps with near certainty.

        From each margin what :func:`fleet_reserve` says is taken. It is what is left once the bias of an empirical entropy is
        corrected (:func:`mf_taxi_env.finite_samples.corrected_margins`).

        Args:
            taxis: ``m``, at least 1.

        Raises:
            ValueError: If there are no taxis, or a constraint cannot say how its margin scatters.
        """
        world = copy.copy(self)
        world._taxis = whole_number("taxis", taxis, least=1)
        scatter(self.constraints, self.initial())  # one that cannot say so is to be named here
        return world

    def margins(self, mu: Tensor, log_mu: Tensor | None = None) -> Tensor:
        margins = self._world.margins(mu, log_mu)
        if not self._taxis:
            return margins
        return margins - fleet_reserve(self.constraints, mu, self._taxis)

    @torch.no_grad()
    def largest_uncertainty(self) -> Tensor:
        """Largest norm of the epistemic standard deviation, ``[]``: from cell centres, for the actions ``{-1, 0, 1}^d``.

        In the distribution at the start: the largest one over all distributions cannot be computed.
        """
        sides = self.initial().new_tensor([-1.0, 0.0, 1.0])
        d = self._world.action_dim
        actions = torch.cartesian_prod(*[sides] * d).view(-1, 1, d).expand(-1, self.grid.size, d)
        belief = self.model.predict(self._world.centers, self.shift(self.initial()), actions)
        return belief.epistemic.square().sum(-1).sqrt().max()


def fleet_reserve(constraints: Sequence[Constraint], mu: Tensor, taxis: int) -> Tensor:
    """By how much the margins of a finite fleet scatter below those of the mean field, ``[..., n_constraints]``.

    ``FLEET_DEVIATIONS`` standard deviations ``sqrt(V(mu) / m)``, with the variance ``V`` for one taxi, see
    :func:`mf_taxi_env.safety.scatter`: of one margin at one step.

    Args:
        constraints: They have to be able to say how their margins scatter.
        mu: Distributions ``[..., K]``.
        taxis: ``m``, at least 1.
    """
    return FLEET_DEVIATIONS / math.sqrt(taxis) * scatter(constraints, mu)


def _confidence(beta: float | Confidence) -> Confidence:
    return beta if isinstance(beta, Confidence) else Confidence(beta)


class HallucinatedField:
    """A policy together with a hallucinated control: the field of ``(a, eta)``.

    Args:
        policy: The policy.
        eta: Hallucinated control at the cell centres in ``[-1, 1]``, ``[..., K, d]``, the same at all steps.
    """

    def __init__(self, policy: Field, eta: Tensor) -> None:
        self.policy = policy
        self.eta = eta

    def field(self, mu: Tensor, t: int) -> Tensor:
        actions = self.policy.field(mu, t)
        shape = torch.broadcast_shapes(actions.shape, self.eta.shape)
        return torch.cat([actions.expand(shape), self.eta.expand(shape)], -1)
