"""CSV files as tables of numbers whose columns are known by name."""

import codecs
import csv
import dataclasses
import re
from pathlib import Path

import numpy as np

_WHOLE = re.compile(r"[+-]?\d+", re.ASCII)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(inf|infinity)", re.ASCII | re.I)
_MISSING = frozenset(
    ["", "na", "nan", "n/a", "<na>", "#n/a", "null", "none", "nil", "?", "-", "--", "."]
)
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class Table:
    """An array whose last dimension has names, as a pandas DataFrame has."""

    def __init__(self, array, columns):
        self.array, self.columns = array, tuple(columns)

    def __array__(self, dtype=None, copy=None):
        return self.array if dtype is None else self.array.astype(dtype)


@dataclasses.dataclass(frozen=True)
class CsvFormat:
    """How the CSV files of a folder are read.

    Attributes:
        label: Name of the column of targets.
        columns: Names of the columns of features, in this order; None: all but the label.
        encoding: Encoding of the files.
        delimiter: What stands between two cells.
        alone: Whether a file may have no other columns.
    """

    label: str
    columns: tuple | None = None
    encoding: str = "utf-8"
    delimiter: str = ","
    alone: bool = False

    def of(self, path: Path) -> "CsvFormat":
        """Returns the format with the columns settled: if none are given, all of that file."""
        if self.columns is not None:
            return self
        (names, _), *_ = self._lines(path)
        names = self._checked_names(names, path)
        names = tuple(name for name in names if name != self.label)
        return dataclasses.replace(self, columns=names, alone=True)

    def read(self, path: Path):
        """Reads `(x, y)` of a file.

        Returns:
            x as a `Table` of float64 `[N, columns]`, y as int64 `[N]` if all targets are written as
            whole numbers, else as float64.

        Raises:
            ValueError: The file is not such a table; the message names the file, the column, the
                line and the remedy.
        """
        (header, _), *rows = self._lines(path)
        header = self._checked_names(header, path)
        _check_widths(header, rows, path)
        columns = []
        for name in (*self.columns, self.label):
            k = header.index(name)
            cells = [(row[k].strip(), line) for row, line in rows]
            columns.append(_numbers(cells, name, path, whole=name == self.label))
        *features, target = columns
        return Table(np.stack(features, axis=1), self.columns), target

    def _lines(self, path):
        """Returns pairs (cells, number of the line), the header first, without blank lines."""
        utf_8 = self.encoding.lower().replace("_", "-") in ("utf-8", "utf8")
        try:
            with open(path, newline="", encoding="utf-8-sig" if utf_8 else self.encoding) as file:
                reader = csv.reader(file, delimiter=self.delimiter, strict=True)
                lines = [(cells, reader.line_num) for cells in reader if cells]
        except (UnicodeError, LookupError) as error:
            raise ValueError(_not_encoded(path, self.encoding, error)) from error
        except csv.Error as error:
            raise ValueError(
                f"Expected {str(path)!r} to be a CSV file. Received: line {reader.line_num} cannot "
                f"be read ({error}). Correct the file."
            ) from error
        if not lines:
            raise ValueError(
                f"Expected {str(path)!r} to begin with a line of column names. Received: columns "
                "[]. Give a client without examples a file of that line alone."
            )
        return lines

    def _checked_names(self, header, path):
        names = [name.strip() for name in header]
        wanted = None if self.columns is None else {*self.columns, self.label}
        twice = sorted({n for n in names if names.count(n) > 1 and (wanted is None or n in wanted)})
        unnamed = [k + 1 for k, n in enumerate(names) if not n or re.fullmatch(r"Unnamed: \d+", n)]
        if wanted is None and unnamed:
            others = [n for k, n in enumerate(names, 1) if k not in unnamed and n != self.label]
            raise ValueError(
                f"Expected every column of {str(path)!r} to have a name. Received: none for column "
                f"{unnamed[0]} (often the row number that pandas or R wrote). Leave it out: "
                f"columns={others!r}."
            )
        if twice:
            raise ValueError(
                f"Expected every column name of {str(path)!r} once. Received: {twice} more than "
                "once. Rename or remove the copies."
            )
        if self.label not in names or (self.columns is None and len(names) < 2):
            raise ValueError(
                f"Expected {str(path)!r} to have one column {self.label!r} and at least one other. "
                f"Received: columns {names}. Give the name of the column of targets as `label`"
                f"{_other_delimiter(names)}."
            )
        self._check_same(names, path)
        return names

    def _check_same(self, names, path):
        wanted = names if self.columns is None else (*self.columns, self.label)
        missing = [name for name in wanted if name not in names]
        surplus = [name for name in names if name not in wanted and self.alone]
        if missing or surplus:
            raise ValueError(
                f"Expected the columns {list(wanted)} in {str(path)!r}"
                f"{', as in the first file' if self.alone else ''}. Received: {names}, so "
                f"{missing} are missing and {surplus} surplus. Give every file the same columns, "
                "or name those to use: columns=[...]."
            )


