"""Text as next-character data, with the text's own speakers, chapters or books as clients.

```python
data = text("plays.txt", clients="speaker")
model = keras.Sequential([keras.layers.Embedding(data.vocabulary.size, 8), keras.layers.LSTM(256),
                          keras.layers.Dense(data.vocabulary.size)])
```

The task is that of McMahan et al. 2017 and of LEAF's Shakespeare, where clients are speaking
roles.
"""

import os
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tffed.arguments import plain, real
from tffed.data.client_data import ClientData
from tffed.data.lazy import LazyClientData
from tffed.data.memory import from_dict
from tffed.data.schemes import is_count
from tffed.data.segments import segments_of
from tffed.data.vocabulary import Vocabulary

_RESIDENT_BYTES = 1 << 28  # windows beyond 256 MiB are cut when a client is read


class TextSource(NamedTuple):
    """A text, split for training and test.

    Attributes:
        clients: The training data, one client per speaker, chapter, book or topic. x is int32
            `[N, sequence_length]`, characters by number; y is int64, `[N]` for next characters or
            `[N, sequence_length]` for shifted sequences.
        test: `(x, y)` of the last part of every client's text.
        vocabulary: The characters by number.
        left_out: Names of the segments too short for one training example.
        origin: Where the text came from.
    """

    clients: ClientData
    test: tuple
    vocabulary: Vocabulary
    left_out: tuple
    origin: str


def text(
    path: str | os.PathLike | Iterable,
    *,
    clients: str = "speaker",
    sequence_length: int = 80,
    stride: int | None = None,
    test_fraction: float = 0.2,
    targets: str = "next",
    vocabulary: Vocabulary | None = None,
    encoding: str = "utf-8",
) -> TextSource:
    """Makes next-character data of text files.

    Args:
        path: A text file, or several.
        clients: What a client is. `"speaker"`: a role of a play, whose speeches follow a line
            `NAME.` in capitals or a line `Name:`; so a line that shouts one word, `HELP.`, counts
            as one: look at the ids. `"chapter"`: what follows a heading such as
            `CHAPTER IV` or `Chapter 4. The sea`. `"book"`: what follows a heading such as
            `BOOK II` or `The Second Book ...`; where there are several files, each file. Anything
            else: a regular expression whose match at the beginning of a line starts a client; its
            first group, or the whole match, names it. Segments of one name are one client, also
            chapters of one number in two books, and
            text before the first heading is left out.
        sequence_length: Characters per example.
        stride: Characters from the beginning of one example to that of the next;
            `sequence_length` if `None`. LEAF has 1, which makes `sequence_length` times the data.
        test_fraction: Share of each client's text held out at its end, in [0, 1).
        targets: `"next"`: the character after the sequence. `"sequence"`: the sequence moved on
            by one character.
        vocabulary: The characters to use, e.g. those of another text; by default those of the
            training text. Characters outside it have number 0.
        encoding: Encoding of the files.

    Returns:
        The text as a `TextSource`.

    Raises:
        FileNotFoundError: No such file.
        ValueError: No client is found, every client is too short, or an argument is out of range.
    """
    paths = [Path(path)] if isinstance(path, (str, os.PathLike)) else [Path(p) for p in path]
    missing = [str(p) for p in paths if not p.is_file()]
    if missing or not paths:
        raise FileNotFoundError(
            f"Expected text files. Received: path={[str(p) for p in paths]}, of which {missing} "
            "are not files. Give the path of a text file or several."
        )
    contents = [(p.stem, _contents(p, encoding)) for p in paths]
    segments = segments_of(contents, clients)
    options = (sequence_length, stride, test_fraction, targets, vocabulary)
    return _source(segments, *options, origin=", ".join(map(str, paths)))


def _contents(path, encoding):
    try:
        return path.read_text(encoding=encoding).removeprefix("\ufeff")  # a byte-order mark
    except (UnicodeError, LookupError) as error:
        raise ValueError(
            f"Expected {str(path)!r} to be text in the encoding {encoding!r}. Received: bytes that "
            f"are not ({error}). Give the file's own, e.g. encoding='latin-1' or 'utf-16'."
        ) from error


