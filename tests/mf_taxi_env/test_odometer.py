"""Kilometres of ways: on the map, now or later, and none where there is no map."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mf_taxi_env.odometer import Odometer


def ways(n: int) -> torch.Tensor:
    """Ways of all lengths, some of them none."""
    drawn = torch.randn(n, 2, generator=torch.Generator().manual_seed(0)) * torch.logspace(-6, -0.5, n).unsqueeze(-1)
    drawn[:3] = 0.0
    return drawn


@pytest.mark.parametrize("keeps", [True, False])
def test_kilometres_are_lengths_on_the_map(keeps: bool) -> None:
    """In a city that is wider than high, of several blocks, measured now or when asked; asking twice adds nothing."""
    blocks = [ways(1000), ways(400), ways(1)]
    odometer = Odometer((41.1, 11.1), keeps=keeps)
    for block in blocks:
        start = torch.rand(len(block), 2, generator=torch.Generator().manual_seed(1)).double()
        odometer.add(start, start + block)
    expected = np.hypot(*(torch.cat(blocks).double().numpy() * (41.1, 11.1)).T).sum()
    for _ in range(2):
        assert float(odometer.total()) == pytest.approx(expected, rel=1e-6)


def test_ways_of_large_fleets_are_not_kept() -> None:
    """They are measured at once; those of small fleets when asked."""
    now, later = Odometer((1.0, 1.0), keeps=False), Odometer((1.0, 1.0), keeps=True)
    way = ways(10)
    for odometer in (now, later):
        odometer.add(torch.zeros(10, 2), way)
    way.zero_()
    assert float(now.total()) > 0 and float(later.total()) == 0


@pytest.mark.parametrize("keeps", [True, False])
def test_there_are_no_kilometres_without_a_map(keeps: bool) -> None:
    """Not a number, in one dimension as well."""
    odometer = Odometer((math.nan, math.nan), keeps=keeps)
    odometer.add(torch.zeros(4, 1), torch.ones(4, 1))
    assert odometer.total().isnan()
