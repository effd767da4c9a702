"""Where a perturbed particle lands: Gaussian noise, truncated to the unit cube, as probabilities of grid cells."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mf_taxi_env.checks import finite_number, plain_numbers
from mf_taxi_env.grid import Grid

#: Where erf is 1 to the last bit.
SATURATION = {torch.float32: 3.95, torch.float64: 5.93}
#: Numbers in the largest temporary of a push-forward: what stays in a CPU's cache, and what keeps a GPU busy.
BLOCK = {"cpu": 2**21, "cuda": 2**27}


class Noise(Protocol):
    """What perturbs particles on a grid of the unit cube; see :class:`TruncatedGaussian` for shapes."""

    @property
    def grid(self) -> Grid:
        """The grid to land on."""
        ...

    @property
    def std(self) -> float:
        """Standard deviation per axis."""
        ...

    def cell_probabilities(self, destinations: Tensor) -> Tensor:
        """Probability ``[..., d, k]`` of each cell of each axis, for ``destinations`` ``[..., d]``."""
        ...

    def push_forward(self, mass: Tensor, destinations: Tensor) -> Tensor:
        """The distribution ``[..., K]`` of ``mass`` ``[..., n]`` that heads for ``destinations`` ``[..., n, d]``."""
        ...

    def sample(self, destinations: Tensor, generator: torch.Generator) -> Tensor:
        """Draw where particles that head for ``destinations`` ``[m, d]`` land, ``[m, d]``."""
        ...


class _Kernel(NamedTuple):
    """Where particles land, per axis. Particles come last: rows are long, which is what vector units like."""

    first: Tensor  #: index of the first of the w cells within reach [..., d, n]
    spans: Tensor  #: by how much erf grows over each of these cells [..., d, w, n]
    within: Tensor  #: and over the city, their sum [..., d, n]
    arguments: Tensor | None  #: of erf, at the edges of these cells [..., d, w + 1, n], where slopes are wanted

    def cells(self) -> Tensor:
        """Indices of the cells within reach, ``[..., d, w, n]``."""
        return self.first.unsqueeze(-2) + multiples(self.spans.shape[-2], 1, torch.int64, self.first.device)

    def dense(self, k: int, mass: Tensor, workspace: Tensor | None = None) -> Tensor:
        """Probabilities of all ``k`` cells, ``[..., d, n, k]``, those of the first axis times ``mass`` ``[..., n]``.

        They are written to ``workspace`` where it fits. Without slopes only their product over the axes is that of
        probabilities, and the spans are used up: both spare time.
        """
        shape = (*self.within.shape, k)
        if workspace is None or workspace.shape != shape:
            workspace = self.spans.new_zeros(shape)
        else:
            workspace.zero_()
        if self.arguments is None:
            weighted = self.spans
            weighted.select(-3, 0).mul_((mass / self.within.prod(-2)).unsqueeze(-2))
        else:
            weights = self.within.reciprocal()
            weights.select(-2, 0).mul_(mass)
            weighted = self.spans * weights.unsqueeze(-2)
        return workspace.scatter_(-1, self.cells().mT, weighted.mT)


@dataclass(frozen=True)
class TruncatedGaussian:
    """Independent Gaussian noise per axis, truncated so that the particle stays in ``[0, 1]^d``.

    With ``F(x) = NormalCDF((x - destination) / std)`` the probability of cell ``i`` of an axis is
    ``(F((i+1)/k) - F(i/k)) / (F(1) - F(0))`` (arXiv 2306.17052, Appendix D.2). Cells beyond the distance at which ``F`` is 0
    or 1 to the last bit have probability zero and are not computed.

    Args:
        grid: The grid to land on.
        std: Standard deviation per axis, in units of the unit cube's side; positive.
    """

    grid: Grid
    std: float

    def __post_init__(self) -> None:
        plain_numbers(self)
        finite_number("noise_std", self.std, positive=True)

    def cell_probabilities(self, destinations: Tensor) -> Tensor:
        """Probability of each cell of each axis.

        Args:
            destinations: ``[..., d]`` in ``[0, 1]``, float32 or float64.

        Returns:
            ``[..., d, k]``; the last axis sums to one.
        """
        kernel = self._kernel(destinations.unsqueeze(-2), slopes=destinations.requires_grad)
        zeros = kernel.spans.new_zeros((*destinations.shape, self.grid.cells))
        return zeros.scatter(-1, kernel.cells().squeeze(-1), kernel.spans.squeeze(-1) / kernel.within)

    def push_forward(self, mass: Tensor, destinations: Tensor) -> Tensor:
        """The distribution of particles that head for ``destinations`` and are perturbed.

        In two dimensions this is ``Px^T diag(mass) Py``: two small matrix products, never a ``K x K`` kernel. Memory is linear
        in the number of particles, also with gradients. Differentiable once.

        Args:
            mass: Mass of each particle group, ``[..., n]``.
            destinations: ``[..., n, d]`` in ``[0, 1]``, float32 or float64.

        Returns:
            ``[..., K]`` with the same total mass.
        """
        n, d = destinations.shape[-2:]
        batch = mass.shape[:-1]
        if batch != destinations.shape[:-2]:
            batch = torch.broadcast_shapes(batch, destinations.shape[:-2])
            mass, destinations = mass.expand(*batch, n), destinations.expand(*batch, n, d)
        flat = mass.reshape(-1, n), destinations.reshape(-1, n, d)
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in flat):
            pushed: Tensor = _PushForward.apply(self, *flat)  # type: ignore[no-untyped-call]
        else:
            pushed, _ = _push_forward(self, *flat, _blocks(flat[1], self.grid.cells), slopes=False)
        return pushed.view(*batch, self.grid.size)

    def _kernel(self, destinations: Tensor, slopes: bool) -> _Kernel:
        """Where particles that head for ``destinations`` ``[..., n, d]`` land; with what its ``slopes`` need, or without."""
        k, scale = self.grid.cells, 1.0 / (math.sqrt(2.0) * self.std)
        reach = SATURATION[destinations.dtype] / scale * k
        # An interval of length 2 reach overlaps at most so many cells, wherever it lies.
        width = min(k, math.ceil(2.0 * reach) + 1)
        places = (destinations * k).mT.contiguous()
        # A NaN makes its probabilities NaN; as an index it is whatever number, and the clamp keeps that within the grid.
        first = (places - reach).long().clamp_(0, k - width)
        edges = multiples(width + 1, scale / k, destinations.dtype, destinations.device)
        arguments = (first - places).mul_(scale / k).unsqueeze(-2) + edges
        # erf is twice the distance of the normal CDF from one half; the factors cancel in the quotient of the two.
        cdf = torch.erf(arguments) if slopes else arguments.erf_()
        return _Kernel(first, cdf.diff(dim=-2), _span(cdf), arguments if slopes else None)

    def sample(self, destinations: Tensor, generator: torch.Generator) -> Tensor:
        """Draw where particles land.

        Args:
            destinations: ``[m, d]`` in ``[0, 1]``.
            generator: Source of randomness, on the device of ``destinations``.

        Returns:
            Positions ``[m, d]`` in ``[0, 1]``.
        """
        scale = self.std * math.sqrt(2.0)
        low = destinations.div(-scale).erf_()
        span = (1.0 - destinations).div_(scale).erf_().sub_(low)
        uniform = torch.rand(destinations.shape, generator=generator, dtype=destinations.dtype, device=destinations.device)
        # Inverse of the truncated distribution function. It is infinite at the two ends, which rounding may reach.
        end = 1.0 - torch.finfo(destinations.dtype).eps / 2
        noise = uniform.mul_(span).add_(low).clamp_(-end, end).erfinv_()
        return noise.mul_(scale).add_(destinations).clamp_(0.0, 1.0)


class _PushForward(torch.autograd.Function):
    """Push-forward of ``mass`` ``[B, n]`` heading for ``destinations`` ``[B, n, d]``, block by block.

    Automatic differentiation would keep the matrices of every block until the backward pass; this computes them again, and
    keeps them only where there is a single block.
    """

    @staticmethod
    def forward(ctx: Any, noise: TruncatedGaussian, mass: Tensor, destinations: Tensor) -> Tensor:
        ctx.noise, ctx.blocks = noise, _blocks(destinations, noise.grid.cells)
        out, last = _push_forward(noise, mass, destinations, ctx.blocks, slopes=True)
        ctx.kept = last if len(ctx.blocks) == 1 else None
        ctx.save_for_backward(mass, destinations)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[None, Tensor, Tensor]:
        noise: TruncatedGaussian = ctx.noise
        mass, destinations = ctx.saved_tensors
        k, d = noise.grid.cells, noise.grid.dimension
        slope = slope.reshape(-1, *[k] * d)
        to_mass, to_destinations = torch.empty_like(mass), torch.empty_like(destinations)
        workspace = None
        for rows, columns in ctx.blocks:
            if ctx.kept:
                kernel, dense = ctx.kept
            else:
                kernel = noise._kernel(destinations[rows, columns], slopes=True)
                dense = workspace = kernel.dense(k, mass[rows, columns], workspace)
            # How the outcome answers to the probability of each cell of each axis; of the second, per unit of the city's mass.
            if d == 1:
                answers = slope[rows].view(-1, 1, k, 1).expand(-1, -1, -1, kernel.within.shape[-1])
            else:
                answers = dense.new_empty(*kernel.within.shape[:-1], k, kernel.within.shape[-1])
                torch.matmul(slope[rows], dense.select(1, 1).mT, out=answers.select(1, 0))
                torch.matmul(slope[rows].mT, dense.select(1, 0).mT, out=answers.select(1, 1))
            answers = answers.gather(-2, kernel.cells())
            expected = (answers * kernel.spans).sum(-2).div_(kernel.within)
            to_mass[rows, columns] = expected.select(1, 0)
            # The normal density at the edges; the clamp spares it the denormal tails, which are slow.
            density = cast(Tensor, kernel.arguments).clamp(-9.0, 9.0).square_().neg_().exp_()
            pull = expected.mul_(_span(density)) - answers.mul_(density.diff(dim=-2)).sum(-2)
            pull.select(1, 0).mul_(mass[rows, columns])
            to_destinations[rows, columns] = pull.mul_(math.sqrt(2.0 / math.pi) / noise.std).div_(kernel.within).mT
        return None, to_mass, to_destinations


def _push_forward(
    noise: TruncatedGaussian, mass: Tensor, destinations: Tensor, blocks: Sequence[tuple[slice, slice]], slopes: bool
) -> tuple[Tensor, tuple[_Kernel, Tensor] | None]:
    """The distributions ``[B, K]``, and what the last block was computed from."""
    k, d = noise.grid.cells, noise.grid.dimension
    out = mass.new_zeros(len(mass), *[k] * d)
    last, dense = None, None
    for rows, columns in blocks:
        kernel = noise._kernel(destinations[rows, columns], slopes)
        # Memory that is new to the process costs more than what is written to it: blocks share the largest piece.
        dense = kernel.dense(k, mass[rows, columns], dense)
        if d == 1:
            out[rows].add_(dense.select(1, 0).sum(-2))
        else:
            out[rows].baddbmm_(dense.select(1, 0).mT, dense.select(1, 1))
        last = kernel, dense
    return out.flatten(1), last


def _span(values: Tensor) -> Tensor:
    """The last less the first of values ``[..., w, n]``: ``[..., n]``."""
    return values.select(-2, -1) - values.select(-2, 0)


@lru_cache(maxsize=64)
def multiples(n: int, step: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """``0, step, 2 step, ...`` as a column ``[n, 1]``; usable with gradients even if first asked for in inference."""
    with torch.inference_mode(False):
        return (torch.arange(n, dtype=dtype, device=device) * step).unsqueeze(-1)


def _blocks(destinations: Tensor, k: int) -> list[tuple[slice, slice]]:
    """Blocks of the batch and of the particles that keep temporaries small; of about equal rows, to use memory again."""
    batch, n, d = destinations.shape
    particles = max(1, BLOCK.get(destinations.device.type, BLOCK["cuda"]) // (d * k))
    rows, columns = max(1, particles // max(n, 1)), max(1, min(n, particles))
    rows = max(1, math.ceil(batch / max(1, math.ceil(batch / rows))))
    return [
        (slice(row, row + rows), slice(column, column + columns))
        for row in range(0, batch, rows)
        for column in range(0, n, columns)
    ]
