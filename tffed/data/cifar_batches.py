"""CIFAR-10's Python version, which is pickled, read without unpickling.

A pickle is a program, and one from a stranger may do anything. These files are known to hold a
dictionary with an array of bytes and a list of labels, so the program's words are looked through
for these two, and nothing of it is run.
"""

import pickletools

import numpy as np

_TEXT = frozenset(
    ["STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINUNICODE"]
)
_NUMBER = frozenset(["INT", "BININT", "BININT1", "BININT2"])
_KEYS = frozenset([b"data", b"labels", b"batch_label", b"filenames"])
_ROW = 3 * 32 * 32


def read_batch(content: bytes):
    """The rows `[N, 3072]` of bytes and the labels of a batch.

    Raises:
        ValueError: The content is not written as such a batch is.
    """
    key, columns_first, labels, data = None, False, [], None
    for operation, argument, _ in pickletools.genops(content):
        name = operation.name
        if name in _TEXT:
            text = argument if isinstance(argument, bytes) else argument.encode("latin-1", "ignore")
            if text in _KEYS:
                key = text
            elif key == b"data" and data is None and text and not len(text) % _ROW:
                if columns_first:
                    raise ValueError("its array is stored column by column")
                data = np.frombuffer(text, np.uint8).reshape(-1, _ROW)
        elif name in ("NEWTRUE", "NEWFALSE"):
            columns_first = name == "NEWTRUE"
        elif name in _NUMBER and key == b"labels":
            labels.append(argument)
    if data is None or len(labels) != len(data):
        raise ValueError(
            f"it holds {0 if data is None else len(data)} images and {len(labels)} labels, as "
            "arrays and lists of Python 2's pickle; the binary version is read in any case"
        )
    return data, np.array(labels)