def python_topics(
    *,
    sequence_length: int = 80,
    stride: int | None = None,
    test_fraction: float = 0.2,
    targets: str = "next",
    vocabulary: Vocabulary | None = None,
) -> TextSource:
    """The Python language reference as next-character data; ships with Python itself.

    The text is what `help()` shows by topic, some 460,000 characters of English prose and code.
    Each of its 79 or so topics is a client, of very different lengths. The text differs between
    versions of Python.

    Args:
        sequence_length: As in `text`.
        stride: As in `text`.
        test_fraction: As in `text`.
        targets: As in `text`.
        vocabulary: As in `text`.

    Returns:
        The text as a `TextSource`.

    Raises:
        ImportError: This Python was installed without the help texts.
        ValueError: An argument is out of range.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise ImportError(
            f"Python's help texts (pydoc_data) are not installed ({error}). Install the full "
            "standard library, or give a text file to tffed.data.text."
        ) from error
    options = (sequence_length, stride, test_fraction, targets, vocabulary)
    origin = f"pydoc_data.topics of Python {platform.python_version()}"
    return _source(dict(sorted(topics.items())), *options, origin=origin)


def _source(segments, length, stride, test_fraction, targets, vocabulary, *, origin):
    stride = length if stride is None else stride
    _check_options(length, stride, test_fraction, targets)
    length, stride, test_fraction = map(plain, (length, stride, test_fraction))
    ends = {name: len(body) - int(test_fraction * len(body)) for name, body in segments.items()}
    chosen = [name for name in segments if ends[name] > length]
    if not chosen:
        raise ValueError(
            f"Expected a client with more than sequence_length={length} characters of training "
            f"text. Received: {len(segments)} clients, the longest of {max(ends.values())} "
            "characters. Lower sequence_length."
        )
    if vocabulary is None:
        vocabulary = Vocabulary.of(segments[name][: ends[name]] for name in chosen)
    codes = {name: vocabulary.encode(segments[name]) for name in chosen}
    train = {name: codes[name][: ends[name]] for name in chosen}
    cut = _Windows(train, length, stride, targets)
    tests = _Windows({n: codes[n][ends[n] :] for n in chosen}, length, stride, targets)
    parts = [tests(name) for name in chosen]
    test = tuple(np.concatenate(together) for together in zip(*parts, strict=True))
    left_out = tuple(name for name in segments if ends[name] <= length)
    return TextSource(_population(cut, chosen), test, vocabulary, left_out, origin)


def _population(cut, names):
    sizes = {name: cut.count(name) for name in names}
    if sum(sizes.values()) * cut.bytes_per_example <= _RESIDENT_BYTES:
        return from_dict({name: cut(name) for name in names})
    return LazyClientData(names, cut, sizes=sizes)


class _Windows:
    """Cuts the examples of one client out of its text.

    Args:
        codes: Numbers of the characters of each client's text, int32.
        length: Characters per example.
        stride: Characters between the beginnings of examples.
        targets: `"next"` or `"sequence"`.
    """

    def __init__(self, codes: dict, length: int, stride: int, targets: str):
        self._codes = codes
        self._length = length
        self._stride = stride
        self._targets = targets
        self.bytes_per_example = 4 * length + 8 * (1 if targets == "next" else length)

    def count(self, name: Any) -> int:
        """Returns the number of examples of a client."""
        return max(0, -(-(len(self._codes[name]) - self._length) // self._stride))

    def __call__(self, name: Any):
        starts = np.arange(self.count(name)) * self._stride
        windows = self._codes[name][starts[:, None] + np.arange(self._length + 1)]
        if self._targets == "next":
            return windows[:, :-1], windows[:, -1].astype(np.int64)
        return windows[:, :-1], windows[:, 1:].astype(np.int64)


def _check_options(length, stride, test_fraction, targets) -> None:
    for name, value in (("sequence_length", length), ("stride", stride)):
        if not is_count(value):
            raise ValueError(
                f"Expected {name} to be an integer of at least 1. Received: {name}={value!r}. Give "
                "a number of characters, for example 80."
            )
    if not 0 <= real(test_fraction) < 1:
        raise ValueError(
            "Expected test_fraction to be a number in [0, 1). Received: "
            f"test_fraction={test_fraction!r}. Give for example 0.2."
        )
    if targets not in ("next", "sequence"):
        raise ValueError(
            "Expected targets to be 'next' (one character) or 'sequence' (the shifted sequence). "
            f"Received: targets={targets!r}. Choose one of them."
        )
