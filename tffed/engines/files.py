"""Arrays in files, which processes map into their memory instead of sending them.

On Linux the files have no name in any folder: workers reach them through the process that made
them, and the system frees them with it, however it ends. Elsewhere they lie in a folder whose owner
holds a lock on it, and a later program removes folders that nobody holds.
"""

import contextlib
import itertools
import mmap
import os
import shutil
import sys
import tempfile
import weakref
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tffed.lock import Lock, LockedError

_ALIGNMENT = 64  # bytes: what TensorFlow wants of memory that it does not copy
_PREFIX = "tffed-"
_numbers = itertools.count()


class Place(NamedTuple):
    """Where a file is.

    Attributes:
        path: Its name.
        number: A number that no other file of the process that made it has; names may come again.
    """

    path: str
    number: int


class Stored(NamedTuple):
    """Arrays that lie in a file.

    Attributes:
        place: The `Place` of the file.
        layout: `(dtype, shape, offset)` of each array.
    """

    place: Place
    layout: tuple


class File:
    """A file for this process and its workers, as long as this object lives.

    Attributes:
        place: Its `Place`.
    """

    def __init__(self, folder=None):
        number = next(_numbers)
        if folder is None:
            with tempfile.TemporaryFile() as file:
                descriptor = os.dup(file.fileno())
            path = f"/proc/{os.getpid()}/fd/{descriptor}"
            weakref.finalize(self, os.close, descriptor)
        else:
            path = os.path.join(folder, str(number))
            weakref.finalize(self, _remove, path).atexit = False  # it goes with the folder
        self.place = Place(path, number)


def folder():
    """The folder that files need, a `Folder`, or None where they need none."""
    return None if sys.platform == "linux" and os.path.isdir("/proc/self/fd") else Folder()


class Folder:
    """A folder of temporary files; those of programs that were killed are removed first.

    Attributes:
        name: Its name.
    """

    def __init__(self):
        for other in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*/lock"):
            with contextlib.suppress(LockedError, OSError):  # used, or another person's
                Lock(other.parent).close()
                shutil.rmtree(other.parent, ignore_errors=True)
        self.name = tempfile.mkdtemp(prefix=_PREFIX)
        self._lock = Lock(self.name)

    def remove(self):
        """Removes the folder and all that is in it."""
        self._lock.close()
        shutil.rmtree(self.name, ignore_errors=True)


def write(place, arrays) -> Stored:
    """Writes arrays to a file."""
    layout, end = [], 0
    with open(place.path, "wb") as file:
        for array in arrays:
            array = np.ascontiguousarray(array).reshape(np.shape(array))
            file.write(bytes(-end % _ALIGNMENT))
            layout.append((array.dtype.str, array.shape, file.tell()))
            file.write(array.data if array.size else b"")
            end = file.tell()
        file.write(bytes(_ALIGNMENT))  # a file of nothing cannot be mapped
    return Stored(place, tuple(layout))


def read(stored) -> list:
    """The arrays of a file: its memory, not a copy. They outlive the file."""
    with open(stored.place.path, "rb") as file:
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    return [
        np.frombuffer(memory, dtype, int(np.prod(shape, dtype=np.int64)), offset).reshape(shape)
        for dtype, shape, offset in stored.layout
    ]


def _remove(path):
    with contextlib.suppress(OSError):  # gone with its folder, or open in a worker, on Windows
        os.remove(path)
