"""Partition schemes: how the examples of one data set are dealt to clients.

A scheme is a frozen dataclass with one method,

    split(x, y, clients, rng) -> list of int arrays

which returns the rows of each client. `partition` checks that every row occurs exactly once and
that no client is empty, so a new scheme is a class of a few lines.

Label skew is in `tffed.data.label_skew`, quantity and feature skew in `tffed.data.skews`.
"""

import dataclasses

import numpy as np

from tffed.arguments import integer, plain, real
from tffed.data.nest import leaves


class Scheme:
    """Base of the partition schemes."""

    def split(self, x, y, clients: int, rng: np.random.Generator) -> list[np.ndarray]:
        """Returns the rows of each client.

        Args:
            x: Nest of arrays of inputs.
            y: Nest of arrays of targets.
            clients: Number of clients.
            rng: The only source of randomness to use.
        """
        raise NotImplementedError

    def client_ids(self, clients: int | None):
        """Returns the ids of the clients, by default `range(clients)`."""
        if clients is None:
            raise ValueError(
                f"Expected a number of clients for {type(self).__name__}. Received: clients=None. "
                "Give `clients`; only NaturalKey finds the clients in the data."
            )
        return range(clients)


def require_number(name: str, value, low: float, high: float, remedy: str, above: bool = False):
    """Raises a `ValueError` unless a value is a finite number in `[low, high]`.

    Args:
        name: Name of the argument.
        value: What was given for it.
        low: Least value allowed; not itself allowed if `above`.
        high: Greatest value allowed.
        remedy: What to give, a sentence.
        above: Whether `low` itself is refused.
    """
    number = real(value)
    if np.isfinite(number) and low <= number <= high and not (above and number == low):
        return
    least = f"above {low}" if above else f"of at least {low}"
    most = f" and at most {high}" if np.isfinite(high) else ""
    raise ValueError(
        f"Expected {name} to be a finite number {least}{most}. Received: {name}={value!r}. {remedy}"
    )


def is_count(value, least: int = 1) -> bool:
    """Whether a value is an integer of at least `least`."""
    number = integer(value)
    return number is not None and number >= least


def plain_fields(instance) -> None:
    """Makes a frozen dataclass's numbers Python's, so that equal ones also read alike."""
    for field in dataclasses.fields(instance):
        object.__setattr__(instance, field.name, plain(getattr(instance, field.name)))


def cut(order: np.ndarray, sizes: np.ndarray) -> list[np.ndarray]:
    """Cuts an order of rows into consecutive pieces of the given sizes."""
    return np.split(order, np.cumsum(sizes)[:-1])


def num_rows(nest) -> int:
    """Returns the leading dimension of a nest of arrays."""
    return len(leaves(nest)[0][1])


@dataclasses.dataclass(frozen=True)
class IID(Scheme):
    """Deals the examples at random, in sizes that differ by one at most."""

    def split(self, x, y, clients, rng):
        return np.array_split(rng.permutation(num_rows(x)), clients)


@dataclasses.dataclass(frozen=True, eq=False)
class NaturalKey(Scheme):
    """One client per distinct key: writer, user, speaker, hospital.

    The ids of the clients are the keys, sorted.

    Args:
        keys: Integers or strings `[N]`, the key of each example.
    """

    keys: np.ndarray

    def __post_init__(self):
        keys = np.asarray(self.keys)
        if keys.dtype.kind == "O" and all(isinstance(k, str) for k in keys.reshape(-1)):
            keys = keys.astype(str)  # a column of a pandas table
        if keys.ndim != 1 or keys.dtype.kind not in "iuU":
            raise ValueError(
                "Expected keys to be a one-dimensional array of integers or strings. Received: "
                f"keys of shape={keys.shape}, dtype={keys.dtype}. Give one key per example."
            )
        object.__setattr__(self, "keys", keys)

    def client_ids(self, clients):
        ids = np.unique(self.keys).tolist()
        if clients not in (None, len(ids)):
            raise ValueError(
                f"Expected clients to be None or the number of distinct keys, {len(ids)}. "
                f"Received: clients={clients}. Leave `clients` to the keys."
            )
        return ids

    def split(self, x, y, clients, rng):
        if len(self.keys) != num_rows(x):
            raise ValueError(
                f"Expected one key per example. Received: {len(self.keys)} keys, {num_rows(x)} "
                "examples. Give the key of every example."
            )
        ids, index = np.unique(self.keys, return_inverse=True)
        order = np.argsort(index, kind="stable")
        return cut(order, np.bincount(index, minlength=len(ids)))
