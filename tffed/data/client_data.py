"""A population of clients addressed by id, and how it is made from Python objects.

```python
clients = from_dict({"anna": (x_a, y_a), "ben": (x_b, y_b)})
clients["anna"]                                   # (x_a, y_a), checked, as NumPy arrays
clients.examples(["ben", "anna"])                 # what an engine trains on
million = from_function(range(1_000_000), lambda i: read(i))    # opens at once, reads on demand
```
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tffed.data import checks
from tffed.data.ids import IdIndex
from tffed.data.nest import map_leaves


class Examples(NamedTuple):
    """The examples of some clients, as an engine takes them.

    Attributes:
        arrays: `(x, y)` or `(x, y, sample_weight)`, nests of `np.ndarray` with one leading
            dimension.
        rows: int32 `[sum(sizes)]`, rows of `arrays`: client after client, in the order of the ids
            asked for.
        sizes: int64 `[number of ids]`, the number of examples of each client.
    """

    arrays: Any
    rows: np.ndarray
    sizes: np.ndarray


class ClientData:
    """A population of clients, each with examples `(x, y)` or `(x, y, sample_weight)`.

    The data of a client is a nest of arrays with one leading dimension, of the shapes and dtypes
    that all clients share (`float64` is read as `float32`). Made by `partition`, `from_dict`,
    `from_function`, `from_folder` and `from_leaf`.

    Attributes:
        resident: Whether the whole federation lies in memory as one set of arrays. If so,
            `examples(...).arrays` is the same object in every call.
    """

    resident = False

    def __init__(self, ids: Iterable):
        self._index = IdIndex(ids)

    @property
    def ids(self) -> Sequence:
        """The ids in population order; a `range` where the population was named by one."""
        return self._index.ids

    def __len__(self):
        return len(self._index)

    def __iter__(self):
        return iter(self.ids)

    def __contains__(self, client_id):
        return client_id in self._index

    def __repr__(self):
        return f"<{type(self).__name__} of {len(self)} clients>"

    def __getitem__(self, client_id):
        """Returns the arrays `(x, y[, sample_weight])` of one client."""
        raise NotImplementedError

    def examples(self, ids: Iterable) -> Examples:
        """Returns the examples of some clients, at the cost of those clients.

        Args:
            ids: Ids of the clients; may be empty.

        Raises:
            KeyError: An unknown id.
            ValueError: A client's data is empty, not finite, or unlike the other clients'.
        """
        raise NotImplementedError

    def sizes(self, ids: Iterable | None = None) -> np.ndarray:
        """Returns the number of examples of each client, int64.

        Args:
            ids: Ids of the clients, all clients if `None`. Clients whose size is not known yet
                are read.
        """
        raise NotImplementedError

    @property
    def spec(self):
        """Nest `(x, y[, sample_weight])` of `tf.TensorSpec` with leading dimension `None`."""
        import tensorflow as tf

        return map_leaves(
            lambda leaf: tf.TensorSpec((None, *leaf.shape), leaf.dtype), self._leaf_specs()
        )

    def _leaf_specs(self):
        """Returns the nest of `checks.LeafSpec` of the population."""
        raise NotImplementedError

    def subset(self, ids: Iterable) -> "ClientData":
        """Returns the population of the given clients only, in the given order."""
        raise NotImplementedError

    def map(self, fn: Callable) -> "ClientData":
        """Returns a population whose clients hold `fn(x, y[, sample_weight])`.

        `fn` runs each time a client is read; it may change shapes, dtypes and the number of
        examples, and returns `(x, y)` or `(x, y, sample_weight)`.
        """
        return LazyClientData(self.ids, lambda client_id: fn(*self[client_id]))


class ResidentClientData(ClientData):
    """A federation that lies in memory as one set of arrays and a table of rows.

    Args:
        arrays: `(x, y[, sample_weight])` of all clients, as `checks.as_examples` returns them.
        ids: Client ids in population order.
        rows: Rows of `arrays`, client after client.
        sizes: Number of rows of each client.
    """

    resident = True

    def __init__(self, arrays, ids: Iterable, rows: np.ndarray, sizes: np.ndarray):
        super().__init__(ids)
        if checks.num_examples(arrays) > np.iinfo(np.int32).max:
            raise ValueError(
                "Expected at most 2**31 - 1 examples in memory. Received: "
                f"{checks.num_examples(arrays)}. Use from_function or from_folder instead."
            )
        self._arrays = arrays
        self._rows = np.asarray(rows, np.int32)
        self._sizes = np.asarray(sizes, np.int64)
        self._ends = np.cumsum(self._sizes)

    def _rows_of(self, position):
        end = self._ends[position]
        return self._rows[end - self._sizes[position] : end]

    def __getitem__(self, client_id):
        rows = self._rows_of(self._index.position(client_id))
        return map_leaves(lambda leaf: leaf[rows], self._arrays)

    def examples(self, ids):
        positions = [self._index.position(i) for i in ids]
        rows = [np.zeros(0, np.int32), *(self._rows_of(p) for p in positions)]
        return Examples(self._arrays, np.concatenate(rows), self._sizes[positions])

    def sizes(self, ids=None):
        if ids is None:
            return self._sizes.copy()
        return self._sizes[[self._index.position(i) for i in ids]]

    def _leaf_specs(self):
        return checks.spec_of(self._arrays)

    def subset(self, ids):
        ids = ids if isinstance(ids, range) else list(ids)
        _, rows, sizes = self.examples(ids)
        return ResidentClientData(self._arrays, ids, rows, sizes)


class LazyClientData(ClientData):
    """A population whose clients are read when they are asked for, and not kept.

    Only the sizes of clients that were read are remembered.

    Args:
        ids: Client ids in population order; a `range` costs no memory per client.
        read: Function of an id that returns `(x, y[, sample_weight])` array-likes or a
            `tf.data.Dataset`.
        spec: Nest of `checks.LeafSpec`; that of the first client read if `None`.
        sizes: Dictionary of the sizes already known.
    """

    def __init__(self, ids: Iterable, read: Callable, spec=None, sizes: Mapping | None = None):
        super().__init__(ids)
        self._read = read
        self._spec = spec
        self._known_sizes = dict(sizes or {})

    def __getitem__(self, client_id):
        client_id = self.ids[self._index.position(client_id)]
        where = f"client {client_id!r}"
        parts = checks.as_examples(self._read(client_id), where, self._spec)
        if self._spec is None:
            self._spec = checks.spec_of(parts)
        checks.check_spec(parts, self._spec, where)
        size = checks.num_examples(parts)
        if self._known_sizes.setdefault(client_id, size) != size:
            raise ValueError(
                f"Expected {self._known_sizes[client_id]} examples of {where}, as declared or read "
                f"before. Received: {size}. Clients may not change while they are in use."
            )
        return parts

    def examples(self, ids):
        clients = [self[i] for i in ids]
        sizes = np.array([checks.num_examples(parts) for parts in clients], np.int64)
        clients = clients or [self._no_examples()]
        arrays = map_leaves(lambda *leaves: np.concatenate(leaves), *clients)
        return Examples(arrays, np.arange(sizes.sum(), dtype=np.int32), sizes)

    def _no_examples(self):
        return map_leaves(lambda leaf: np.zeros((0, *leaf.shape), leaf.dtype), self._leaf_specs())

    def sizes(self, ids=None):
        ids = self.ids if ids is None else [self.ids[self._index.position(i)] for i in ids]
        return np.array([self._size(i) for i in ids], np.int64)

    def _size(self, client_id):
        if client_id not in self._known_sizes:
            return checks.num_examples(self[client_id])
        return self._known_sizes[client_id]

    def _leaf_specs(self):
        if self._spec is None:
            self[self.ids[0]]  # reading a client settles the spec
        return self._spec

    def subset(self, ids):
        ids = ids if isinstance(ids, range) else list(ids)
        known = [self.ids[self._index.position(i)] for i in ids]
        sizes = {i: self._known_sizes[i] for i in known if i in self._known_sizes}
        return LazyClientData(ids, self._read, self._spec, sizes)


def from_function(ids: Iterable, fn: Callable, spec=None) -> ClientData:
    """Makes a population whose clients are read by a function.

    Args:
        ids: Client ids in population order. `range(1_000_000)` costs no memory.
        fn: Function of an id that returns `(x, y)` or `(x, y, sample_weight)`, nests of arrays, or
            a finite `tf.data.Dataset` of such examples or batches of them. It must return the
            same data in every call; only clients that are asked for are read.
        spec: Nest `(x, y[, sample_weight])` of `tf.TensorSpec` with leading dimension `None`; by
            default that of the first client read.

    Returns:
        The population.

    Raises:
        ValueError: No ids, duplicate ids, or a spec with unknown dimensions.
    """
    return LazyClientData(ids, fn, None if spec is None else checks.spec_from_tensors(spec))


def from_dict(data: Mapping) -> ClientData:
    """Makes a population of a dictionary `{id: (x, y[, sample_weight])}`.

    Arrays are checked now and copied into one resident set of arrays. If a value is a
    `tf.data.Dataset`, all clients are read on demand instead.

    Args:
        data: Dictionary of ids to nests of arrays or to `tf.data.Dataset`s.

    Returns:
        The population, in the order of the dictionary.

    Raises:
        ValueError: No clients, a client without examples, or clients whose data differ in
            structure, shape or dtype or are not finite.
    """
    if any(hasattr(value, "as_numpy_iterator") for value in data.values()):
        return LazyClientData(data, data.__getitem__)
    ids = IdIndex(data).ids
    clients = [checks.as_examples(value, f"client {i!r}") for i, value in data.items()]
    spec = checks.spec_of(clients[0])
    for client_id, parts in zip(ids, clients, strict=True):
        checks.check_spec(parts, spec, f"client {client_id!r}")
    sizes = np.array([checks.num_examples(parts) for parts in clients], np.int64)
    arrays = map_leaves(lambda *leaves: np.concatenate(leaves), *clients)
    return ResidentClientData(arrays, ids, np.arange(sizes.sum()), sizes)
