"""Clients in LEAF's JSON layout.

LEAF stores a federated data set as a folder of JSON files, each with many users:

    {"users": ["f0", ...], "num_samples": [12, ...],
     "user_data": {"f0": {"x": [...], "y": [...]}, ...}}

Caldas et al. 2018, LEAF: A Benchmark for Federated Settings.
"""

import contextlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tffed.data.client_data import ClientData
from tffed.data.lazy import LazyClientData
from tffed.data.schemes import is_count

_SPACE = re.compile(r"[ \t\r\n]*")
_ENCODING = "utf-8-sig"  # a byte-order mark is no part of the text
_CHUNK = 1 << 20  # characters read at a time while looking for the list of users


def from_leaf(
    path: str | os.PathLike, parse: Callable | None = None, keep_files: int = 2
) -> ClientData:
    """Makes a population of a folder in LEAF's JSON layout, read when asked for.

    Opening reads the lists of users and sizes that stand at the head of each file, not the
    examples. To read a client its file is parsed; the last `keep_files` parsed files are kept, so
    cohorts in population order parse each file once.

    Args:
        path: Folder with the `.json` files of one split, such as `data/train`.
        parse: Function of a user's lists `(x, y)` as they stand in the file, that returns arrays;
            needed where they are not numbers, as in LEAF's Shakespeare. `np.asarray` by default.
        keep_files: Number of parsed files kept in memory, at least 1.

    Returns:
        The population with the users as ids, file by file in the order of the files' names.

    Raises:
        FileNotFoundError: No such folder.
        ValueError: No `.json` file, a file that is not in LEAF's layout, or a user in two files.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"Expected a folder of LEAF's JSON files. Received: path={str(path)!r}, which is not a "
            "folder. Give the folder of one split, such as data/train."
        )
    if keep_files < 1:
        raise ValueError(
            f"Expected keep_files to be at least 1. Received: keep_files={keep_files!r}. The file "
            "of the client being read has to be kept."
        )
    file_of, sizes = {}, {}
    for file in sorted(folder.glob("*.json")):
        for user, size in _users(file):
            if user in file_of:
                raise ValueError(
                    f"Expected each user in one file. Received: user {user!r} in "
                    f"{file_of[user].name!r} and {file.name!r}. Keep training and test data in "
                    "different folders."
                )
            file_of[user], sizes[user] = file, size
    if not file_of:
        raise ValueError(
            f"Expected .json files with users in {str(folder)!r}. Received: "
            f"{len(list(folder.glob('*.json')))} such files without users. Give the folder of one "
            "split, such as data/train."
        )
    reader = _Reader(file_of, parse or _to_arrays, keep_files)
    return LazyClientData(file_of, reader, sizes=sizes)


def _users(file: Path) -> list[tuple[str, int]]:
    """Returns the users of a file with their numbers of examples."""
    head = _read_head(file)
    if "users" not in head or "num_samples" not in head:
        head = _parse(file)
    users, sizes = head.get("users"), head.get("num_samples")
    if not isinstance(users, list) or not isinstance(sizes, list) or len(users) != len(sizes):
        raise ValueError(
            f"Expected {str(file)!r} to have lists 'users' and 'num_samples' of one length. "
            f"Received: keys {list(head)}. Write the file in LEAF's layout."
        )
    if unnamed := [user for user in users if not isinstance(user, str | int)]:
        raise ValueError(
            f"Expected the users in {str(file)!r} to be strings. Received: {unnamed[0]!r}. Write "
            "the file in LEAF's layout."
        )
    odd = [(u, n) for u, n in zip(users, sizes, strict=True) if not is_count(n, 0)]
    if odd:
        raise ValueError(
            f"Expected num_samples in {str(file)!r} to be integers of at least 0. Received: "
            f"{odd[0][1]!r} for user {odd[0][0]!r}. Create the file again."
        )
    return list(zip(users, sizes, strict=True))


def _read_head(file: Path) -> dict:
    """Returns the entries of a JSON object that stand before `user_data`.

    Reads as much of the file as that takes. The result is empty if the file is not such an
    object, which parsing the whole file then explains.
    """
    text = ""
    with contextlib.suppress(UnicodeError), open(file, encoding=_ENCODING) as stream:
        while chunk := stream.read(max(_CHUNK, len(text))):
            text += chunk
            try:
                return _entries_before(text, "user_data")
            except (ValueError, IndexError, RecursionError):
                continue  # an entry ends beyond what was read so far
    return {}


def _entries_before(text: str, stop: str) -> dict:
    decode = json.JSONDecoder().raw_decode
    entries = {}
    at = _skip(text, 0, "{")
    while text[at] != "}":
        key, at = decode(text, at)
        at = _skip(text, at, ":")
        if key == stop:
            break
        entries[key], at = decode(text, at)
        at = _SPACE.match(text, at).end()
        at = at if text[at] == "}" else _skip(text, at, ",")
    return entries


def _skip(text, at, mark) -> int:
    at = _SPACE.match(text, at).end()
    if text[at] != mark:
        raise ValueError(f"no {mark!r} at {at}")
    return _SPACE.match(text, at + 1).end()


def _parse(file: Path) -> dict:
    try:
        content = json.loads(file.read_text(encoding=_ENCODING), object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"Expected {str(file)!r} to be JSON in LEAF's layout. Received: a file that cannot be "
            f"parsed ({error}). Copy or create the file again, in UTF-8."
        ) from error
    if not isinstance(content, dict):
        raise ValueError(
            f"Expected {str(file)!r} to hold one JSON object. Received: {type(content).__name__}. "
            "Write the file in LEAF's layout."
        )
    return content


def _object(pairs):
    """A JSON object, in which Python would let the last of equal names win."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in found if names.count(name) > 1)
        raise ValueError(f"{twice!r} stands there more than once; merge or rename these entries")
    return found


