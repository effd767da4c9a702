"""The accumulated tightening of constraints."""

from __future__ import annotations

import torch

from mf_taxi_env import EntropyFloor
from safe_m3_agent.tightening import accumulated_tightening


def test_hand_computed_example() -> None:
    """``L_h`` times the sum of the uncertainties so far, the present step's included."""
    uncertainty = torch.tensor([0.1, 0.2, 0.4], dtype=torch.float64)
    tightening = accumulated_tightening(uncertainty, [EntropyFloor(0.9, lipschitz=0.1), EntropyFloor(0.5, lipschitz=2.0)])
    expected = torch.tensor([[0.01, 0.2], [0.03, 0.6], [0.07, 1.4]], dtype=torch.float64)
    torch.testing.assert_close(tightening, expected)


def test_certainty_tightens_nothing() -> None:
    """A known motion leaves the constraint as it is."""
    assert torch.equal(accumulated_tightening(torch.zeros(5), [EntropyFloor(0.9)]), torch.zeros(5, 1))


def test_shape_and_batches() -> None:
    """Batches of episodes are tightened one by one, along their own steps."""
    uncertainty = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(0))
    constraints = [EntropyFloor(0.9), EntropyFloor(0.8, lipschitz=0.5)]
    tightening = accumulated_tightening(uncertainty, constraints)
    assert tightening.shape == (2, 3, 4, 2)
    torch.testing.assert_close(tightening[1, 2], accumulated_tightening(uncertainty[1, 2], constraints))
    assert accumulated_tightening(uncertainty, []).shape == (2, 3, 4, 0)
