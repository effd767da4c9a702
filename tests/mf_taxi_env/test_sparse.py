"""Products with a constant sparse matrix: the numbers and gradients of a dense one, without a warning."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import sparse

from mf_taxi_env.sparse import SparseMatrix

CPU = torch.device("cpu")


def matrix(rows: int = 6, columns: int = 4, seed: int = 0) -> sparse.csr_array:
    """A random matrix, its second row and second column empty."""
    rng = np.random.default_rng(seed)
    dense = rng.random((rows, columns)) * (rng.random((rows, columns)) < 0.5)
    dense[1], dense[:, 1] = 0.0, 0.0
    return sparse.csr_array(dense)


@pytest.mark.parametrize("batch", [(), (1,), (3,), (2, 5), (0,)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-14)])
def test_products_are_those_of_the_dense_matrix(batch: tuple[int, ...], dtype: torch.dtype, tolerance: float) -> None:
    """Any leading dimensions, either precision, empty rows and columns."""
    given = matrix()
    x = torch.randn((*batch, 6), dtype=dtype, generator=torch.Generator().manual_seed(0))
    product = x @ SparseMatrix(given, dtype, CPU)
    assert product.dtype == dtype
    torch.testing.assert_close(product, x @ torch.tensor(given.toarray(), dtype=dtype), rtol=0, atol=tolerance)


def test_gradients_of_any_order_are_right() -> None:
    """Against finite differences, once and twice differentiated."""
    given = SparseMatrix(matrix(), torch.float64, CPU)
    x = torch.rand((2, 6), dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: (x @ given) ** 3, x)
    assert torch.autograd.gradgradcheck(lambda x: (x @ given) ** 3, x)
    assert torch.autograd.gradcheck(lambda x: x[0] @ given, x)
