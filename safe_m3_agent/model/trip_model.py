"""Where passengers go, learned from the trips of representative taxis: a gravity model with its Laplace posterior."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mf_taxi_env.checks import finite_number, plain_numbers, whole_number
from mf_taxi_env.grid import Grid
from mf_taxi_env.mdp import ParticleMDP
from mf_taxi_env.scenarios.city import box_km
from mf_taxi_env.taxi import TaxiMDP
from safe_m3_agent.model.trip_calibration import TripCalibration
from safe_m3_agent.transitions import Trips

#: Newton steps per fit, and halvings of each; the posterior's logarithm is strictly concave, and a handful is enough.
NEWTON_STEPS, HALVINGS = 30, 20
#: Half the squared Newton decrement, in nats, at which the mode is found.
TOLERANCE = 1e-9
#: Demand, in units of the uniform one, below which cells are equally unattractive as far as demand tells.
LEAST_DEMAND = 0.1
#: Unit of distances in the decay, in sides of the city.
DISTANCE_UNIT = 0.25


@dataclass(frozen=True)
class TripConfig:
    """Prior and confidence set of the learned trips. Scales are prior standard deviations, in nats.

    Attributes:
        members: Trip matrices sampled from the posterior, ``E``, at least 2: the confidence set is what they span.
        beta: Half-width of the confidence set in posterior standard deviations, at least 0; widened for the number of members
            as that of the motion is, and the least width where the agent calibrates.
        attraction_scale: Of a cell's attraction, beyond what its demand says of it; positive.
        attraction_length: Distance, in sides of the city, at which attractions correlate by ``1 / e``; positive.
        demand_scale: Of the exponent of a cell's demand in its attraction; positive. It is about 1 where people leave the
            places that they went to.
        decay_scale: Of the coefficients of the distance; positive.
    """

    members: int = 20
    beta: float = 3.5
    attraction_scale: float = 1.0
    attraction_length: float = 0.3
    demand_scale: float = 1.0
    decay_scale: float = 5.0

    def __post_init__(self) -> None:
        plain_numbers(self)
        whole_number("trips.members", self.members, least=2)
        finite_number("trips.beta", self.beta)
        for name in ("attraction_scale", "attraction_length", "demand_scale", "decay_scale"):
            finite_number(f"trips.{name}", getattr(self, name), positive=True)


class TripModel:
    """The singly constrained gravity model (Wilson 1971) as a multinomial logit, ``Phi[c, d] ~ exp(a_d + w . x(c, d))``.

    ``x`` is what distance does: its logarithm, itself, and whether a trip stays in its cell, so ``w`` bends a power law into
    an exponential one. A cell's attraction ``a = g + b log rho`` is a Gaussian process ``g`` over the city, of covariance
    ``scale^2 exp(-distance / length)`` (rough: neighbouring cells may differ), and a share of the known demand ``rho``. The
    logarithm of the posterior is strictly concave; Newton's method finds its mode, and its curvature there is the precision
    of the Gaussian that stands for it (Laplace; MacKay 2003, *Information Theory, Inference and Learning Algorithms*, Ch. 27).
    At the mode of a flat prior as many trips into each cell are expected, from where they were seen to start, as were seen.

    ``E`` parameters ``theta_e`` are sampled about the mode ``theta``, from draws that are kept for a whole run. They span the
    plausible trips, ``theta + sum_e z_e (theta_e - mean) / sqrt(E - 1)`` with ``|z| <= r``, as the members of a motion model
    span plausible motions. Mixing parameters, not matrices, keeps every ``Phi_z`` a gravity model: rows sum to one, and none
    of their entries is negative, however far ``z`` leads.

    The prior of a calibrated model is as wide as the trips ask for, ``tau`` times its scales
    (:class:`~safe_m3_agent.model.trip_calibration.TripCalibration`).

    Dense: a matrix of ``K x K`` per plausible world, and ``O(K^3)`` per Newton step.

    Args:
        config: Prior and confidence set.
        grid: The city's cells.
        demand: ``rho``, ``[K]``.
        sides: Width and height of the city, in any unit of length.
        generator: Source of the draws.
        calibration: Widens prior and confidence set where they are too narrow; None keeps them as configured.
    """

    def __init__(
        self,
        config: TripConfig,
        grid: Grid,
        demand: Tensor,
        sides: tuple[float, float],
        generator: torch.Generator,
        calibration: TripCalibration | None = None,
    ) -> None:
        self.config = config
        self.members = config.members
        self._calibration = calibration
        #: Half-width of the confidence set in posterior standard deviations, at least the configured one.
        self.beta = config.beta if calibration is None else calibration.width(config.beta)
        #: Factor by which the prior is wider than configured; nothing speaks against any before a trip has been seen.
        self.tau = 1.0 if calibration is None else calibration.factor(lambda tau: 0.0)
        self._dtype = demand.dtype
        cells = grid.centers(dtype=torch.float64, device=demand.device)
        self._distance = _distance_features(cells * cells.new_tensor(sides), grid.cells, sides)
        self._root = self._prior_root(cells, demand.double())
        size = self._root.shape[1] + len(self._distance)
        self._draws = torch.randn(self.members, size, generator=generator, dtype=torch.float64, device=demand.device)
        #: The posterior's mode [P] and deviations of the members [E, P], in parameters of which the configured prior is
        #: standard normal, and the one gone by normal of standard deviation tau.
        self._mode, self._deviations = self._draws.new_zeros(size), self.tau * self._draws
        #: All trips so far.
        self.trips = Trips.empty(demand.device)
        self._settle()

    def _prior_root(self, cells: Tensor, demand: Tensor) -> Tensor:
        """``R`` ``[K, K + 1]``: attractions are ``R v`` with a standard normal ``v``."""
        covariance = (-torch.cdist(cells, cells) / self.config.attraction_length).exp()
        known = (demand + LEAST_DEMAND / len(demand)).log()
        known = self.config.demand_scale * (known - known.mean())
        process: Tensor = self.config.attraction_scale * torch.linalg.cholesky(covariance)
        return torch.cat([process, known.unsqueeze(1)], 1)

    # -- prediction -------------------------------------------------------------------------------------------------------

    def probabilities(self, z: Tensor | None = None) -> Tensor:
        """Trip probabilities, rows = origins.

        Args:
            z: Directions ``[..., E]`` of plausible trips, differentiable; None for the mode.

        Returns:
            Row-stochastic matrices ``[..., K, K]``, ``[K, K]`` for the mode.
        """
        parameters = self._theta if z is None else self._theta + z @ self._spread
        size = self._logits.shape[-1]
        decay = (parameters[..., size:] @ self._logits.flatten(1)).unflatten(-1, (size, size))
        probabilities: Tensor = (decay + parameters[..., None, :size]).softmax(-1)
        return probabilities

    @torch.no_grad()
    def metrics(self, city: TaxiMDP) -> dict[str, float]:
        """What is known of trips, and how well, by name.

        ``observed`` is the number of trips seen. With passengers who start where the demand is, ``doubt`` is the share whom a
        member takes elsewhere than the mode does, the members' mean, and ``error`` the share whom the mode takes elsewhere
        than the truth: a diagnostic that the agent does not see. ``tau`` is the factor by which the prior was
        widened.

        Args:
            city: The true world.
        """
        served = city.demand(0)
        nominal = served @ self.probabilities()
        members = math.sqrt(self.members - 1) * torch.eye(self.members, dtype=self._dtype, device=served.device)
        plausible = torch.stack([served @ self.probabilities(z) for z in members])
        doubt = 0.5 * (plausible - nominal).abs().sum(-1).mean()
        error = 0.5 * (served @ city.trips(0) - nominal).abs().sum()
        return {"observed": float(self.trips.size), "doubt": float(doubt), "error": float(error), "tau": self.tau}

    # -- learning ---------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def fit(self, trips: Trips) -> None:
        """Learn from further trips: about where they go, and how wide the prior has to be."""
        self.trips = self.trips.join(trips)
        fits: dict[float, tuple[Tensor, Tensor]] = {}

        def evidence(tau: float) -> float:
            self.tau = tau
            fits[tau] = self._to_the_mode()
            return self._log_evidence(fits[tau][1])

        if self._calibration is None:
            evidence(self.tau)
        else:
            self.tau = self._calibration.factor(evidence)
        self._mode, factor = fits[self.tau]
        # Of a triangular root of the precision, which changes little from fit to fit: so do the members.
        deviations: Tensor = torch.linalg.solve_triangular(factor.mT, self._draws.mT, upper=True).mT
        self._deviations = deviations.contiguous()
        self._settle()

    def state(self) -> dict[str, Tensor]:
        """Everything learned, as named tensors."""
        mine = {
            "draws": self._draws,
            "mode": self._mode,
            "deviations": self._deviations,
            "tau": self._draws.new_tensor(self.tau),
        }
        return {**mine, **self.trips._asdict()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take over what :meth:`state` gave."""
        self._draws, self._mode, self._deviations = (state[name].clone() for name in ("draws", "mode", "deviations"))
        self.tau = float(state["tau"])
        self.trips = Trips(state["origins"], state["destinations"])
        self._settle()

    def _to_the_mode(self) -> tuple[Tensor, Tensor]:
        """Newton's method from where the mode was: the mode, and the Cholesky factor of the precision there."""
        for _ in range(NEWTON_STEPS):
            gradient, factor = self._curvature()
            step = torch.cholesky_solve(gradient.unsqueeze(1), factor).squeeze(1)
            if float(gradient @ step) <= 2.0 * TOLERANCE or not self._ascend(step):
                return self._mode, factor
        return self._mode, self._curvature()[1]

    def _log_evidence(self, factor: Tensor) -> float:
        """Laplace's logarithm of the probability of all trips, given their origins, under the prior of factor ``tau``."""
        volume = len(self._mode) * math.log(self.tau) + float(factor.diagonal().log().sum())
        return self._log_posterior(self._mode) - volume

    def _ascend(self, step: Tensor) -> bool:
        """Go along a Newton step, shortened until the posterior rises; whether it did."""
        before = self._log_posterior(self._mode)
        for halving in range(HALVINGS):
            candidate = self._mode + 0.5**halving * step
            if self._log_posterior(candidate) > before:
                self._mode = candidate
                return True
        return False

    def _log_posterior(self, mode: Tensor) -> float:
        logits = self._logits_of(mode)
        origins, destinations = self.trips
        fit = (logits[origins, destinations] - logits.logsumexp(-1)[origins]).sum()
        return float(fit - 0.5 * mode.square().sum() / self.tau**2)

    def _curvature(self) -> tuple[Tensor, Tensor]:
        """Gradient ``[P]`` of the posterior's logarithm at the mode, and the Cholesky factor of minus its Hessian."""
        root, distance = self._root, self._distance
        seen = torch.bincount(self.trips.origins, minlength=len(root)).double()
        arrived = torch.bincount(self.trips.destinations, minlength=len(root)).double()
        probabilities = self._logits_of(self._mode).softmax(-1)
        expected = seen.unsqueeze(1) * probabilities
        mean = (probabilities * distance).sum(-1, keepdim=True)
        residual = distance[:, self.trips.origins, self.trips.destinations] - mean[:, self.trips.origins, 0]
        gradient = torch.cat([root.mT @ (arrived - expected.sum(0)), self.config.decay_scale * residual.sum(1)])
        gradient -= self._mode / self.tau**2
        centred = self.config.decay_scale * (distance - mean)
        weighted = expected * centred
        attraction = root.mT @ (expected.sum(0).diag() - probabilities.mT @ expected) @ root
        mixed = root.mT @ weighted.sum(1).mT
        decay = weighted.flatten(1) @ centred.flatten(1).mT
        hessian = torch.cat([torch.cat([attraction, mixed], 1), torch.cat([mixed.mT, decay], 1)])
        hessian.diagonal().add_(self.tau**-2)  # the prior's
        factor: Tensor = torch.linalg.cholesky(hessian)
        return gradient, factor

    def _parameters(self, whitened: Tensor) -> Tensor:
        """Attractions and coefficients of the distance ``[..., K + J]`` of parameters ``[..., P]``."""
        process = self._root.shape[1]
        return torch.cat([whitened[..., :process] @ self._root.mT, self.config.decay_scale * whitened[..., process:]], -1)

    def _logits_of(self, whitened: Tensor) -> Tensor:
        parameters, size = self._parameters(whitened), len(self._root)
        return parameters[:size] + (parameters[size:] @ self._distance.flatten(1)).view(size, size)

    def _settle(self) -> None:
        """What predictions need, in the world's type."""
        self._logits = self._distance.to(self._dtype)
        self._theta = self._parameters(self._mode).to(self._dtype)
        deviations = (self._deviations - self._deviations.mean(0)) * (self.members - 1) ** -0.5
        self._spread = self._parameters(deviations).to(self._dtype)