def _to_arrays(x, y):
    return _to_array(x, "x"), _to_array(y, "y")


def _to_array(values, name):
    array = np.asarray(values)
    if array.dtype.kind not in "biuf" and array.size:
        raise ValueError(
            f"Expected numbers in LEAF data. Received: {name} of {array.dtype}. Give "
            "from_leaf(..., parse=fn) where fn(x, y) returns arrays."
        )
    if array.dtype.kind == "f" and array.size and np.abs(array).max() >= 2**53:
        for value in np.asarray(values, object).reshape(-1):
            if isinstance(value, int) and int(float(value)) != value:
                raise ValueError(
                    f"Expected numbers that float64 can hold in {name}, beside fractions. "
                    f"Received: {value}. Give from_leaf(..., parse=fn) where fn(x, y) returns "
                    "whole numbers in an array of their own."
                )
    return array


class _Reader:
    """Reads one user, keeping the files parsed last."""

    def __init__(self, file_of, parse, keep_files):
        self._file_of = file_of
        self._parse = parse
        self._keep_files = keep_files
        self._parsed = {}

    def where(self, user):
        return str(self._file_of[user])

    def __reduce__(self):  # sent to another process without what was parsed
        return _Reader, (self._file_of, self._parse, self._keep_files)

    def __call__(self, user):
        file = self._file_of[user]
        data = self._user_data(file).get(user)
        if not isinstance(data, dict) or "x" not in data or "y" not in data:
            raise ValueError(
                f"Expected user {user!r} of {str(file)!r} to have 'x' and 'y' in 'user_data'. "
                f"Received: {type(data).__name__}. Create the file again."
            )
        try:
            return self._parse(data["x"], data["y"])
        except ValueError as error:
            raise ValueError(
                f"Expected arrays of the data of user {user!r} of {str(file)!r}. {error}"
            ) from error

    def _user_data(self, file):
        content = self._parsed.get(file)
        if content is None:
            kept = list(self._parsed.items())[max(0, len(self._parsed) + 1 - self._keep_files) :]
            self._parsed = dict(kept)  # makes room before parsing, which takes the most memory
            content = _parse(file).get("user_data")
            content = content if isinstance(content, dict) else {}
            self._parsed = {**dict(kept), file: content}
        return content
