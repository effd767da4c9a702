"""Adam on several grids: exactly Adam on a sum of fields, and faster where neighbours should move together."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mf_taxi_env import Grid, TaxiMDP
from mf_taxi_env.parameterization import BilinearField
from safe_m3_agent.hallucination import HallucinatedMDP
from safe_m3_agent.model.dynamics_model import KnownModel
from safe_m3_agent.planners import multilevel
from safe_m3_agent.planners.bptt import BPTTConfig, BPTTPlanner
from safe_m3_agent.planners.multilevel import MultilevelAdam
from safe_m3_agent.policy import FieldPolicy


@pytest.mark.parametrize("dimension", [1, 2])
def test_it_is_adam_on_a_sum_of_fields(dimension: int) -> None:
    """Folding the coarser fields in after every step changes nothing: moments, clipping and steps are those of the sum."""
    grid = Grid(9, dimension)
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(2, grid.size, dimension, generator=generator, dtype=torch.float64)
    scale = torch.rand(target.shape, generator=generator, dtype=torch.float64)

    def loss(field: Tensor, other: Tensor) -> Tensor:
        return (scale * (field - target)).square().sum() + (other - 3.0).square().sum()

    field, other = torch.zeros_like(target, requires_grad=True), torch.zeros(4, dtype=torch.float64, requires_grad=True)
    ours = MultilevelAdam([field], [other], grid, clip=1.0)

    base, beside = torch.zeros_like(target, requires_grad=True), torch.zeros(4, dtype=torch.float64, requires_grad=True)
    centers = grid.centers(dtype=torch.float64)
    weights = [BilinearField(grid, dimension, nodes).weights(centers) for nodes in (2, 4)]
    coarse = [target.new_zeros(2, weight.shape[1], dimension, requires_grad=True) for weight in weights]
    parameters = [base, beside, *coarse]
    theirs = torch.optim.Adam(parameters)

    for step in range(7):
        rate = 0.1 / (1 + step)
        ours.zero_grad()
        loss(field, other).backward()
        ours.step(rate)
        theirs.zero_grad()
        theirs.param_groups[0]["lr"] = rate
        whole = base + sum(weight @ part for weight, part in zip(weights, coarse, strict=True))
        loss(whole, beside).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        theirs.step()
    torch.testing.assert_close(field, base + sum(weight @ part for weight, part in zip(weights, coarse, strict=True)))
    torch.testing.assert_close(other, beside)


def test_a_plan_gets_further_in_as_many_steps(make_world: Callable[..., TaxiMDP], monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason it exists: in a city at full resolution the same number of steps earns more than with Adam on cells alone."""
    world = make_world(cells=20)
    known = HallucinatedMDP(world, KnownModel(world.motion, world.noise.std), beta=0.0)

    def found() -> float:
        plan = BPTTPlanner(BPTTConfig(epochs=24), 0.01).plan(
            known,
            FieldPolicy(known),
            weight=0.1,
            adversaries=torch.zeros(0, 1),
            optimistic=False,
            generator=torch.Generator(),
        )
        return plan.objective

    several = found()
    monkeypatch.setattr(multilevel, "SPACINGS", ())
    assert several > found() + 0.1


def test_a_grid_as_coarse_as_its_coarser_ones_has_none() -> None:
    """Two cells per axis: a level of two nodes would be the field itself once more."""
    field = torch.ones(1, 4, 2, requires_grad=True)
    optimizer = MultilevelAdam([field], [], Grid(2), clip=1.0)
    (-field.sum()).backward()
    optimizer.step(0.5)
    torch.testing.assert_close(field.detach(), torch.full((1, 4, 2), 1.5))  # one step of Adam alone
