"""Arrays in files, which processes map into their memory instead of sending them."""

import mmap
import os
from typing import NamedTuple

import numpy as np

_ALIGNMENT = 64  # bytes: what TensorFlow wants of memory that it does not copy


class Stored(NamedTuple):
    """Arrays that lie in a file.

    Attributes:
        path: The file.
        layout: `(dtype, shape, offset)` of each array.
    """

    path: str
    layout: tuple


def write(path, arrays) -> Stored:
    """Writes arrays to a file."""
    layout, end = [], 0
    with open(path, "wb") as file:
        for array in arrays:
            array = np.ascontiguousarray(array).reshape(np.shape(array))
            file.write(bytes(-end % _ALIGNMENT))
            layout.append((array.dtype.str, array.shape, file.tell()))
            file.write(array.data if array.size else b"")
            end = file.tell()
        file.write(bytes(_ALIGNMENT))  # a file of nothing cannot be mapped
    return Stored(str(path), tuple(layout))


def read(stored) -> list:
    """The arrays of a file: its memory, not a copy. They outlive the file's name."""
    with open(stored.path, "rb") as file:
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    return [
        np.frombuffer(memory, dtype, int(np.prod(shape, dtype=np.int64)), offset).reshape(shape)
        for dtype, shape, offset in stored.layout
    ]


def take(stored) -> list:
    """`read`, after which the file is gone."""
    arrays = read(stored)
    os.remove(stored.path)
    return arrays