def _not_encoded(path, encoding, error):
    with open(path, "rb") as file:
        start = file.read(2)
    guess = "'utf-16'" if start in _UTF_16 else "'latin-1' or 'cp1252' (Western Europe)"
    return (
        f"Expected {str(path)!r} to be text in the encoding {encoding!r}. Received: bytes that are "
        f"not ({error}). Give the file's own, e.g. encoding={guess}."
    )


def _other_delimiter(names):
    found = [mark for mark in ";\t|" if len(names) == 1 and mark in names[0]]
    return f", and delimiter={found[0]!r}" if found else ""


def _check_widths(header, rows, path):
    widths = {len(cells) for cells, _ in rows}
    if widths <= {len(header)}:
        return
    if widths == {len(header) + 1}:
        raise ValueError(
            f"Expected every line of {str(path)!r} to have {len(header)} columns, as its first "
            f"line has names. Received: {len(header) + 1} in every other line, as R writes row "
            "names. Write it with write.csv(..., row.names = FALSE)."
        )
    cells, line = next((cells, line) for cells, line in rows if len(cells) != len(header))
    raise ValueError(
        f"Expected every line of {str(path)!r} to have {len(header)} columns. Received: "
        f"{len(cells)} in line {line}. Correct the file."
    )


def _numbers(cells, name, path, whole):
    """Returns a column as float64, or as int64 if it may be `whole` and is."""
    for text, line in cells:
        if not _NUMBER.fullmatch(text):
            raise ValueError(_not_a_number(text, line, name, path))
    texts = [text for text, _ in cells]
    if not all(map(_WHOLE.fullmatch, texts)):
        return np.array(texts, np.float64) if texts else np.zeros(0)
    values = list(map(int, texts))
    limit = 2**63
    for value, (_, line) in zip(values, cells, strict=True):
        if -limit <= value < limit if whole else _is_float(value):
            continue
        raise ValueError(
            f"Expected numbers that {'int64' if whole else 'float64'} can hold in column {name!r} "
            f"of {str(path)!r}. Received: {value} in line {line}. Leave the column out with "
            "columns=[...], or number its values anew."
        )
    return np.array(values, np.int64 if whole else np.float64)


def _is_float(value):
    return abs(value) <= 2**53 or (abs(value) < 2**1023 and int(float(value)) == value)


def _not_a_number(text, line, name, path):
    place = f"in column {name!r} of {str(path)!r}"
    if text.lower() in _MISSING:
        return (
            f"Expected numbers {place}. Received: a missing value ({text!r}) in line {line}. Fill "
            "it in, remove the line, or leave the column out with columns=[...]."
        )
    return (
        f"Expected numbers {place}. Received: {text!r} in line {line}. Encode categories as "
        "numbers, or leave the column out with columns=[...]."
    )
