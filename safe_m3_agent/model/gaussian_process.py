"""A Gaussian process per axis, exact or sparse, behind the interface of models: it believes what its sampled functions do."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from mf_taxi_env.checks import finite_number, plain_numbers, whole_number
from mf_taxi_env.grid import Grid
from safe_m3_agent.model.dynamics_model import Belief, DynamicsModel
from safe_m3_agent.model.edge_sites import clear_landings, propagate
from safe_m3_agent.model.inputs import MotionInputs
from safe_m3_agent.model.posterior import LinearPlusRBF, Observations, greedy_inducing
from safe_m3_agent.model.sampled_functions import Draws, SampledFunctions, sample_posterior
from safe_m3_agent.transitions import Transitions

GPKind = Literal["exact", "sparse"]

#: Sweeps of expectation propagation before hyperparameters are learned, and after; old transitions start where they were.
SWEEPS = 3
#: Unexplained prior variance, in variances of the noise, at which no more inducing inputs are needed.
UNEXPLAINED = 1e-3
#: Learned noise stays within this factor of the world's, either way.
NOISE_RANGE = 10.0


@dataclass(frozen=True)
class GPConfig:
    """Kind, priors and learning of the Gaussian process (arXiv 2306.17052, Section 3.2).

    Attributes:
        kind: ``"sparse"`` costs ``O(n m^2)`` for ``n`` transitions and ``m`` inducing inputs; ``"exact"`` ``O(n^3)``, and its
            predictions ``O(n)`` in place of ``O(m)``: for a few hundred transitions.
        inducing: Most inducing inputs of the sparse kind.
        members: Sampled functions ``E``, at least 2: they span the certificate's ellipsoid, and their spread is the epistemic
            uncertainty.
        features: Random cosines that the functions are made of where there are no data.
        steps: Steps of Adam on the hyperparameters per fit, from the last ones on.
        subset: Transitions at most, spread evenly over all, that the exact kind learns hyperparameters from: a step costs
            ``O(n^3)``. What it believes given the hyperparameters takes all of them into account.
        learning_rate: Of Adam, on the logarithms of the hyperparameters.
        linear_scale: Prior standard deviation of the linear part's coefficients.
        residual_scale: Median of the prior of the residual's standard deviation, in sides of the unit square: small, for motion
            is nearly linear in the action. It is never learned to be less than a third of this.
        lengthscale: Median of the prior of the residual's length scales, in standard deviations of a uniform input.
        learn_noise: Learn the noise's level, one per axis, for likelihood and calibration; the learned world keeps the known
            one. It comes out some percent low.
    """

    kind: GPKind = "sparse"
    inducing: int = 64
    members: int = 20
    features: int = 128
    steps: int = 10
    subset: int = 250
    learning_rate: float = 0.1
    linear_scale: float = 1.0
    residual_scale: float = 0.06
    lengthscale: float = 1.5
    learn_noise: bool = False

    def __post_init__(self) -> None:
        plain_numbers(self)
        if self.kind not in get_args(GPKind):
            raise ValueError(f"gp.kind must be one of {get_args(GPKind)}, got {self.kind!r}")
        for name, least in (("inducing", 1), ("members", 2), ("features", 1), ("steps", 0), ("subset", 1)):
            whole_number(f"gp.{name}", getattr(self, name), least)
        for name in ("learning_rate", "linear_scale", "residual_scale", "lengthscale"):
            finite_number(f"gp.{name}", getattr(self, name), positive=True)


class GaussianProcess(DynamicsModel):
    """Independent processes per axis predict ``destination - s`` from ``s``, ``a`` and the density ``log(1 + K mu'(c(s)))``.

    The kernel is linear plus squared-exponential with a length scale per input. Members are functions sampled from the
    posterior, shifted so that they average to its mean, each clipped to the city; belief is theirs, as the ensemble's is its
    members'. The squares of the deviations therefore sum to the squared epistemic uncertainty exactly, and a plausible motion
    never leaves the confidence set; with the exact posterior's variance in its place it could.

    The likelihood is the world's, a Gaussian about the clipped destination, truncated to the city. Near the edge, where a plain
    process would be biased inwards, and too sure of how far beyond the edge a motion leads, landings enter as the Gaussian
    sites of expectation propagation, see :mod:`~safe_m3_agent.model.edge_sites`.

    Hyperparameters are learned by GPyTorch; computations of a fit are in float64.

    Args:
        config: Kind, priors and learning.
        grid: The world's grid.
        noise_std: The world's noise level.
        generator: Source of the functions' random numbers, on ``device``.
        dtype: Floating-point type of predictions.
        device: Device.

    Raises:
        ImportError: If GPyTorch is not installed.
    """

    def __init__(
        self,
        config: GPConfig,
        grid: Grid,
        noise_std: float,
        generator: torch.Generator,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        from safe_m3_agent.model import marginal_likelihood

        self._learn_hyperparameters = marginal_likelihood.learn_hyperparameters
        self.config = config
        self.members = config.members
        self.noise_std = noise_std
        self._dtype = dtype
        self._inputs = MotionInputs(grid, dtype, device)
        d, width = grid.dimension, self._inputs.width

        def full(value: float, *shape: int) -> Tensor:
            return torch.full(shape, value, dtype=torch.float64, device=device)

        self._prior = LinearPlusRBF(config.linear_scale, full(config.residual_scale, d), full(config.lengthscale, d, width))
        self._kernel = self._prior
        self._noise = full(noise_std, d)
        self._draws = Draws.of(d, width, config.features, config.members, generator)
        self._values, self._variance = full(0.0, d, 0), full(0.0, d, 0)
        self._functions = self._sampled(Observations(full(0.0, 0, width), self._values, self._variance), None)

    # -- prediction -------------------------------------------------------------------------------------------------------

    def predict(self, positions: Tensor, mu: Tensor, actions: Tensor) -> Belief:
        displacements = self._functions(self._inputs(positions, mu, actions).flatten(0, -2))
        destinations = (positions.expand_as(actions).flatten(0, -2) + displacements).clamp(0.0, 1.0)
        return Belief.of_members(destinations, self._noise.to(self._dtype), actions.shape)

    # -- learning ---------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def fit(self, data: Transitions, generator: torch.Generator) -> None:
        self._draws = self._draws.extended(data.size, generator)
        if data.size == 0:
            return
        inputs = self._inputs.of_moves(data).double()
        start, landing = data.positions.mT.double(), data.next_positions.mT.double()
        inducing = self._inducing(inputs)
        sites = self._propagated(self._started(inputs, start, landing), start, landing, inducing)
        with torch.enable_grad():
            self._kernel, noise = self._learn_hyperparameters(
                self._kernel,
                self._noise,
                self._prior,
                self._learned_from(sites),
                inducing,
                steps=self.config.steps,
                learning_rate=self.config.learning_rate,
                learn_noise=self.config.learn_noise,
            )
        self._noise = noise.clamp(self.noise_std / NOISE_RANGE, self.noise_std * NOISE_RANGE)
        inducing = self._inducing(inputs)  # of the kernel and the noise as they are now
        sites = self._propagated(sites, start, landing, inducing)
        self._values, self._variance = sites.values, sites.variance
        self._functions = self._sampled(sites, inducing)

    def _started(self, inputs: Tensor, start: Tensor, landing: Tensor) -> Observations:
        """Sites as they were left, and those of new transitions."""
        known = self._values.shape[1]
        values, variance = clear_landings(landing[:, known:], self._noise.unsqueeze(-1))
        values = torch.cat([self._values, values - start[:, known:]], 1)
        return Observations(inputs, values, torch.cat([self._variance, variance], 1))

    def _propagated(self, sites: Observations, start: Tensor, landing: Tensor, inducing: Tensor | None) -> Observations:
        return propagate(self._kernel, sites, start, landing, self._noise.unsqueeze(-1), inducing, SWEEPS)

    def _learned_from(self, sites: Observations) -> Observations:
        if self.config.kind == "sparse":
            return sites
        every = math.ceil(len(sites.inputs) / self.config.subset)
        return Observations(sites.inputs[::every], sites.values[:, ::every], sites.variance[:, ::every])

    def _inducing(self, inputs: Tensor) -> Tensor | None:
        if self.config.kind == "exact":
            return None
        tolerance = UNEXPLAINED * float(self._noise.square().sum())
        return greedy_inducing(self._kernel, inputs, self.config.inducing, tolerance)

    def _sampled(self, seen: Observations, inducing: Tensor | None) -> SampledFunctions:
        functions = sample_posterior(self._kernel, seen, inducing, self._draws)
        # Contiguous copies, as a loaded checkpoint's are: another layout would round differently.
        return SampledFunctions(*(part.to(self._dtype, copy=True, memory_format=torch.contiguous_format) for part in functions))

    # -- state ------------------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Tensor]:
        return {
            "residual": self._kernel.residual,
            "lengthscale": self._kernel.lengthscale,
            "noise": self._noise,
            "sites.values": self._values,
            "sites.variance": self._variance,
            **{f"draws.{name}": value for name, value in self._draws._asdict().items()},
            **{f"functions.{name}": value for name, value in self._functions._asdict().items()},
        }

    def load_state(self, state: dict[str, Tensor]) -> None:
        self._kernel = LinearPlusRBF(self.config.linear_scale, state["residual"].clone(), state["lengthscale"].clone())
        self._noise = state["noise"].clone()
        self._values, self._variance = state["sites.values"].clone(), state["sites.variance"].clone()
        self._draws = Draws(*(state[f"draws.{name}"].clone() for name in Draws._fields))
        self._functions = SampledFunctions(*(state[f"functions.{name}"].clone() for name in SampledFunctions._fields))
