"""Trip probabilities as matrices, dense or sparse: checked, normalised, moved between grids, packed for a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

#: Sums may be off by rounding only; data is renormalised within this tolerance and refused beyond it.
SUM_TOLERANCE = 1e-4

#: One step's trips ``[K, K]``: row = origin, column = destination.
TripMatrix: TypeAlias = NDArray[np.float64] | sparse.csr_array
#: ``[K, K]`` or ``[T, K, K]`` where dense, one matrix or one per step where sparse.
Trips: TypeAlias = NDArray[np.float64] | sparse.csr_array | tuple[sparse.csr_array, ...]


def distributions(name: str, values: ArrayLike, ndims: tuple[int, ...]) -> NDArray[np.float64]:
    """Read-only float64 whose last axis sums to one. Arrays that nobody can write to are shared, others copied.

    Raises:
        ValueError: If the values are no distributions; the message starts with ``name``.
    """
    if isinstance(values, np.ndarray) and values.dtype == np.float64 and _is_frozen(values):
        array = values
    else:
        try:
            array = np.array(values, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name} must be an array of numbers: {error}") from error
    if array.ndim not in ndims or array.size == 0:
        raise ValueError(
            f"{name} must have {' or '.join(map(str, ndims))} dimensions and not be empty, got shape {array.shape}"
        )
    factor = _scale(name, array, array.sum(-1, keepdims=True))
    if factor is not None:
        array = array / factor
    array.flags.writeable = False
    return array


def validated_trips(values: object, size: int) -> Trips:
    """Read-only trips in which every row sums to one.

    Args:
        values: An array ``[K, K]`` or ``[T, K, K]``, a sparse matrix, or a sequence of ``T`` sparse matrices.
        size: Number of cells, ``K``.

    Raises:
        ValueError: If the values are no such trips.
    """
    if sparse.issparse(values):
        return _sparse_rows(values, size)
    if isinstance(values, Sequence) and values and all(map(sparse.issparse, values)):
        return tuple(_sparse_rows(matrix, size) for matrix in values)
    trips = distributions("trips", values, (2, 3))  # type: ignore[arg-type]  # what is no array is refused there
    if trips.shape[-2:] != (size, size):
        raise ValueError(f"trips must end in shape ({size}, {size}) to match demand, got shape {trips.shape}")
    return trips


def rows_or_identity(flow: TripMatrix) -> TripMatrix:
    """Normalise the rows of flows ``[K, K]``; a row without a trip becomes the identity: the taxi stays.

    The flow is overwritten, since on fine grids every copy counts. The result is read-only.
    """
    totals = np.asarray(flow.sum(1)).ravel()
    # An all-zero row would lose the mass of its cell, and renormalising afterwards would spread that mass over the city.
    empty = totals <= 0
    totals[empty] = 1.0
    if isinstance(flow, np.ndarray):
        flow /= totals[:, None]
        flow[empty, empty] = 1.0
        flow.flags.writeable = False
        return flow
    flow.data /= np.repeat(totals, np.diff(flow.indptr))
    return _frozen((flow + sparse.diags_array(empty.astype(np.float64))).tocsr() if empty.any() else flow)


def cell_overlap(source: int, target: int) -> sparse.csr_array:
    """Share of each cell of a ``source x source`` grid that lies in each cell of a ``target x target`` one, ``[K, K']``."""
    low, high = np.arange(source)[:, None] / source, (np.arange(source)[:, None] + 1) / source
    edges = np.arange(target + 1) / target
    axis = np.clip(np.minimum(high, edges[1:]) - np.maximum(low, edges[:-1]), 0.0, None) * source
    return sparse.csr_array(sparse.kron(sparse.csr_array(axis), sparse.csr_array(axis), format="csr"))


def resampled(trips: TripMatrix, weight: NDArray[np.float64], overlap: sparse.csr_array) -> TripMatrix:
    """Trips on another grid: a new cell's row is the mix of its old cells' rows.

    Args:
        trips: ``[K, K]``.
        weight: What each old row counts in the mix, ``[K]``, above zero.
        overlap: See :func:`cell_overlap`, ``[K, K']``.
    """
    by_origin = (overlap * weight[:, None]).T.tocsr() @ trips
    flow = by_origin @ overlap
    return rows_or_identity(flow if sparse.issparse(flow) else np.ascontiguousarray(flow))


def pack(trips: Trips) -> dict[str, Any]:
    """The arrays of a file that hold the trips."""
    if isinstance(trips, np.ndarray):
        return {"trips": trips}
    steps = trips if isinstance(trips, tuple) else (trips,)
    whole = sparse.vstack(steps, format="csr")
    # The number of rows is T * K; whether one matrix is a step of one or constant is kept apart.
    return {
        "trips_values": whole.data,
        "trips_columns": whole.indices,
        "trips_offsets": whole.indptr,
        "trips_steps": np.array(len(steps) if isinstance(trips, tuple) else 0),
    }


def unpack(arrays: Mapping[str, Any], size: int) -> Trips:
    """The inverse of :func:`pack`; trips still have to be validated.

    Raises:
        KeyError: If an array is missing.
        ValueError: If the arrays do not fit together.
    """
    if "trips" in arrays:
        return np.asarray(arrays["trips"])
    steps = int(arrays["trips_steps"])
    triple = (arrays["trips_values"], arrays["trips_columns"], arrays["trips_offsets"])
    whole = sparse.csr_array(triple, shape=(max(steps, 1) * size, size))
    whole.check_format(full_check=True)  # An index beyond the grid would read foreign memory.
    return tuple(whole[t * size : (t + 1) * size] for t in range(steps)) if steps else whole


def _sparse_rows(values: sparse.csr_array, size: int) -> sparse.csr_array:
    if values.shape != (size, size):
        raise ValueError(f"trips must have shape ({size}, {size}) to match demand, got shape {values.shape}")
    is_csr = isinstance(values, sparse.csr_array) and values.dtype == np.float64
    if is_csr and _is_frozen(values.data) and values.has_canonical_format:
        matrix = values
    else:
        matrix = sparse.csr_array(values, dtype=np.float64, copy=True)
        matrix.sum_duplicates()
    sums = np.asarray(matrix.sum(1)).ravel()
    factor = _scale("trips", matrix.data, sums)
    if factor is not None:
        data = matrix.data / np.repeat(factor, np.diff(matrix.indptr))
        matrix = sparse.csr_array((data, matrix.indices, matrix.indptr), shape=(size, size))
    return _frozen(matrix)


def _scale(name: str, entries: NDArray[np.float64], sums: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """What rows are to be divided by; None where all sum to one."""
    bad = int((~np.isfinite(entries)).sum() + (entries < 0).sum())
    if bad:
        raise ValueError(f"{name} must be finite and non-negative; {bad} of {entries.size} entries are not")
    off = int((np.abs(sums - 1) > SUM_TOLERANCE).sum())
    if off:
        worst = float(sums.flat[np.abs(sums - 1).argmax()])
        raise ValueError(f"{name} must sum to one along its last axis; {off} of {sums.size} sums do not (worst {worst:.6g})")
    # Left alone where only rounding is off, so that saving and loading changes no bit.
    inexact = np.abs(sums - 1) > 1e-12
    return np.where(inexact, sums, 1.0) if inexact.any() else None


def _is_frozen(array: NDArray[np.float64]) -> bool:
    return not array.flags.writeable and array.base is None


def _frozen(matrix: sparse.csr_array) -> sparse.csr_array:
    matrix.sort_indices()
    # SciPy's products come with 64-bit indices even where half of that would do.
    index = np.int32 if matrix.nnz < 2**31 else np.int64
    matrix.indices, matrix.indptr = matrix.indices.astype(index, copy=False), matrix.indptr.astype(index, copy=False)
    for array in (matrix.data, matrix.indices, matrix.indptr):
        array.flags.writeable = False
    return matrix
