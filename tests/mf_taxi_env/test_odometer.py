"""Kilometres of ways: on the map, now or later, and none where there is no map."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mf_taxi_env.odometer import Odometer
from mf_taxi_env.scenarios.city import box_km

BOX = (113.9, 114.3, 22.5, 22.6)


def ways(n: int) -> torch.Tensor:
    """Ways of all lengths, some of them none."""
    drawn = torch.randn(n, 2, generator=torch.Generator().manual_seed(0)) * torch.logspace(-6, -0.5, n).unsqueeze(-1)
    drawn[:3] = 0.0
    return drawn


@pytest.mark.parametrize("keeps", [True, False])
def test_kilometres_are_lengths_on_the_map(keeps: bool) -> None:
    """In a city that is wider than high, of several blocks, measured now or when asked."""
    blocks = [ways(1000), ways(400), ways(1)]
    odometer = Odometer(BOX, keeps=keeps)
    readings = [odometer.read(block) for block in blocks]
    width, height = box_km(BOX)
    east, north = (torch.cat(blocks).double().numpy() * (width, height)).T
    assert float(odometer.mean(readings, 700)) == pytest.approx(np.hypot(east, north).sum() / 700, rel=1e-6)


def test_ways_of_large_fleets_are_not_kept() -> None:
    """They are measured at once; those of small fleets when asked."""
    now, later = Odometer(BOX, keeps=False), Odometer(BOX, keeps=True)
    way = ways(10)
    readings = now.read(way), later.read(way)
    way.zero_()
    assert float(now.mean(readings[:1], 1)) > 0 and float(later.mean(readings[1:], 1)) == 0


def test_there_are_no_kilometres_without_a_map() -> None:
    """Not a number, in one dimension as well."""
    odometer = Odometer(None, keeps=True)
    assert odometer.mean([odometer.read(torch.ones(4, 1))], 4).isnan()
