"""A constant sparse matrix as torch needs it: products with batches of distributions, differentiable on any device."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from scipy import sparse
from torch import Tensor
from torch.nn.functional import embedding_bag


class SparseRows(NamedTuple):
    """A matrix ``[n, m]`` by its rows (CSR): entry ``values[e]`` of row ``r`` for ``offsets[r] <= e < offsets[r + 1]``."""

    offsets: Tensor  #: [n + 1]
    columns: Tensor  #: [nonzeros], of the offsets' integer type
    values: Tensor  #: [nonzeros]

    @classmethod
    def of(cls, matrix: sparse.csr_array, dtype: torch.dtype, device: torch.device) -> SparseRows:
        """Copy a SciPy matrix."""
        return cls(
            torch.tensor(matrix.indptr, device=device),
            torch.tensor(matrix.indices, device=device),
            torch.tensor(matrix.data, dtype=dtype, device=device),
        )

    def times(self, x: Tensor) -> Tensor:
        """This matrix times ``x`` ``[m, b]``: ``[n, b]``. No gradient."""
        if x.shape[1] == 0:  # which a bag refuses
            return x.new_zeros(len(self.offsets) - 1, 0)
        # A row of the product is a weighted bag of rows of x. Torch's own CSR product needs MKL on a CPU, warns that it is in
        # beta, and turns to a slow serial one for its gradient.
        return embedding_bag(
            self.columns, x, self.offsets, mode="sum", per_sample_weights=self.values, include_last_offset=True
        )


class SparseMatrix:
    """A constant matrix for ``x @ matrix`` with ``x`` ``[..., n]``, differentiable in ``x`` any number of times.

    Args:
        matrix: ``[n, m]``, copied.
        dtype: Floating-point type, which ``x`` must have.
        device: Device, where ``x`` must be.
    """

    def __init__(self, matrix: sparse.csr_array, dtype: torch.dtype, device: torch.device) -> None:
        self.rows = SparseRows.of(matrix, dtype, device)
        # Both orders are kept: forward needs columns, backward rows, and either is fast only by its own.
        self._columns = SparseRows.of(sparse.csr_array(matrix.T), dtype, device)

    def __rmatmul__(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1]).T
        product: Tensor = _Product.apply(flat, self._columns, self.rows)  # type: ignore[no-untyped-call]
        return product.T.reshape(*x.shape[:-1], len(product))


class _Product(torch.autograd.Function):
    """``matrix @ x`` for a constant matrix, with its transpose at hand for the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: SparseRows, transposed: SparseRows) -> Tensor:
        ctx.matrix, ctx.transposed = matrix, transposed
        # A batch of one counts as contiguous in any layout, yet only unit strides take the quick path.
        return matrix.times(x.clone(memory_format=torch.contiguous_format))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        gradient: Tensor = _Product.apply(gradients[0], ctx.transposed, ctx.matrix)  # type: ignore[no-untyped-call]
        return gradient, None, None
