"""A learned motion near one trajectory: linear in action and density there, so that planning in it costs next to nothing."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mf_taxi_env.grid import Grid
from mf_taxi_env.space import CUBE, Space
from safe_m3_agent.model.dynamics_model import DynamicsModel
from safe_m3_agent.model.inputs import log_density

#: Step of the difference quotients, in units of an action and of the density's logarithm.
STEP = 0.02


class Tangent(NamedTuple):
    """The linearised motion at one step of an episode.

    It has ``q = d + 1`` inputs at every cell: the action, and the density ``log(1 + K mu')``. A form ``[1 + q, ..., d, K]`` is
    an affine function of them: its value on the trajectory, and the slope in each input. Cells come last, for all that is done
    with forms is done cell by cell.
    """

    inputs: Tensor  #: those of the trajectory [q, K]
    mean: Tensor  #: form of the destinations [1 + q, d, K]
    deviations: Tensor  #: forms of a belief's deviations [E, 1 + q, d, K]
    doubt: Tensor  #: sum of the deviations' squares: a quadratic form in one and the inputs [1 + q, 1 + q, d, K]

    @classmethod
    @torch.no_grad()
    def of(cls, model: DynamicsModel, grid: Grid, centers: Tensor, mu: Tensor, actions: Tensor, space: Space = CUBE) -> Tangent:
        """The tangent by difference quotients, which also see past a kink, such as a member that is stopped by the edge.

        Args:
            model: A motion that sees of the distribution its density at the particle's own cell.
            grid: The world's grid.
            centers: Its cell centres ``[K, d]``.
            mu: The trajectory's distribution after trips ``[K]``.
            actions: Its actions ``[K, d]``.
            space: What destinations are points of.
        """
        inputs = _inputs(grid, mu, actions)
        q = len(inputs)
        nudges = STEP * torch.cat([inputs.new_zeros(1, q), torch.eye(q, dtype=inputs.dtype, device=inputs.device)])
        nudged = inputs + nudges.unsqueeze(-1)  # [1 + q, q, K]
        belief = model.predict(centers, nudged[:, -1].expm1() / grid.size, nudged[:, :-1].mT)
        value, others = belief.mean[:1], belief.mean[1:]
        mean = torch.cat([value, space.displacement(value, others) / STEP]).mT.contiguous()
        value, others = belief.deviations[:, :1], belief.deviations[:, 1:]
        deviations = torch.cat([value, (others - value) / STEP], 1).mT.contiguous()
        return cls(inputs, mean, deviations, (deviations.unsqueeze(2) * deviations.unsqueeze(1)).sum(0))

    def among(self, z: Tensor | None) -> Tensor:
        """Form ``[1 + q, ..., d, K]`` of the motions in directions ``z`` ``[..., E]``, or of the mean where there is none."""
        if z is None:
            return self.mean
        apart: Tensor = torch.tensordot(z, self.deviations, 1)
        return (self.mean + apart).movedim(-3, 0)

    def away(self, grid: Grid, mu: Tensor, actions: Tensor) -> list[Tensor]:
        """How far the inputs are from the trajectory's, each ``[..., 1, K]``."""
        return [(x - x0).unsqueeze(-2) for x, x0 in zip(_inputs(grid, mu, actions), self.inputs, strict=True)]

    def epistemic(self, away: list[Tensor]) -> Tensor:
        """Standard deviation of what the model does not know, ``[..., K, d]``."""
        variance = self.doubt[0, 0]
        for i, x in enumerate(away, start=1):
            # What variable i adds: its products with one, with the variables before it, twice each, and with itself.
            slope = 2.0 * self.doubt[0, i]
            for j, y in enumerate(away[: i - 1], start=1):
                slope = torch.addcmul(slope, self.doubt[j, i], y, value=2.0)
            variance = torch.addcmul(variance, torch.addcmul(slope, self.doubt[i, i], x), x)
        return variance.clamp_min(1e-12).sqrt().mT


def applied(form: Tensor, away: list[Tensor]) -> Tensor:
    """Value ``[..., K, d]`` of a form ``[1 + q, ..., d, K]`` of the motion."""
    value = form[0]
    for slope, x in zip(form[1:], away, strict=True):
        value = torch.addcmul(value, slope, x)
    return value.mT


def _inputs(grid: Grid, mu: Tensor, actions: Tensor) -> Tensor:
    """What a motion sees at the cell centres, ``[q, ..., K]``."""
    density = log_density(grid, mu).expand(actions.shape[:-1])
    return torch.stack([*actions.unbind(-1), density])
