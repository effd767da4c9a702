"""The relaxed barrier: a logarithm where it is safe, a way back where it is not; and its weight along the central path."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from safe_m3_agent.barrier import BarrierConfig, relaxed_log_barrier, width_at


def derivatives(x: float, width: float) -> tuple[float, float, float]:
    """Value, slope and curvature of the barrier."""
    margin = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    value = relaxed_log_barrier(margin, width)
    (slope,) = torch.autograd.grad(value, margin, create_graph=True)
    (curvature,) = torch.autograd.grad(slope, margin)
    return float(value.detach()), float(slope.detach()), float(curvature)


@pytest.mark.parametrize("width", [0.001, 0.01, 0.3])
def test_logarithm_above_the_width(width: float) -> None:
    """Safe policies see the interior-point barrier itself."""
    margins = width * torch.tensor([1.0, 1.5, 10.0, 1000.0], dtype=torch.float64)
    torch.testing.assert_close(relaxed_log_barrier(margins, width), margins.log())


@pytest.mark.parametrize("width", [0.001, 0.01, 0.3])
def test_twice_differentiable_at_the_width(width: float) -> None:
    """No kink where the quadratic takes over: value, slope and curvature agree with the logarithm's."""
    expected = (math.log(width), 1 / width, -1 / width**2)
    assert derivatives(width * (1 - 1e-9), width) == pytest.approx(expected, rel=1e-6)
    assert derivatives(width, width) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("margin", [0.0, -0.01, -1.0, -50.0])
def test_unsafe_policies_find_back(margin: float) -> None:
    """A violated margin pushes upwards, the harder the worse it is, and nothing overflows."""
    value, slope, curvature = derivatives(margin, 0.01)
    assert math.isfinite(value) and curvature < 0
    assert slope == pytest.approx((2 - margin / 0.01) / 0.01)
    assert slope > derivatives(margin + 0.001, 0.01)[1] > 0


def test_gradient_is_finite_in_float32_at_any_margin() -> None:
    """The branch that is not taken must not poison the gradient of the one that is."""
    margins: Tensor = torch.tensor([-10.0, -1e-8, 0.0, 1e-8, 0.01, 3.0], requires_grad=True)
    (slope,) = torch.autograd.grad(relaxed_log_barrier(margins, 0.01).sum(), margins)
    assert slope.isfinite().all() and (slope > 0).all()


@pytest.mark.parametrize("weight", [1.0, 0.01, 0.0005])
def test_reward_and_barrier_balance_inside(weight: float) -> None:
    """However small the weight, the best margin is a safe one; with a width of its own it would lie beyond the constraint."""
    margins = torch.linspace(-0.2, 0.2, 400_001, dtype=torch.float64)

    def best(width: float) -> float:
        return float(margins[(weight * relaxed_log_barrier(margins, width) - 1.5 * margins).argmax()])

    assert best(width_at(weight, 0.01)) > 0
    assert (best(0.01) > 0) == (weight >= 0.01)


def test_no_barrier_keeps_its_width() -> None:
    """A plan without constraints has weight zero, and a width of zero would divide by it."""
    assert width_at(0.0, 0.01) == 0.01


def test_weight_follows_the_central_path() -> None:
    """The weight falls with certificates and rises without, never beyond its ends."""
    config = BarrierConfig(initial=1.0, final=0.1, fall=0.4, rise=2.0)
    weight, weights = config.initial, []
    for certified in (True, True, True, False, True, False, False, False, False):
        weight = config.after(weight, certified=certified)
        weights.append(weight)
    assert weights == pytest.approx([0.4, 0.16, 0.1, 0.2, 0.1, 0.2, 0.4, 0.8, 1.0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"initial": 0.1, "final": 0.2}, "final <= initial"),
        ({"final": 0.0}, "barrier.final and barrier.initial must satisfy 0 < final"),
        ({"initial": math.inf}, "final <= initial"),
        ({"initial": math.nan}, "final <= initial"),
        ({"fall": 1.0}, r"fall must lie in \(0, 1\).*got fall=1.0"),
        ({"fall": math.nan}, "got fall=nan"),
        ({"rise": 0.9}, "barrier.rise be at least 1, got fall=0.8, rise=0.9"),
        ({"width": 0.0}, "barrier.width must be a finite number > 0, got 0.0"),
        ({"width": math.nan}, "barrier.width must be a finite number > 0, got nan"),
    ],
)
def test_settings_are_validated(options: dict[str, float], message: str) -> None:
    """Nonsense is refused where it enters, with its value."""
    with pytest.raises(ValueError, match=message):
        BarrierConfig(**options)  # type: ignore[arg-type]
