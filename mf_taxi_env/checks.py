"""Checks of arguments that every room shares."""

from __future__ import annotations

import dataclasses
import math
import operator
from numbers import Real
from typing import Any

import numpy as np
import torch


def whole_number(name: str, value: Any, least: int, most: int | None = None) -> int:
    """A whole number as a Python ``int``; NumPy's integers are as good as Python's.

    Args:
        name: The argument's name, for the message.
        value: What was given.
        least: Smallest value allowed.
        most: Largest value allowed; default any.

    Raises:
        ValueError: If the value is out of range, or of another type: a float, or a bool, which Python counts as an integer.

    Example:
        >>> whole_number("cells", 25, least=1)
        25
    """
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < least or (most is not None and number > most):
        allowed = f">= {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name} must be an integer {allowed}, got {value!r}")
    return number


def is_number(value: object) -> bool:
    """Whether ``value`` is a real number, of Python or NumPy; a bool is not one, although Python computes with it."""
    return isinstance(value, Real) and not isinstance(value, bool)


def finite_number(name: str, value: Any, *, positive: bool = False) -> float:
    """A finite number of at least 0 as a Python float.

    Args:
        name: The argument's name, for the message.
        value: What was given.
        positive: Whether 0 is refused, too.

    Raises:
        ValueError: If the value is out of range, no number or a bool.

    Example:
        >>> finite_number("noise_std", 0.0175, positive=True)
        0.0175
    """
    try:
        number = float(value) if is_number(value) else math.nan
    except OverflowError:  # an integer beyond all floats
        number = math.inf
    if not (math.isfinite(number) and (number > 0 if positive else number >= 0)):
        raise ValueError(f"{name} must be {'a finite number > 0' if positive else 'a finite number >= 0'}, got {value!r}")
    return number


def plain_number(value: Any) -> Any:
    """A NumPy number as one of Python's, for ``json.dumps(..., default=plain_number)``.

    Raises:
        TypeError: If it is none.
    """
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"a setting must be a number, text or tuple of these, got {value!r}")


def plain_numbers(settings: Any) -> None:
    """Turn NumPy's numbers in the fields of a frozen dataclass, and in tuples there, into Python's.

    What a float32 is multiplied by is rounded to float32, and files keep no such types: a run that goes on would be another.

    Args:
        settings: The dataclass; for its ``__post_init__``.
    """
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if isinstance(value, np.generic):
            object.__setattr__(settings, field.name, value.item())
        elif isinstance(value, tuple) and any(isinstance(one, np.generic) for one in value):
            plain = tuple(one.item() if isinstance(one, np.generic) else one for one in value)
            object.__setattr__(settings, field.name, plain)


def used_device(device: torch.device | str, dtype: torch.dtype = torch.float32) -> torch.device:
    """The device that tensors are on if they are put on ``device``: ``"cuda"`` is ``cuda:0``, or which one is current.

    Args:
        device: The device.
        dtype: What it has to compute with.

    Raises:
        ValueError: If there is no such device here, or it has no such numbers. One that is full raises torch's own error.
    """
    try:
        return torch.zeros(1, dtype=dtype, device=device).device  # computed there, not only asked for
    except torch.cuda.OutOfMemoryError:  # a device that is there, and full
        raise
    except (RuntimeError, AssertionError, TypeError) as error:  # torch raises any, depending on how it was built
        raise ValueError(f"device {device!r} is not usable here: {str(error).splitlines()[0]}") from error
