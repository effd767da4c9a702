"""Where passengers go: destinations of a whole fleet, drawn at once from trip probabilities."""

from __future__ import annotations

import torch
from torch import Tensor

from mf_taxi_env.sparse import SparseMatrix

#: Most buckets that a row's guide has; a power of two, so that a number's bucket is exact.
BUCKETS = 2048


class Destinations:
    """Cumulative trip probabilities, all rows in one line, and a guide to it: a draw is a look-up and a step.

    The guide says for equal intervals ("buckets") of ``[0, 1)`` where in its row the first number of each would land. Most
    draws land there or one further (the cutpoint method, Chen and Asau 1974); the others are found by bisection, so that all
    are exact.

    Args:
        trips: Row-stochastic, ``[K, K]``: row = origin, column = destination.

    Example:
        >>> table = Destinations(torch.tensor([[0.0, 1.0], [0.25, 0.75]]))
        >>> table.draw(torch.tensor([0, 1, 1]), torch.tensor([0.0, 0.2, 0.3], dtype=torch.float64)).tolist()
        [1, 0, 1]
    """

    def __init__(self, trips: Tensor | SparseMatrix) -> None:
        self.trips = trips  # kept, so that no other trips can take its identity
        # Row c holds c + (cumulative probabilities of trips[c]); a search in float64 stays exact at thousands of rows.
        if isinstance(trips, Tensor):
            size = len(trips)
            cumulative = trips.to(torch.float64, copy=True).cumsum_(-1)
            cumulative /= cumulative[:, -1:].clone()
            # A parallel sum may pass the last by rounding: no number of a row is to be one of the next.
            cumulative.clamp_(max=1.0)
            cumulative += torch.arange(size, dtype=torch.float64, device=trips.device).unsqueeze(-1)
            self._line = cumulative.flatten()
            self._columns = None
        else:
            offsets, columns, values = trips.rows
            size, counts = len(offsets) - 1, offsets.diff()
            line = torch.cat([values.new_zeros(1, dtype=torch.float64), values.double().cumsum(0)])
            start, end = line[offsets[:-1]], line[offsets[1:]]
            rows = torch.arange(size, device=values.device).repeat_interleave(counts)
            self._line = ((line[1:] - start[rows]) / (end - start)[rows]).clamp_(0.0, 1.0) + rows
            self._columns = columns
        self._size, self._below_one = size, 1.0 - size * torch.finfo(torch.float64).eps
        self._buckets = min(BUCKETS, 2 << (len(self._line) // size).bit_length())
        edges = torch.arange(self._buckets, dtype=torch.float64, device=self._line.device) / self._buckets
        rows = torch.arange(size, dtype=torch.float64, device=self._line.device).unsqueeze(-1)
        self._guide = torch.searchsorted(self._line, (rows + edges).flatten(), out_int32=True, right=True)

    def draw(self, cells: Tensor, uniform: Tensor) -> Tensor:
        """Destinations ``[n]`` of trips from ``cells`` ``[n]``, by float64 numbers ``[n]`` in ``[0, 1)``."""
        # Below the next row's numbers, also once it is rounded: so what is found is in its row.
        wanted = cells + uniform.clamp(max=self._below_one)
        bucket = (wanted * self._buckets).long()
        found = self._guide.index_select(0, bucket)
        found += self._line.index_select(0, found) <= wanted
        behind = where(self._line.index_select(0, found) <= wanted)
        beyond = torch.searchsorted(self._line, wanted.index_select(0, behind), out_int32=True, right=True)
        found.index_copy_(0, behind, beyond)
        if self._columns is None:
            return torch.sub(found, cells, alpha=self._size)
        return self._columns.index_select(0, found).long()


def where(mask: Tensor) -> Tensor:
    """The places of the ones of a mask ``[n]``, ascending; on a CPU by NumPy, in a fraction of torch's time."""
    if mask.device.type != "cpu":
        return mask.nonzero().squeeze(-1)
    return torch.from_numpy(mask.numpy().nonzero()[0])
