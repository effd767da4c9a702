"""The interface of models, and the model that is the truth."""

from __future__ import annotations

import pytest
import torch

from mf_taxi_env import CongestedMotion, Grid
from safe_m3_agent.model.dynamics_model import DynamicsModel, KnownModel
from safe_m3_agent.transitions import Transitions


def test_known_model_is_the_motion() -> None:
    """Remark 1: the mean is the truth, nothing is uncertain, and the noise is the world's."""
    grid = Grid(4)
    motion, generator = CongestedMotion(grid, 0.3), torch.Generator().manual_seed(0)
    positions = torch.rand(6, 2, generator=generator)
    actions = 2 * torch.rand(3, 6, 2, generator=generator) - 1
    mu = torch.rand(3, 16, generator=generator)
    model = KnownModel(motion, 0.02)
    belief = model.predict(positions, mu, actions)
    assert model.exact and model.members == 1
    assert torch.equal(belief.mean, motion(positions, mu, actions))
    assert not belief.epistemic.any() and belief.epistemic.shape == belief.mean.shape
    assert (belief.aleatoric == 0.02).all() and belief.aleatoric.shape == belief.mean.shape
    assert not belief.deviations.any() and belief.deviations.shape == (1, *belief.mean.shape)


def test_known_model_has_nothing_to_learn() -> None:
    """Fitting changes nothing and draws nothing; its state is empty, so that a checkpoint holds no motion."""
    grid, generator = Grid(2), torch.Generator().manual_seed(0)
    model, before = KnownModel(CongestedMotion(grid), 0.02), generator.get_state()
    model.fit(Transitions.empty(torch.zeros(4), 2), generator)
    assert torch.equal(generator.get_state(), before)
    assert model.state() == {}
    model.load_state({})


def test_interface_cannot_be_half_implemented() -> None:
    """A model that forgets a method is refused when it is made, not in the middle of a run."""

    class Half(DynamicsModel):
        members = 1

    with pytest.raises(TypeError, match="abstract"):
        Half()  # type: ignore[abstract]
