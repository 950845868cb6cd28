"""The format of a checkpoint file, and how it gets to its place whole.

tffed-checkpoint <format> <SHA-256 of the payload> <length of the payload>\\n
payload = pack([the round and the manifest as UTF-8 JSON, *leaves])
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tffed import private_files
from tffed.serialize import pack, unpack

_MAGIC = "tffed-checkpoint"
_FORMAT = 1
_HEADER = re.compile(rb"tffed-checkpoint ([1-9][0-9]*) ([0-9a-f]{64}) ([1-9][0-9]*)\n")
_LONGEST_HEADER = 128
UNFINISHED = "round-*.ckpt.*.unfinished"


class DamagedError(Exception):
    """Why the content of a file is no checkpoint that can be read."""


class Checkpoint(NamedTuple):
    """What a checkpoint gives back.

    Attributes:
        leaves: The arrays, with the dtypes, shapes and bits they had.
        manifest: The manifest, as JSON gives it back: tuples have become lists.
    """

    leaves: list[np.ndarray]
    manifest: dict[str, Any]


def encode(round_number: int, leaves: Sequence[np.ndarray], manifest: Mapping) -> list[bytes]:
    """Returns the content of a checkpoint file: its header and its payload."""
    text = to_json({"round": round_number, "manifest": dict(manifest)})
    payload = pack([np.frombuffer(text.encode(), np.uint8), *leaves])
    return [_header(payload), payload]


def _header(payload: bytes | memoryview) -> bytes:
    digest = hashlib.sha256(payload).hexdigest()
    return f"{_MAGIC} {_FORMAT} {digest} {len(payload)}\n".encode()


def decode(content: bytes) -> tuple[int, Checkpoint]:
    """Returns the round and the checkpoint that the content of a file holds.

    Raises:
        DamagedError: Some byte of it is not what `encode` wrote.
    """
    header = _HEADER.match(content[:_LONGEST_HEADER])
    if header is None:
        raise DamagedError("it does not begin as a checkpoint does: cut off, damaged or foreign")
    if int(header[1]) != _FORMAT:
        raise DamagedError(
            f"it has format {int(header[1])}, and this tffed reads format {_FORMAT}: a newer "
            "version wrote it (install that one), or it is damaged"
        )
    payload = memoryview(content)[header.end() :]
    if len(payload) != int(header[3]):
        raise DamagedError(
            f"it has {len(payload)} of {int(header[3])} bytes of payload: it was cut off, or "
            "something was added"
        )
    if _header(payload) != header[0]:
        raise DamagedError("its checksum does not match: it is damaged")
    try:
        described, *leaves = unpack(payload)
        described = json.loads(described.tobytes())
        return described["round"], Checkpoint(leaves, dict(described["manifest"]))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedError(f"its content cannot be read ({error})") from error


def write_whole(path: Path, content: Sequence[bytes]) -> None:
    """Puts a file in its place in one step: it is there whole, or as it was before.

    Its owner alone can read it.
    """
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.unfinished")
    try:
        with open(unfinished, "wb", opener=private_files.opener) as file:
            file.writelines(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)


def to_json(value: Any, sort_keys: bool = False) -> str:
    """Returns a value as JSON text; with sorted keys it is the same for equal values."""
    try:
        return json.dumps(value, sort_keys=sort_keys, default=_plain)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"Expected a manifest that JSON can hold: dictionaries with string keys, lists, text, "
            f"numbers, booleans and None. Received: one with a value that it cannot ({error}). "
            "Convert that value, or store it as one of the leaves."
        ) from error


def _plain(value: Any) -> Any:
    """Returns a NumPy number or array as what JSON can hold."""
    if isinstance(value, np.generic | np.ndarray) and value.dtype.kind in "biuf":
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is not JSON-able")


def _sync_directory(directory: Path) -> None:
    """Forces a directory's entries to the disk, where the system can."""
    if os.name != "posix":
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
