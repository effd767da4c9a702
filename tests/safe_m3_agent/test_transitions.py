"""The store of moves."""

from __future__ import annotations

import torch

from safe_m3_agent.transitions import Transitions


def moves(n: int, seed: int) -> Transitions:
    """Random moves on four cells."""
    generator = torch.Generator().manual_seed(seed)
    return Transitions(*(torch.rand(n, width, generator=generator) for width in (2, 4, 2, 2)))


def test_empty_store_has_the_worlds_shape_and_type() -> None:
    """The first join neither fails nor changes the type."""
    empty = Transitions.empty(torch.zeros(4, dtype=torch.float64), 2)
    assert empty.size == 0
    assert [tuple(part.shape) for part in empty] == [(0, 2), (0, 4), (0, 2), (0, 2)]
    assert all(part.dtype == torch.float64 for part in empty)


def test_join_keeps_the_order() -> None:
    """Older moves stay first: bootstrap weights belong to places in the store."""
    first, second = moves(3, 0), moves(2, 1)
    joined = first.join(second)
    assert joined.size == 5
    for part, old, new in zip(joined, first, second, strict=True):
        assert torch.equal(part[:3], old) and torch.equal(part[3:], new)
    assert all(torch.equal(a, b) for a, b in zip(Transitions.empty(torch.zeros(4), 2).join(first), first, strict=True))
