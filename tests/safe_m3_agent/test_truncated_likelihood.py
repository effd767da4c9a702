"""The likelihood of a landing near the city's edge, and the scoring steps that climb it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import truncnorm
from torch import Tensor

from safe_m3_agent.model.truncated_likelihood import irls_targets, negative_log_likelihood

STD = 0.05


def landings(destination: float, n: int = 40_000) -> Tensor:
    """Where vehicles that head for ``destination`` land, ``[n, 1]``."""
    low, high = -destination / STD, (1 - destination) / STD
    drawn = truncnorm.rvs(low, high, loc=destination, scale=STD, size=(n, 1), random_state=np.random.default_rng(7))
    return torch.from_numpy(drawn)


@pytest.mark.parametrize("std", [0.0175, 0.1, 0.5])
def test_matches_scipy(std: float) -> None:
    """The truncated Gaussian's log density, up to the constant of a normal density."""
    destination, landing = (part.flatten() for part in np.meshgrid(np.linspace(0, 1, 9), np.linspace(0, 1, 11)))
    expected = -truncnorm.logpdf(landing, -destination / std, (1 - destination) / std, loc=destination, scale=std)
    ours = negative_log_likelihood(*map(torch.from_numpy, (landing, destination)), torch.tensor(std, dtype=torch.float64))
    np.testing.assert_allclose(ours.numpy() + 0.5 * math.log(2 * math.pi), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("destination", [0.0, 0.01, 0.5, 0.97, 1.0])
def test_response_is_unbiased(destination: float) -> None:
    """At the true destination the working response is right on average, also where the edge pushes all landings inwards."""
    landing = landings(destination)
    place = torch.full_like(landing, destination)
    response, weight = irls_targets(landing, place, torch.full_like(landing, STD))
    error = float(response.std()) / math.sqrt(len(landing))
    assert float(response.mean()) == pytest.approx(destination, abs=4 * error)
    assert (weight > 0).all()
    if destination in (0.0, 1.0):  # the plain mean would be off by 0.8 standard deviations of the noise
        assert abs(float(landing.mean()) - destination) > 20 * error


@pytest.mark.parametrize("destination", [0.0, 0.01, 0.5, 1.0])
@pytest.mark.parametrize("start", [0.2, 0.8])
def test_scoring_steps_find_the_destination(destination: float, start: float) -> None:
    """Iterating weighted means of the response from elsewhere recovers where the vehicles headed."""
    landing = landings(destination)
    place = start
    for _ in range(30):
        response, weight = irls_targets(landing, torch.full_like(landing, place), torch.full_like(landing, STD))
        place = min(1.0, max(0.0, float((weight * response).sum() / weight.sum())))
    assert place == pytest.approx(destination, abs=0.003)


def test_predictions_beyond_the_edge_are_left_alone_while_they_fit() -> None:
    """A clipped prediction that explains its landing has no weight; one that does not is called back to the landing."""
    landing = torch.tensor([[0.02], [0.5], [0.98], [0.5]])
    unclipped = torch.tensor([[-0.3], [-0.3], [1.4], [1.4]])
    response, weight = irls_targets(landing, unclipped, torch.full_like(landing, STD))
    assert weight.flatten().tolist() == pytest.approx([0.0, STD**-2, 0.0, STD**-2])
    assert response[1].item() == response[3].item() == 0.5


def test_members_broadcast() -> None:
    """One landing per transition, one prediction per member."""
    landing, predictions = torch.rand(4, 2), torch.rand(3, 4, 2)
    response, weight = irls_targets(landing, predictions, torch.full((3, 4, 2), STD))
    assert response.shape == weight.shape == (3, 4, 2)
    alone = irls_targets(landing, predictions[1], torch.full((4, 2), STD))
    torch.testing.assert_close(response[1], alone[0])
    torch.testing.assert_close(weight[1], alone[1])
