"""Functions sampled from a posterior: their values and slopes are those of the formula that they stand for."""

from __future__ import annotations

import torch
from torch import Tensor

from safe_m3_agent.model.sampled_functions import SampledFunctions


def random_functions() -> SampledFunctions:
    """Three functions of five inputs with two outputs, four cosines and six kernel functions; float64."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    scale = normal(2, 1, 5).exp()
    return SampledFunctions(
        normal(2, 5, 3),
        normal(2, 1, 3),
        normal(2, 5, 4),
        normal(2, 1, 4),
        normal(2, 4, 3),
        scale,
        normal(2, 5, 6),
        normal(2, 6, 3),
    )


def formula(f: SampledFunctions, x: Tensor) -> Tensor:
    """A linear part, cosines, and bumps about centres; as it is written."""
    cosines = (x @ f.frequencies + f.phases).cos() @ f.waves
    away = (x * f.inverse_scale).unsqueeze(-2) - f.centers.mT.unsqueeze(1)
    bumps = (-0.5 * away.square().sum(-1)).exp() @ f.bumps
    return (x @ f.linear + f.bias + cosines + bumps).permute(2, 1, 0)


def test_values_and_slopes_are_the_formulas() -> None:
    """Products in place of differences, and slopes written by hand, change nothing; nor does asking twice."""
    functions = random_functions()
    x = torch.randn(7, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    weights = torch.randn(3, 7, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for _ in range(2):
        (ours,) = torch.autograd.grad((weights * functions(x)).sum(), x)
        (theirs,) = torch.autograd.grad((weights * formula(functions, x)).sum(), x)
        torch.testing.assert_close(functions(x), formula(functions, x))
        torch.testing.assert_close(ours, theirs)
    assert torch.autograd.gradcheck(functions, x)
