"""The store of moves."""

from __future__ import annotations

from functools import reduce

import torch

from safe_m3_agent.transitions import Transitions


def moves(n: int, seed: int, *, together: bool = False) -> Transitions:
    """Random moves on four cells, each in a distribution of its own, or all in one."""
    generator = torch.Generator().manual_seed(seed)
    positions, mu, actions, landed = (torch.rand(n, width, generator=generator) for width in (2, 4, 2, 2))
    return Transitions.of(positions, mu[0] if together else mu, actions, landed)


def test_empty_store_has_the_worlds_shape_and_type() -> None:
    """The first join neither fails nor changes the type."""
    empty = Transitions.empty(torch.zeros(4, dtype=torch.float64), 2)
    assert empty.size == 0
    assert [tuple(part.shape) for part in empty] == [(0, 2), (0, 2), (0, 2), (0, 4), (0,)]
    assert [part.dtype for part in empty] == [torch.float64] * 4 + [torch.int64]


def test_join_keeps_the_order() -> None:
    """Older moves stay first: bootstrap weights belong to places in the store. Every move keeps its distribution."""
    stores = [moves(3, 0), moves(4, 1, together=True), moves(2, 2)]
    joined = stores[0].join(*stores[1:])
    assert joined.size == 9 and len(joined.distributions) == 3 + 1 + 2
    for name in ("positions", "mu", "actions", "next_positions"):
        assert torch.equal(getattr(joined, name), torch.cat([getattr(store, name) for store in stores]))
    one_by_one = reduce(Transitions.join, stores, Transitions.empty(torch.zeros(4), 2))
    assert all(torch.equal(a, b) for a, b in zip(one_by_one, joined, strict=True))


def test_a_distribution_is_kept_once() -> None:
    """However many taxis moved in it: a run's memory and checkpoints grow with its steps, not with taxis times cells."""
    assert moves(1000, 0, together=True).distributions.shape == (1, 4)


def test_an_episode_like_the_one_before_adds_no_distributions() -> None:
    """As all are while the policy in use stays: a long run's checkpoints grow with what is new."""
    first, other = moves(3, 0), moves(3, 1)
    again = first._replace(actions=other.actions)
    store = reduce(Transitions.join, [first, again, other, first], Transitions.empty(torch.zeros(4), 2))
    assert len(store.distributions) == 9  # the last one is not as the one before it
    assert torch.equal(store.mu, torch.cat([first.mu, first.mu, other.mu, first.mu]))
    assert torch.equal(store.actions, torch.cat([first.actions, other.actions, other.actions, first.actions]))
