"""Checks of numbers that users give: Python's, NumPy's, and arrays or tensors of rank 0."""

from numbers import Integral, Real

import numpy as np

SMALLEST_NORM = 1e-12


def plain(value):
    """A number of NumPy's, or an array or tensor of rank 0, as Python's; anything else as it is.

    The float32 nearest to 0.3 means 0.3.
    """
    if hasattr(value, "__array__") and getattr(value, "shape", None) == ():
        value = np.asarray(value)[()]
        return float(str(value)) if isinstance(value, np.floating) else value.item()
    return value


def real(value):
    """The float that a value is; NaN, which no range holds, if it is no real number."""
    value = plain(value)
    if isinstance(value, bool) or not isinstance(value, Real):
        return float("nan")
    return float(value)


def integer(value):
    """The int that a value is, or None if it is no integer."""
    value = plain(value)
    if isinstance(value, bool) or not isinstance(value, Integral):
        return None
    return int(value)


def positive(name, value):
    """The value as a float; raises a ValueError unless it is a positive finite number."""
    if not 0 < real(value) < float("inf"):
        raise ValueError(f"`{name}` must be positive and finite. Received: {name}={value!r}")
    return real(value)


def norm_bound(name, value):
    """`positive`, and not so small that norms above it have squares that are zero in float32."""
    if 0 < real(value) < SMALLEST_NORM:
        raise ValueError(
            f"`{name}` must be at least {SMALLEST_NORM}: of shorter vectors float32 takes the norm "
            f"for zero, and would not clip them. Received: {name}={value!r}. Scale the weights up."
        )
    return positive(name, value)


def not_negative(name, value):
    """The value as a float; raises a ValueError unless it is a finite number of at least 0."""
    if not 0 <= real(value) < float("inf"):
        raise ValueError(f"`{name}` must be at least 0 and finite. Received: {name}={value!r}")
    return real(value)


def positive_integer(name, value):
    """The value as an int; raises a ValueError unless it is an integer of at least 1."""
    found = integer(value)
    if found is None or found < 1:
        raise ValueError(f"`{name}` must be a positive integer. Received: {name}={value!r}")
    return found


def integer_from(least, name, value):
    """The value as an int; raises a ValueError unless it is an integer of at least `least`."""
    found = integer(value)
    if found is None or found < least:
        raise ValueError(
            f"`{name}` must be an integer of at least {least}. Received: {name}={value!r}"
        )
    return found


def fraction(name, value):
    """The value as a float; raises a ValueError unless it is a number in (0, 1]."""
    if not 0 < real(value) <= 1:
        raise ValueError(f"`{name}` must be in (0, 1]. Received: {name}={value!r}")
    return real(value)


def open_fraction(name, value):
    """The value as a float; raises a ValueError unless it is a number in (0, 1)."""
    if not 0 < real(value) < 1:
        raise ValueError(f"`{name}` must be in (0, 1). Received: {name}={value!r}")
    return real(value)
