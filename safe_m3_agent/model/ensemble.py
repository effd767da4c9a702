"""A probabilistic ensemble of small networks: all members in one batched matrix product, mean heads solved exactly."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mf_taxi_env.checks import finite_number, plain_numbers, whole_number
from mf_taxi_env.grid import Grid
from mf_taxi_env.space import CUBE, Space
from safe_m3_agent.model import truncated_likelihood, wrapped_likelihood
from safe_m3_agent.model.dynamics_model import Belief, DynamicsModel
from safe_m3_agent.model.inputs import MotionInputs
from safe_m3_agent.model.likelihood import Likelihood
from safe_m3_agent.transitions import Transitions

#: Steps of iteratively reweighted least squares from each start; it has settled long before.
SCORING_STEPS = 5


@dataclass(frozen=True)
class EnsembleConfig:
    """Size, priors and training of the ensemble (arXiv 2306.17052, Appendix C.1, where not said otherwise).

    Attributes:
        members: ``E``, at least 2: their spread is the epistemic uncertainty.
        hidden: Widths of the two hidden layers, leaky ReLU.
        steps: Mini-batch steps of Adam per fit, over all rounds.
        rounds: Rounds of a fit: each is Adam steps, then an exact solution of the mean head, then a look at the held-out
            transitions.
        batch_size: Transitions per step.
        learning_rate: Of Adam.
        validation: Share of the transitions that each member holds out for early stopping, in ``[0, 1)``.
        linear_scale: Prior standard deviation of the linear path's coefficients, in units of the world's ``reach``.
        density_scale: Prior standard deviation of the linear path's coefficient of the local density, in the same units. Where
            the fleet has never been spread unevenly no data speak of it, and it is all that is known.
        residual_scale: Prior standard deviation of the hidden units' coefficients: small, for motion is nearly linear in the
            action.
        learn_noise: Learn a variance head, for likelihood and calibration; the learned world keeps the world's known noise,
            within a factor of ten of which the head stays.
    """

    members: int = 10
    hidden: tuple[int, int] = (16, 16)
    steps: int = 150
    rounds: int = 2
    batch_size: int = 256
    learning_rate: float = 3e-3
    validation: float = 0.1
    linear_scale: float = 1.0
    density_scale: float = 1.0
    residual_scale: float = 0.03
    learn_noise: bool = False

    def __post_init__(self) -> None:
        plain_numbers(self)
        for name, least in (("members", 2), ("steps", 0), ("rounds", 0), ("batch_size", 1)):
            whole_number(f"ensemble.{name}", getattr(self, name), least)
        if len(self.hidden) != 2:
            raise ValueError(f"ensemble.hidden must be two widths, got {self.hidden!r}")
        for layer, width in enumerate(self.hidden):
            whole_number(f"ensemble.hidden[{layer}]", width, least=1)
        if not 0 <= self.validation < 1:
            raise ValueError(f"ensemble.validation must lie in [0, 1), got {self.validation!r}")
        for name in ("learning_rate", "linear_scale", "density_scale", "residual_scale"):
            finite_number(f"ensemble.{name}", getattr(self, name), positive=True)


class ProbabilisticEnsemble(DynamicsModel):
    """Members predict the displacement ``destination - s`` from ``s``, ``a`` and the local density ``log(1 + K mu'(c(s)))``.

    A member's mean is ``s + reach (W x + V g(x))``, a linear path beside a network ``g`` of two hidden layers. In a city it is
    clipped to the city; on a ring it is wrapped, and ``s`` enters by its sine and cosine, so that the ring has no seam. The
    likelihood is the world's: a Gaussian about the destination, truncated to the city (with a plain Gaussian, predictions
    near the edge would be biased inwards) or of the shorter way round. Members differ by their bootstrap weights, their hidden
    layers and draws from the prior of their heads, and each keeps the round that served its own held-out transitions best.

    Given the hidden layers the negative log-likelihood is that of a generalised linear model in the mean head, so the head
    is solved by iteratively reweighted least squares instead of waiting for Adam: five times less spread at 700 transitions.

    Args:
        config: Size, priors and training.
        grid: The world's grid.
        noise_std: The world's noise level.
        generator: Source of the initial weights.
        space: The world's space.
        reach: The world's scale of a move, the unit of predicted displacements; positive.
        dtype: Floating-point type.
        device: Device.
    """

    def __init__(
        self,
        config: EnsembleConfig,
        grid: Grid,
        noise_std: float,
        generator: torch.Generator,
        *,
        space: Space = CUBE,
        reach: float = 1.0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.config = config
        self.members = config.members
        self.grid = grid
        self.noise_std = noise_std
        self.space = space
        self.reach = reach
        members, d = config.members, grid.dimension
        self._inputs = MotionInputs(grid, dtype, device, space)
        inputs, (first, second) = self._inputs.width, config.hidden
        features = inputs + 1 + second

        def normal(*shape: int, scale: float) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=dtype, device=device) * scale

        gain = math.sqrt(2.0)
        self._parameters = {
            "w1": normal(members, inputs, first, scale=gain / math.sqrt(inputs)),
            "b1": torch.zeros(members, 1, first, dtype=dtype, device=device),
            "w2": normal(members, first, second, scale=gain / math.sqrt(first)),
            "b2": torch.zeros(members, 1, second, dtype=dtype, device=device),
            "head": torch.zeros(members, features, d, dtype=dtype, device=device),
            "log_std": torch.zeros(members, second, d, dtype=dtype, device=device),
            "log_std_bias": torch.full((members, 1, d), math.log(noise_std), dtype=dtype, device=device),
        }
        linear = torch.full((inputs + 1,), config.linear_scale, dtype=dtype, device=device)
        linear[inputs - 1] = config.density_scale  # the density is the last input
        residual = torch.full((second,), config.residual_scale, dtype=dtype, device=device)
        self._prior_std = torch.cat([linear, residual])
        # Each member is pulled to its own draw from the prior: where there is no data, members disagree as the prior does.
        self._anchor = normal(members, features, d, scale=1.0) * self._prior_std.unsqueeze(-1)
        self._parameters["head"] = self._anchor.clone()
        self._weights = torch.zeros(members, 0, dtype=dtype, device=device)

    # -- prediction -------------------------------------------------------------------------------------------------------

    def predict(self, positions: Tensor, mu: Tensor, actions: Tensor) -> Belief:
        inputs = self._inputs(positions, mu, actions).flatten(0, -2)
        hidden = self._hidden(inputs, self._parameters)
        means = self._destinations(positions.expand_as(actions).flatten(0, -2), inputs, hidden, self._parameters)
        aleatoric = self._noise(hidden, self._parameters).square().mean(0).sqrt()
        return Belief.of_members(means, aleatoric, actions.shape, self.space)

    def _hidden(self, inputs: Tensor, p: dict[str, Tensor]) -> Tensor:
        """Last hidden layer ``[E, n, h]`` of inputs ``[n, i]``."""
        hidden = torch.nn.functional.leaky_relu(_shared_input(inputs, p["w1"]) + p["b1"])
        return torch.nn.functional.leaky_relu(torch.baddbmm(p["b2"], hidden, p["w2"]))

    @property
    def _likelihood(self) -> Likelihood:
        return wrapped_likelihood if self.space.periodic else truncated_likelihood

    def _unclipped(self, positions: Tensor, inputs: Tensor, hidden: Tensor, p: dict[str, Tensor]) -> Tensor:
        width = inputs.shape[-1]
        linear, bias, residual = p["head"][:, :width], p["head"][:, width : width + 1], p["head"][:, width + 1 :]
        return positions + self.reach * torch.baddbmm(_shared_input(inputs, linear) + bias, hidden, residual)

    def _destinations(self, positions: Tensor, inputs: Tensor, hidden: Tensor, p: dict[str, Tensor]) -> Tensor:
        return self._clipped(self._unclipped(positions, inputs, hidden, p))

    def _clipped(self, destinations: Tensor) -> Tensor:
        """Destinations within the edges, where there are any; on a ring they are not wrapped, for means of them are taken."""
        return destinations if self.space.periodic else self.space.admissible(destinations)

    def _std(self, hidden: Tensor, p: dict[str, Tensor]) -> Tensor:
        """Standard deviation of the noise, within a factor of ten of the known level either way."""
        raw = torch.baddbmm(p["log_std_bias"], hidden, p["log_std"])
        return raw.clamp(math.log(self.noise_std) - 2.3, math.log(self.noise_std) + 2.3).exp()

    def _noise(self, hidden: Tensor, p: dict[str, Tensor]) -> Tensor:
        if self.config.learn_noise:
            return self._std(hidden, p)
        return hidden.new_full((), self.noise_std).expand(*hidden.shape[:2], self.grid.dimension)

    # -- learning ---------------------------------------------------------------------------------------------------------

    def fit(self, data: Transitions, generator: torch.Generator) -> None:
        self._extend_weights(data.size, generator)
        if data.size == 0:
            return
        positions, targets = data.positions, data.next_positions
        inputs = self._inputs.of_moves(data)
        self._solve_head(positions, inputs, targets)
        best = {name: value.clone() for name, value in self._parameters.items()}
        best_loss = self._held_out_loss(positions, inputs, targets)
        for _ in range(self.config.rounds):
            self._descend(positions, inputs, targets, generator)
            self._solve_head(positions, inputs, targets)
            loss = self._held_out_loss(positions, inputs, targets)
            # A member that holds nothing out cannot tell: it descends only where no member is meant to.
            better = (loss < best_loss) | (self.config.validation == 0)
            best_loss = torch.where(better, loss, best_loss)
            choose = better[:, None, None]
            best = {name: torch.where(choose, value, best[name]) for name, value in self._parameters.items()}
        self._parameters = best

    def state(self) -> dict[str, Tensor]:
        normaliser = {"input_mean": self._inputs.mean, "input_std": self._inputs.std}
        return {**self._parameters, **normaliser, "anchor": self._anchor, "bootstrap": self._weights}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self._parameters = {name: state[name].clone() for name in self._parameters}
        self._inputs.mean, self._inputs.std = state["input_mean"].clone(), state["input_std"].clone()
        self._anchor, self._weights = state["anchor"].clone(), state["bootstrap"].clone()

    def _extend_weights(self, n: int, generator: torch.Generator) -> None:
        """Bootstrap weights of transitions new since the last fit; -1 marks one that the member holds out."""
        new = (self.config.members, n - self._weights.shape[1])
        weights = torch.poisson(self._weights.new_ones(new), generator=generator)
        draw = torch.rand(new, generator=generator, dtype=weights.dtype, device=weights.device)
        held_out = draw < self.config.validation
        self._weights = torch.cat([self._weights, torch.where(held_out, -1.0, weights)], 1)

    @torch.no_grad()
    def _solve_head(self, positions: Tensor, inputs: Tensor, targets: Tensor) -> None:
        """The mean head that minimises the penalised negative log-likelihood, given the hidden layers; in float64.

        The clip makes the likelihood flat beyond the edge of the city, so scoring steps may cycle or settle beside the
        optimum. They are started from the present head and from plain least squares, and each member keeps the best head it
        passed.
        """
        hidden = self._hidden(inputs, self._parameters)
        std = self._noise(hidden, self._parameters).double()
        design = torch.cat([inputs.expand(len(hidden), -1, -1), torch.ones_like(hidden[..., :1]), hidden], -1).double()
        start, landing = positions.double(), targets.double()
        likelihood = self._likelihood
        bootstrap = self._weights.clamp_min(0.0).double().unsqueeze(-1)
        precision, anchor = self._prior_std.double().pow(-2).unsqueeze(-1), self._anchor.double()

        def solve(moved: Tensor, weight: Tensor) -> Tensor:
            # [E, d, n, 1]: every member and axis has its own weights. The head speaks in units of the reach.
            weighted = design.unsqueeze(1) * (weight * self.reach**2 * bootstrap).mT.unsqueeze(-1)
            gram = weighted.mT @ design.unsqueeze(1) + precision.squeeze(-1).diag()
            moment = weighted.mT @ (moved / self.reach).mT.unsqueeze(-1) + (precision * anchor).mT.unsqueeze(-1)
            solution: Tensor = torch.linalg.solve(gram, moment)
            return solution.squeeze(-1).mT

        def unclipped(head: Tensor) -> Tensor:
            return start + self.reach * (design @ head)

        def loss(head: Tensor) -> Tensor:
            fit = likelihood.negative_log_likelihood(landing, self._clipped(unclipped(head)), std) * bootstrap
            return fit.sum(1) + 0.5 * (precision * (head - anchor).square()).sum(1)

        best = self._parameters["head"].double()
        best_loss = loss(best)
        moved = self.space.displacement(start, landing)
        for head in (best, solve(moved.expand_as(std), std.pow(-2))):
            for _ in range(SCORING_STEPS):
                value = loss(head)
                better = value < best_loss
                best_loss = torch.where(better, value, best_loss)
                best = torch.where(better.unsqueeze(1), head, best)
                response, weight = likelihood.irls_targets(landing, unclipped(head), std)
                head = solve(response - start, weight)
        # Contiguous, as a loaded checkpoint is: another layout would round differently.
        self._parameters["head"] = best.to(inputs.dtype).contiguous()

    def _descend(self, positions: Tensor, inputs: Tensor, targets: Tensor, generator: torch.Generator) -> None:
        """Adam on the negative log-likelihood of all parameters of all members."""
        parameters = {name: value.detach().clone().requires_grad_() for name, value in self._parameters.items()}
        optimizer = torch.optim.Adam(parameters.values(), lr=self.config.learning_rate, fused=True)
        n = len(positions)
        bootstrap = self._weights.clamp_min(0.0)
        penalty = self._prior_std.pow(-2).unsqueeze(-1) / (2 * n)
        for _ in range(self.config.steps // max(1, self.config.rounds)):
            batch = torch.randint(n, (min(n, self.config.batch_size),), generator=generator, device=positions.device)
            loss = (self._loss(positions[batch], inputs[batch], targets[batch], parameters) * bootstrap[:, batch]).mean(1).sum()
            loss = loss + (penalty * (parameters["head"] - self._anchor).square()).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        self._parameters = {name: value.detach() for name, value in parameters.items()}

    def _loss(self, positions: Tensor, inputs: Tensor, targets: Tensor, p: dict[str, Tensor]) -> Tensor:
        """Negative log-likelihood per member and transition, ``[E, n]``."""
        hidden = self._hidden(inputs, p)
        std = self._noise(hidden, p)
        destinations = self._destinations(positions, inputs, hidden, p)
        return self._likelihood.negative_log_likelihood(targets, destinations, std).sum(-1)

    @torch.no_grad()
    def _held_out_loss(self, positions: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        """Mean negative log-likelihood of each member on what it held out, ``[E]``; zero where that is nothing."""
        held_out = (self._weights < 0).to(inputs.dtype)
        loss = self._loss(positions, inputs, targets, self._parameters)
        return (loss * held_out).sum(1) / held_out.sum(1).clamp_min(1.0)


def _shared_input(inputs: Tensor, weights: Tensor) -> Tensor:
    """``inputs`` ``[n, i]`` times each member's ``weights`` ``[E, i, o]``: ``[E, n, o]``, in one product without copies."""
    members, width, out = weights.shape
    return (inputs @ weights.transpose(0, 1).reshape(width, members * out)).view(-1, members, out).transpose(0, 1)
