"""Clients in a folder of files, one file per client."""

import dataclasses
import functools
import glob
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from tffed.arguments import integer_from
from tffed.data import npz
from tffed.data.checks import Reading
from tffed.data.client_data import ClientData
from tffed.data.datasets import dataset_arrays
from tffed.data.lazy import LazyClientData
from tffed.data.tables import CsvFormat


def from_folder(
    path: str | os.PathLike,
    pattern: str = "*.npz",
    parse: Callable | None = None,
    label: str | None = None,
    *,
    columns: Sequence[str] | None = None,
    encoding: str = "utf-8",
    delimiter: str = ",",
    max_bytes: int = npz.MOST,
) -> ClientData:
    """Makes a population of a folder with one file per client, read when asked for.

    - `.npz`: arrays named `x`, `y` and perhaps `sample_weight`; several inputs or targets as
      `x_<name>`, `y_<name>`, which become dictionaries `{name: array}`.
    - `.csv`: a line of column names, a column of targets named by `label`, and columns of numbers,
      which become an array `[N, columns]`. Columns are found by name, in the order of the first
      file or of `columns`. Targets that are all written as whole numbers are int64.
    - `.tfrecord`: serialised examples, each turned into `(x, y)` by `parse`.

    A file may hold no examples, a CSV file its column names alone.

    Args:
        path: The folder.
        pattern: Which files are clients, as in `glob`; `**` goes into sub-folders, through links
            too. It is not kept inside the folder (`../*.npz`): do not take it from strangers.
        parse: For TFRecord: TensorFlow function of one serialised example (a scalar string tensor)
            that returns `(x, y)` or `(x, y, sample_weight)`.
        label: For CSV: name of the column of targets.
        columns: For CSV: names of the columns of features; others are left out. By default all
            but `label`, and every file must have the same.
        encoding: For CSV: encoding of the files.
        delimiter: For CSV: what stands between two cells.
        max_bytes: For npz: the most that a file may unpack to, 1 GiB by default. A file of a few
            kilobytes can fill the memory.

    Returns:
        The population, files in sorted order; a client's id is the shortest part of its file's
        path that tells files apart: mostly the file's name without the ending.

    Raises:
        FileNotFoundError: No such folder.
        ValueError: No file matches, a file's kind is not known, or `parse` or `label` is missing.
            When a client is read: a file that is not as described.
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
    suffixes = {os.path.splitext(file)[1] for file in files}
    _check_kinds(suffixes, parse, label)
    readers = {
        ".npz": functools.partial(read_npz, max_bytes=integer_from(1, "max_bytes", max_bytes)),
        ".tfrecord": functools.partial(read_tfrecord, parse=parse),
    }
    if ".csv" in suffixes:
        columns = _checked_columns(columns, label)
        first = next(file for file in files if file.endswith(".csv"))
        table = CsvFormat(label, columns, encoding, delimiter).of(folder / first)
        readers[".csv"] = table.read
    ids = short_names(files)
    return LazyClientData(ids, _Reader(folder, dict(zip(ids, files, strict=True)), readers))


def _checked_columns(columns, label):
    if columns is None:
        return None
    names = () if isinstance(columns, str) else tuple(columns)
    if not names or label in names or len(set(names)) < len(names):
        raise ValueError(
            "Expected columns to be a list of names of features, each once and without the label. "
            f"Received: columns={columns!r}, label={label!r}. Give e.g. columns=['age', 'income']."
        )
    return names


def short_names(files: list[str]) -> list[str]:
    """Returns the shortest parts of relative paths that are all different, without endings.

    The file's name, or else one or more folders above it, or both.
    """
    paths = [Path(os.path.splitext(file)[0]).parts for file in files]
    deepest = max(map(len, paths))
    for length in range(1, deepest + 1):
        for end in range(deepest - length + 1):  # parts left off at the end
            names = ["/".join(p[: len(p) - end][-length:]) for p in paths]
            if len(set(names)) == len(names) and all(names):
                return names
    return files


@dataclasses.dataclass(frozen=True)
class _Reader:
    """Reads the file of one client."""

    folder: Path
    files: dict
    readers: dict

    def where(self, client_id):
        return str(self.folder / self.files[client_id])

    def __call__(self, client_id):
        path = self.folder / self.files[client_id]
        return self.readers[path.suffix](path)


def _check_kinds(suffixes, parse, label):
    known = {".npz", ".csv", ".tfrecord"}
    if suffixes - known:
        raise ValueError(
            "Expected files ending in .npz, .csv, .tfrecord. Received: files ending in "
            f"{', '.join(sorted(suffixes - known))!r}. Narrow the pattern, or read the "
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


def read_npz(path: Path, max_bytes: int = npz.MOST):
    """Reads `(x, y[, sample_weight])` from an npz file with the names given in `from_folder`."""
    parts = {"x": {}, "y": {}, "sample_weight": {}}
    try:
        for name, array in npz.read_arrays(path, most=max_bytes).items():
            part, _, rest = (name, "", "") if name in parts else name.partition("_")
            if part not in parts or (name != part and not rest):
                raise ValueError(f"the array name {name!r} is not one of them")
            parts[part][rest] = array
    except Exception as error:  # zipfile and NumPy raise many kinds for damaged files
        raise ValueError(
            f"Expected {str(path)!r} to hold numeric arrays named x, y, x_<name>, y_<name> or "
            f"sample_weight. Received: a file that cannot be read so ({error}). Write it with "
            "np.savez(path, x=..., y=...); from_folder(..., max_bytes=...) allows larger ones."
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


def read_tfrecord(path: Path, parse: Callable):
    """Reads `(x, y[, sample_weight])` from a TFRecord file whose examples `parse` decodes."""
    import tensorflow as tf

    dataset = tf.data.TFRecordDataset(str(path)).map(parse)
    try:
        parts, unequal = dataset_arrays(dataset, str(path), batched=False)
        return Reading(parts, {}, unequal)
    except tf.errors.OpError as error:
        raise ValueError(
            f"Expected {str(path)!r} to be a TFRecord file of examples that `parse` can decode. "
            f"Received: {type(error).__name__}: {error.message.splitlines()[0]}. Write the file "
            "again, or correct `parse`."
        ) from error
