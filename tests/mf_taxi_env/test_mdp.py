"""What every lifted mean-field MDP does: roll out, broadcast, swap its motion."""

from __future__ import annotations

import gc
import math

import pytest
import torch
from torch import Tensor

from mf_taxi_env import EntropyFloor, FreeMotion, Grid, MeanFieldMDP, Move, ParticleMDP, Trajectory
from mf_taxi_env.noise import TruncatedGaussian


class Counter(MeanFieldMDP):
    """A world of two cells in which every number can be followed by hand."""

    def __init__(self, **settings: object) -> None:
        super().__init__(Grid(2, 1), horizon=3, action_dim=1, **settings)  # type: ignore[arg-type]

    def initial(self, batch: tuple[int, ...] = ()) -> Tensor:
        return torch.tensor([1.0, 0.0]).expand(*batch, 2)

    def shift(self, mu: Tensor, t: int = 0) -> Tensor:
        return mu.flip(-1)

    def move(self, mu: Tensor, actions: Tensor, t: int = 0) -> Move:
        moved = mu + actions[..., 0] * torch.tensor([1.0, -1.0])
        return Move(moved, torch.full(moved.shape[:-1], 0.5 + t))

    def reward(self, mu: Tensor, actions: Tensor, next_mu: Tensor, t: int = 0) -> Tensor:
        return 100.0 * t + 10.0 * mu[..., 0] + next_mu[..., 0]


class Seen:
    """A policy that remembers what it was asked, and answers with a constant."""

    def __init__(self, actions: Tensor) -> None:
        self.actions = actions
        self.calls: list[tuple[Tensor, int]] = []

    def field(self, mu: Tensor, t: int) -> Tensor:
        self.calls.append((mu, t))
        return self.actions


def particles(**settings: object) -> ParticleMDP:
    """A small world of particles."""
    grid = Grid(3)

    class World(ParticleMDP):
        def initial(self, batch: tuple[int, ...] = ()) -> Tensor:
            return torch.full((*batch, 9), 1 / 9, dtype=self.dtype)

        def reward(self, mu: Tensor, actions: Tensor, next_mu: Tensor, t: int = 0) -> Tensor:
            return -next_mu.square().sum(-1)

    settings = {"horizon": 4, "dtype": torch.float64, **settings}
    return World(grid, FreeMotion(), TruncatedGaussian(grid, 0.1), **settings)  # type: ignore[arg-type]


def test_rollout_is_shift_then_policy_then_move() -> None:
    """The policy sees the distribution after the shift; rewards, margins and uncertainty have their step's values."""
    policy = Seen(torch.tensor([[0.25], [0.25]]))
    path = Counter(constraints=(EntropyFloor(0.0),)).rollout(policy)
    assert path.mu.tolist() == [[1.0, 0.0], [0.25, 0.75], [1.0, 0.0], [0.25, 0.75]]
    assert [(mu.tolist(), t) for mu, t in policy.calls] == [([0.0, 1.0], 0), ([0.75, 0.25], 1), ([0.0, 1.0], 2)]
    assert path.rewards.tolist() == [10.25, 103.5, 210.25]
    assert path.uncertainty.tolist() == [0.5, 1.5, 2.5]
    assert path.returns.item() == 324.0
    expected = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    torch.testing.assert_close(path.margins, torch.tensor([[expected], [0.0], [expected]]))


def test_rollout_starts_where_it_is_told() -> None:
    """A given initial distribution replaces the default."""
    path = Counter().rollout(Seen(torch.zeros(2, 1)), torch.tensor([0.5, 0.5]))
    assert path.mu.tolist() == [[0.5, 0.5]] * 4


def test_batch_that_first_appears_in_the_actions_reaches_every_step() -> None:
    """One start under a batch of policies: earlier states and rewards broadcast, each row equals its own rollout."""
    mdp = particles(constraints=(EntropyFloor(0.9), EntropyFloor(0.5)))
    actions = torch.rand(5, 2, 9, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 0.5
    batch = mdp.rollout(Seen(actions))
    assert batch.mu.shape == (5, 2, 5, 9)
    assert batch.rewards.shape == batch.uncertainty.shape == (5, 2, 4)
    assert batch.margins.shape == (5, 2, 4, 2)
    for b in range(5):
        for c in range(2):
            single = mdp.rollout(Seen(actions[b, c]))
            torch.testing.assert_close(batch.mu[b, c], single.mu)
            torch.testing.assert_close(batch.rewards[b, c], single.rewards)
            torch.testing.assert_close(batch.margins[b, c], single.margins)


def test_worst_margin_and_violations_count_steps_over_all_constraints() -> None:
    """A step counts once, however many constraints it breaks."""
    mdp = Counter(constraints=(EntropyFloor(0.5), EntropyFloor(0.9)))
    path = mdp.rollout(Seen(torch.tensor([[0.25], [0.25]])))
    share = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75)) / math.log(2)
    assert 0.5 < share < 0.9
    assert path.violations.item() == 3
    assert path.worst_margin.item() == pytest.approx(-0.9 * math.log(2))
    assert Counter(constraints=(EntropyFloor(0.5),)).rollout(Seen(torch.tensor([[0.25], [0.25]]))).violations.item() == 1


def test_without_constraints_everything_is_safe() -> None:
    """No constraints: an empty margin vector, an infinite worst margin, no violations, batch kept."""
    path = Counter().rollout(Seen(torch.zeros(6, 2, 1)))
    assert path.margins.shape == (6, 3, 0)
    assert path.worst_margin.tolist() == [math.inf] * 6
    assert path.violations.tolist() == [0] * 6


def test_with_motion_drops_the_old_motion() -> None:
    """The copy moves by the new motion, leaves the original as it was, and nothing in it leads back to the true motion."""

    def truth(positions: Tensor, mu: Tensor, actions: Tensor) -> Tensor:
        return (positions + 0.5 * actions).clamp(0, 1)

    original = particles()
    original.motion = truth
    copy = original.with_motion(FreeMotion())
    actions = torch.full((9, 2), 0.3, dtype=torch.float64)
    torch.testing.assert_close(copy.transition(copy.initial(), actions), particles().transition(copy.initial(), actions))
    torch.testing.assert_close(original.transition(copy.initial(), actions), copy.transition(copy.initial(), 0.5 * actions))
    assert type(copy) is type(original)
    seen: set[int] = set()
    queue: list[object] = [vars(copy)]
    while queue:
        item = queue.pop()
        if id(item) in seen or isinstance(item, type) or (callable(item) and hasattr(item, "__globals__")):
            assert item is not truth
            continue
        seen.add(id(item))
        queue.extend(gc.get_referents(item))


@pytest.mark.parametrize("horizon", [0, -1, 1.5, None])
def test_bad_horizon_raises(horizon: object) -> None:
    """An episode has at least one whole step."""
    with pytest.raises(ValueError, match=r"horizon .*got"):
        particles(horizon=horizon)


def test_integer_dtype_raises() -> None:
    """Masses are floating-point numbers."""
    with pytest.raises(ValueError, match=r"dtype .*int64"):
        particles(dtype=torch.int64)


def test_a_margin_that_is_no_number_is_a_violation() -> None:
    """NaN compares false with everything: it must not pass for safe."""
    margins = torch.tensor([[0.1], [torch.nan], [-0.1]])
    path = Trajectory(torch.ones(4, 2) / 2, torch.zeros(3), margins, torch.zeros(3))
    assert int(path.violations) == 2
