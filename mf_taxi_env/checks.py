"""Checks of arguments that every room shares."""

from __future__ import annotations

import operator
from typing import Any


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
