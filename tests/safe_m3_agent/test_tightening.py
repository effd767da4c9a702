"""The accumulated tightening of constraints."""

from __future__ import annotations

import numpy as np
import torch

from mf_taxi_env import EntropyFloor, Scenario, TaxiMDP
from safe_m3_agent.tightening import accumulated_tightening, lipschitz_constants


def test_hand_computed_example() -> None:
    """``L_h`` times the sum of the uncertainties so far, the present step's included."""
    uncertainty = torch.tensor([0.1, 0.2, 0.4], dtype=torch.float64)
    tightening = accumulated_tightening(uncertainty, torch.tensor([0.1, 2.0], dtype=torch.float64))
    expected = torch.tensor([[0.01, 0.2], [0.03, 0.6], [0.07, 1.4]], dtype=torch.float64)
    torch.testing.assert_close(tightening, expected)


def test_certainty_tightens_nothing() -> None:
    """A known motion leaves the constraint as it is."""
    assert torch.equal(accumulated_tightening(torch.zeros(5), torch.tensor([0.1])), torch.zeros(5, 1))


def test_shape_and_batches() -> None:
    """Batches of episodes are tightened one by one, along their own steps."""
    uncertainty = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(0))
    constraints = torch.tensor([0.1, 0.5])
    tightening = accumulated_tightening(uncertainty, constraints)
    assert tightening.shape == (2, 3, 4, 2)
    torch.testing.assert_close(tightening[1, 2], accumulated_tightening(uncertainty[1, 2], constraints))
    assert accumulated_tightening(uncertainty, torch.zeros(0)).shape == (2, 3, 4, 0)


def test_constants_are_those_of_the_constraints() -> None:
    """In the order of the margins, in the world's type."""
    city = Scenario("toy", np.full(4, 0.25), np.eye(4), box=(0, 1, 0, 1))
    world = TaxiMDP(city, constraints=[EntropyFloor(0.9, lipschitz=0.1), EntropyFloor(0.5, lipschitz=2.0)], dtype=torch.float64)
    assert lipschitz_constants(world).tolist() == [0.1, 2.0]
