"""The reliability plot tells a model that is too sure from one that is right, and draws before there is anything to draw."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from mf_taxi_env.render import save_figure
from safe_m3_agent.calibration import Calibration, HeldOut
from safe_m3_agent.figures.reliability import LEVELS, reliability


def calibration(*, too_small_by: float, n: int = 2000) -> Calibration:
    """Of a model whose epistemic standard deviations are too small by a factor that the agent knows of."""
    rng = np.random.default_rng(0)
    like = torch.zeros(1, dtype=torch.float64)
    judge = Calibration(members=10, moves=24, per_episode=12, delta=0.1, like=like, dimension=2)
    residual = 0.02 * rng.standard_normal((n, 2)) + 0.05 * too_small_by * rng.standard_t(9, (n, 2))
    parts = (residual, np.full((n, 2), 0.02), np.full((n, 2), 0.05), np.full(n, too_small_by))
    judge.add(HeldOut(*(torch.from_numpy(part) for part in parts)))
    return judge


def test_curves_are_the_observed_shares() -> None:
    """A model that is too sure lies below the diagonal by itself, and on it as recalibrated, within what chance does."""
    (axes,) = reliability(calibration(too_small_by=3.0)).axes
    diagonal, own, used = (np.array(line.get_xydata()) for line in axes.lines)
    assert diagonal.tolist() == [[0, 0], [100, 100]]
    np.testing.assert_allclose(own[:, 0], 100 * LEVELS)
    assert (own[:, 1] < own[:, 0] - 1.0).all() and own[:-2, 1].max() < 80
    np.testing.assert_allclose(used[:, 1], 100 * LEVELS, atol=3.5)
    assert (LEVELS[0], LEVELS[-1]) == (0.10, 0.99)


def test_nothing_to_draw(tmp_path: Path) -> None:
    """A run whose landings all lie at edges has a picture too: the diagonal, and the count."""
    figure = reliability(calibration(too_small_by=1.0, n=0))
    assert len(figure.axes[0].lines) == 1 and "0 coordinates" in figure.get_supxlabel()
    assert save_figure(figure, tmp_path / "reliability.png").stat().st_size > 1000