def make_trip_model(
    config: TripConfig, world: ParticleMDP, generator: torch.Generator, calibration: TripCalibration | None = None
) -> TripModel:
    """A model of the trips of a city, of which only map and demand are looked at.

    Args:
        config: Prior and confidence set.
        world: The city.
        generator: Source of the draws.
        calibration: Of prior and confidence set; None for none.

    Raises:
        ValueError: If the world has no trips, or trips that change during the day.
    """
    if not isinstance(world, TaxiMDP):
        raise ValueError(f"learn_trips needs a world with trips, a TaxiMDP, got a {type(world).__name__}")
    steps = len(world.scenario.trip_steps)
    if steps > 1 and world.horizon > 1:
        raise ValueError(f"learn_trips needs trips that are the same at all steps, got a scenario with {steps} of them")
    demand = torch.stack([world.demand(t) for t in range(world.horizon)]).mean(0)
    return TripModel(config, world.grid, demand, box_km(world.scenario.box), generator, calibration)


def _distance_features(cells: Tensor, per_axis: int, sides: tuple[float, float]) -> Tensor:
    """What distance does to trips, ``[J, K, K]``, between cells with centres ``[K, 2]``.

    The distance is the root mean square of those between points of the two cells, so it is positive within a cell.
    """
    within = sum((side / per_axis) ** 2 for side in sides) / 6.0
    distance = (torch.cdist(cells, cells, compute_mode="donot_use_mm_for_euclid_dist").square() + within).sqrt()
    distance = distance / (DISTANCE_UNIT * math.sqrt(sides[0] * sides[1]))
    return torch.stack([distance.log(), distance, torch.eye(len(cells), dtype=cells.dtype, device=cells.device)])
