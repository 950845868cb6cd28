"""Arrays whose examples differ in length, padded with zeros behind their own values."""

import numpy as np


def joined(arrays: list, shape: tuple | None = None):
    """Concatenates arrays along the first dimension; the others are padded to the longest.

    Args:
        arrays: Arrays of one rank.
        shape: The shape of one example; dimensions that are None come in a few lengths only, so
            that few programs are compiled. None: just the longest.

    Returns:
        One array; strings are padded with empty ones.
    """
    longest = tuple(max(sizes) for sizes in zip(*(a.shape[1:] for a in arrays), strict=True))
    if shape is not None:
        pairs = zip(longest, shape, strict=True)
        longest = tuple(rounded(size) if want is None else want for size, want in pairs)
    if all(array.shape[1:] == longest for array in arrays):
        return np.concatenate(arrays)
    return np.concatenate([padded(array, longest) for array in arrays])


def padded(array, shape: tuple):
    """Returns the array with examples of the given shape, its own values at the beginning."""
    if array.shape[1:] == shape:
        return array
    out = np.zeros((len(array), *shape), array.dtype)
    if array.dtype.kind == "O":
        out[...] = ""
    out[tuple(slice(size) for size in array.shape)] = array
    return out


def rounded(length: int) -> int:
    """Returns the next length of which there are four to each doubling."""
    if length <= 8:
        return length
    step = 1 << ((length - 1).bit_length() - 3)
    return -(-length // step) * step
