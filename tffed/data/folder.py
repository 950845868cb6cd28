"""Clients in a folder of files, one file per client."""

import csv
import dataclasses
import functools
import glob
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tffed.data import checks
from tffed.data.client_data import ClientData, LazyClientData


def from_folder(
    path: str | os.PathLike,
    pattern: str = "*.npz",
    parse: Callable | None = None,
    label: str | None = None,
) -> ClientData:
    """Makes a population of a folder with one file per client, read when asked for.

    - `.npz`: arrays named `x`, `y` and perhaps `sample_weight`; several inputs or targets as
      `x_<name>`, `y_<name>`, which become dictionaries `{name: array}`.
    - `.csv`: a header line, a column of targets named by `label`, and numeric features, which
      become a float32 array `[N, columns]` in the order of the file. Targets written as whole
      numbers are int64, others float32.
    - `.tfrecord`: serialised examples, each turned into `(x, y)` by `parse`.

    Args:
        path: The folder.
        pattern: Which files are clients, as in `glob`; `**` goes into sub-folders.
        parse: For TFRecord: TensorFlow function of one serialised example (a scalar string tensor)
            that returns `(x, y)` or `(x, y, sample_weight)`.
        label: For CSV: name of the column of targets.

    Returns:
        The population; a client's id is its file's name without the ending, in sorted order.

    Raises:
        FileNotFoundError: No such folder.
        ValueError: No file matches, a file's kind is not known, `parse` or `label` is missing, or
            two files would have one id. When a client is read: a file that is not as described.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"Expected a folder of client files. Received: path={str(path)!r}, which is not a "
            "folder. Give the folder that holds one file per client."
        )
    files = sorted(glob.glob(pattern, root_dir=folder, recursive=True))
    if not files:
        endings = sorted({entry.suffix for entry in folder.iterdir() if entry.is_file()})
        raise ValueError(
            f"Expected files that match the pattern in {str(folder)!r}. Received: "
            f"pattern={pattern!r}; the folder has files ending in {endings}. Give a pattern "
            "such as '*.csv'."
        )
    readers = _readers({os.path.splitext(file)[1] for file in files}, parse, label)
    ids = [Path(file).stem for file in files]
    return LazyClientData(ids, _Reader(folder, dict(zip(ids, files, strict=True)), readers))


@dataclasses.dataclass(frozen=True)
class _Reader:
    """Reads the file of one client."""

    folder: Path
    files: dict
    readers: dict

    def __call__(self, client_id):
        path = self.folder / self.files[client_id]
        return self.readers[path.suffix](path)


def _readers(suffixes, parse, label) -> dict:
    known = {
        ".npz": read_npz,
        ".csv": functools.partial(read_csv, label=label),
        ".tfrecord": functools.partial(read_tfrecord, parse=parse),
    }
    if suffixes - known.keys():
        raise ValueError(
            f"Expected files ending in {', '.join(known)}. Received: files ending in "
            f"{', '.join(sorted(suffixes - known.keys()))!r}. Narrow the pattern, or read the "
            "files yourself with from_function."
        )
    if ".csv" in suffixes and label is None:
        raise ValueError(
            "Expected the name of the column of targets for CSV files. Received: label=None. Give "
            "from_folder(..., label='<column>')."
        )
    if ".tfrecord" in suffixes and parse is None:
        raise ValueError(
            "Expected a function that parses an example for TFRecord files. Received: parse=None. "
            "Give from_folder(..., parse=fn) where fn(serialized) returns (x, y)."
        )
    return {suffix: known[suffix] for suffix in suffixes}


def read_npz(path: Path):
    """Reads `(x, y[, sample_weight])` from an npz file with the names given in `from_folder`."""
    parts = {"x": {}, "y": {}, "sample_weight": {}}
    try:
        with np.load(path, allow_pickle=False) as stored:
            for name in stored.files:
                part, _, rest = (name, "", "") if name in parts else name.partition("_")
                if part not in parts or (name != part and not rest):
                    raise ValueError(f"the array name {name!r} is not one of them")
                parts[part][rest] = stored[name]
    except Exception as error:  # zipfile and NumPy raise many kinds for damaged files
        raise ValueError(
            f"Expected {str(path)!r} to hold numeric arrays named x, y, x_<name>, y_<name> or "
            f"sample_weight. Received: a file that cannot be read so ({error}). Write it with "
            "np.savez(path, x=..., y=...)."
        ) from error
    nests = [_one_or_dict(part, arrays, path) for part, arrays in parts.items() if arrays]
    if not parts["x"] or not parts["y"]:
        raise ValueError(
            f"Expected {str(path)!r} to hold inputs and targets. Received: "
            f"{[part for part in parts if parts[part]]}. Store arrays named x and y."
        )
    return tuple(nests)


def _one_or_dict(part, arrays, path):
    if "" not in arrays:
        return arrays
    if len(arrays) > 1:
        raise ValueError(
            f"Expected {str(path)!r} to hold either {part} or {part}_<name>. Received: both. Name "
            "every array, or store one."
        )
    return arrays[""]


def read_csv(path: Path, label: str):
    """Reads `(x, y)` from a CSV file with a header line, as described in `from_folder`."""
    with open(path, newline="", encoding="utf-8-sig") as file:
        header = next(csv.reader(file), [])
    names = [name.strip() for name in header]
    if names.count(label) != 1 or len(names) < 2:
        raise ValueError(
            f"Expected {str(path)!r} to have one column {label!r} and at least one other. "
            f"Received: columns {names}. Give the name of the column of targets as `label`."
        )
    target = names.index(label)
    try:
        table = np.loadtxt(
            path, dtype=np.str_, delimiter=",", skiprows=1, quotechar='"', ndmin=2, comments=None,
            encoding="utf-8-sig",
        ).reshape(-1, len(names))
    except ValueError as error:
        raise ValueError(
            f"Expected every line of {str(path)!r} to have {len(names)} columns. Received: a table "
            f"that cannot be read ({error}). Correct the file."
        ) from error
    columns = [_numbers(table[:, k], name, path) for k, name in enumerate(names)]
    features = [column for k, column in enumerate(columns) if k != target]
    try:
        y = table[:, target].astype(np.int64)
    except ValueError:
        y = columns[target]
    return np.stack(features, axis=1), y


def _numbers(column, name, path):
    try:
        return column.astype(np.float32)
    except ValueError as error:
        raise ValueError(
            f"Expected numbers in column {name!r} of {str(path)!r}. Received: an entry that is not "
            f"one ({error}). Fill in missing values and encode categories as numbers."
        ) from error


def read_tfrecord(path: Path, parse: Callable):
    """Reads `(x, y[, sample_weight])` from a TFRecord file whose examples `parse` decodes."""
    import tensorflow as tf

    dataset = tf.data.TFRecordDataset(str(path)).map(parse)
    return checks.dataset_arrays(dataset, f"{str(path)!r}", batched=False)
