"""A population of clients addressed by id."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from tffed.data.checks import Reading, in_order
from tffed.data.ids import IdIndex
from tffed.data.nest import map_leaves
from tffed.data.spec import num_examples, spec_of, tensor_specs


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
    that all clients share (`float64` is read as `float32`). A client may have no examples: its size
    is 0. Made by `partition`, `from_dict`,
    `from_function`, `from_folder` and `from_leaf`.

    Attributes:
        resident: Whether the whole federation lies in memory as one set of arrays. If so,
            `examples(...).arrays` is the same object in every call.
        lengths_differ: Whether examples are known to differ in length between clients; they are
            padded once `padded` was called.
        columns: `{name of an array: names of its columns}` for those that were read from tables.
        source_columns: Of a population made by `map`, the columns of what was mapped.
    """

    resident = False
    lengths_differ = False
    columns: dict = {}
    source_columns: dict = {}

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
            ValueError: A client's data is not finite, or unlike the other clients'.
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
        return tensor_specs(self.leaf_specs())

    def leaf_specs(self):
        """Returns the nest of `LeafSpec` of the population."""
        raise NotImplementedError

    def subset(self, ids: Iterable) -> "ClientData":
        """Returns the population of the given clients only, in the given order."""
        raise NotImplementedError

    def read(self, client_id) -> Reading:
        """Reads a client as it is, without a look at its values."""
        return Reading(self[client_id], self.columns)

    def map(self, fn: Callable) -> "ClientData":
        """Returns a population whose clients hold `fn(x, y[, sample_weight])`.

        `fn` runs each time a client with examples is read. It takes the arrays as they were read,
        strings and float64 included: values are checked after it. It may change shapes, dtypes and
        the number of examples, and returns `(x, y)` or `(x, y, sample_weight)`.
        """
        from tffed.data.lazy import LazyClientData, Mapped

        return LazyClientData(self.ids, Mapped(self, fn))


class ResidentClientData(ClientData):
    """A federation that lies in memory as one set of arrays and a table of rows.

    Args:
        arrays: `(x, y[, sample_weight])` of all clients, as `checks.as_examples` returns them.
        ids: Client ids in population order.
        rows: Rows of `arrays`, client after client.
        sizes: Number of rows of each client.
        columns: As in `ClientData`.
    """

    resident = True

    def __init__(self, arrays, ids: Iterable, rows, sizes, columns: dict | None = None):
        super().__init__(ids)
        self.columns = columns or {}
        if num_examples(arrays) > np.iinfo(np.int32).max:
            raise ValueError(
                "Expected at most 2**31 - 1 examples in memory. Received: "
                f"{num_examples(arrays)}. Use from_function or from_folder instead."
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

    def leaf_specs(self):
        return spec_of(self._arrays)

    def subset(self, ids):
        ids = ids if isinstance(ids, range) else list(ids)
        _, rows, sizes = self.examples(ids)
        return ResidentClientData(self._arrays, ids, rows, sizes, self.columns)

    def in_order(self, columns: dict) -> "ClientData":
        """Returns the population with the columns of its tables in the given order."""
        found = in_order(Reading(self._arrays, self.columns), columns, "the clients")
        rows, sizes = self._rows, self._sizes
        return ResidentClientData(found.parts, self.ids, rows, sizes, found.columns)
