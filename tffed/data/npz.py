"""Arrays of npz files, which may come from anybody: nothing is unpickled, nothing swells up."""

import math
import zipfile
from pathlib import Path

from numpy.lib import format as npy

MOST = 2**30
_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def read_arrays(path: Path, names=None, most: int = MOST) -> dict:
    """Reads arrays of numbers or text.

    Args:
        path: The file.
        names: Which arrays; None: all.
        most: The most bytes that they may take together.

    Returns:
        `{name: array}`.

    Raises:
        ValueError: They take more, or one is not as long as it says, or is made of Python objects.
        KeyError: One is missing.
        OSError, zipfile.BadZipFile: The file cannot be read.
    """
    with zipfile.ZipFile(path) as file:
        found = {info.filename.removesuffix(".npy"): info for info in file.infolist()}
        wanted = {name: found[name] for name in (found if names is None else names)}
        size = sum(info.file_size for info in wanted.values())  # zipfile gives no byte more
        if size > most:
            raise ValueError(
                f"it unpacks to {size:,} bytes, which is more than the {most:,} allowed"
            )
        return {name: _read(file, info) for name, info in wanted.items()}


def _read(file, info):
    with file.open(info) as member:
        version = npy.read_magic(member)
        if version not in _HEADERS:
            raise ValueError(f"the array {info.filename!r} has a format of version {version}")
        shape, _, dtype = _HEADERS[version](member)
        if dtype.hasobject:
            raise ValueError(f"the array {info.filename!r} is of Python objects, which are pickled")
        # Before room is made for what it claims to be.
        if math.prod(shape) * dtype.itemsize != info.file_size - member.tell():
            raise ValueError(
                f"the array {info.filename!r} says that it is {dtype}{shape}, and has "
                f"{info.file_size - member.tell():,} bytes"
            )
    with file.open(info) as member:
        return npy.read_array(member, allow_pickle=False)
