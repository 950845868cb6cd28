"""Dtypes of clients' arrays: brought to one another only where no number is lost.

`float64` is read as `float32`, as Keras would. That rounds fractions to some seven digits, which
is what float32 means; but it may not make one of two neighbouring ids or instants, so whole numbers
that float32 does not have are refused.
"""

import warnings

import numpy as np

EXACT = 2**24  # whole numbers up to here are exact in float32
_HALF_UNIT = 2.0**-24  # rounding to float32 changes a number by at most this share
_HARMLESS = 1e-3  # of a column's spread
_WHOLE = 2**64  # ids end here; beyond, every float64 is whole
_COUNTS = 2**43  # whole numbers up to here are ids or instants: few fractions are whole by chance
_FEW = 0.1  # of large fractions, as many may fall together with another


def narrowed(array, name: str, where: str, columns=None):
    """Returns float64 values as float32.

    Args:
        array: The values; the last of two and more dimensions counts as columns.
        name: The array's name, for messages.
        where: Whose array it is, for messages.
        columns: Names of the columns, if they have any.

    Raises:
        ValueError: A column of whole numbers, or one of large numbers, would not survive.
    """
    with np.errstate(over="ignore"):  # what does not fit becomes infinite and is refused elsewhere
        narrow = array.astype(np.float32)
    if not array.size:
        return narrow
    table = array.reshape(-1, array.shape[-1] if array.ndim > 1 else 1)
    with np.errstate(invalid="ignore", over="ignore"):
        low, high = table.min(axis=0), table.max(axis=0)
        top = np.maximum(np.abs(low), np.abs(high))
        suspect = (top > EXACT) | (top * _HALF_UNIT > _HARMLESS * (high - low)) & (high > low)
    for k in np.flatnonzero(suspect & np.isfinite(top) & (top <= np.finfo(np.float32).max)):
        label = name if array.ndim == 1 else f"column {_named(columns, k)} of {name}"
        _check_column(table[:, k], label, where)
    return narrow


def _named(columns, k):
    return repr(columns[k]) if columns else str(k)


def _check_column(values, label, where):
    narrow = values.astype(np.float32).astype(np.float64)
    lost = np.flatnonzero(narrow != values)
    if not len(lost):
        return
    changes = np.abs(narrow - values)
    shown = lost[np.argmax(changes[lost])]
    told = (
        f"{label} of {where} loses digits in float32: {float(values[shown])!r} becomes "
        f"{float(narrow[shown])!r}."
    )
    large = np.abs(values) >= EXACT
    harmful = changes.max() > _HARMLESS * (values.max() - values.min())
    whole = np.all(values == np.floor(values)) and np.abs(values).max() <= _WHOLE
    if whole or (harmful and large.any()) or _merged(values[large]):
        raise ValueError(
            f"Expected numbers that float32 can tell apart. Received: {told} Leave the column out, "
            "subtract an offset or divide before (clients.map(...) sees the values as they were "
            "read), or keep ids as integers in an array of their own."
        )
    if changes[large].any() or (harmful and _distinct(values) > _distinct(narrow)):
        warnings.warn(f"{told} Subtract an offset or standardise the column.", stacklevel=2)


def _merged(values):
    """Whether large numbers that are told apart somewhere would not be in float32."""
    narrow = values.astype(np.float32)
    if _distinct(narrow) < (1 - _FEW) * _distinct(values):
        return True
    counts = (values == np.floor(values)) & (np.abs(values) <= _COUNTS)
    return _distinct(narrow[counts]) < _distinct(values[counts])


def _distinct(values):
    return len(np.unique(values))


def common(first: np.dtype, second: np.dtype):
    """Returns the dtype that both become, or None if there is none that could hold both."""
    if first == second:
        return first
    if "O" in (first.kind, second.kind):
        return None
    found = np.promote_types(first, second)
    if found != np.float64:
        return found
    both_whole = "f" not in (first.kind, second.kind)
    return np.dtype(np.int64 if both_whole else np.float32)


def cast(array, dtype: np.dtype, name: str, where: str):
    """Returns the array in another dtype.

    Raises:
        ValueError: Some number would become another.
    """
    if array.dtype == dtype:
        return array
    if lost := first_lost(array, dtype):
        row, value = lost
        raise ValueError(
            f"Expected {name} of {where} as {dtype}, which is what all clients' have in common. "
            f"Received: {array.dtype} with the value {value} at row {row}, which {dtype} cannot "
            "hold. Give all clients one dtype that can."
        )
    return array.astype(dtype)


def first_lost(array, dtype):
    """Returns `(row, value)` of a number that `dtype` cannot hold, or None if it holds all."""
    dtype = np.dtype(dtype)
    if not array.size or array.dtype == dtype or array.dtype.kind == "b":
        return None
    if "O" in (array.dtype.kind, dtype.kind):
        return 0, array.reshape(-1)[0]
    bad = _lost(array, dtype)
    if not bad.any():
        return None
    at = int(np.argmax(bad.reshape(-1)))
    return at // (array.size // len(array)), array.reshape(-1)[at]


def _lost(array, dtype):
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        bad = (array < limits.min) | (array > limits.max)
        return bad | (array != np.floor(array)) if array.dtype.kind == "f" else bad
    if dtype.kind == "b":
        return (array != 0) & (array != 1)
    if array.dtype.kind == "f":
        return np.zeros(array.shape, bool)  # fewer digits of a fraction
    most = 2 ** (np.finfo(dtype).nmant + 1)
    low, high = int(array.min()), int(array.max())
    if -most <= low and high <= most:
        return np.zeros(array.shape, bool)
    with np.errstate(over="ignore", invalid="ignore"):
        back = array.astype(dtype).astype(np.float64)
        limits = np.iinfo(array.dtype)
        fits = (back >= limits.min) & (back < float(limits.max) + (limits.max < 2**53))
        return ~fits | (np.where(fits, back, 0).astype(array.dtype) != array)
