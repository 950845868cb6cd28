"""Populations whose clients are read when they are asked for."""

import copy
import functools
import zlib
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from tffed.data import checks
from tffed.data.client_data import ClientData, Examples, ResidentClientData
from tffed.data.ids import IdIndex
from tffed.data.lengths import joined
from tffed.data.nest import map_leaves
from tffed.data.spec import (
    check_structure,
    conformed,
    is_open,
    merged,
    named_leaves,
    no_examples,
    num_examples,
    spec_of,
)


class LazyClientData(ClientData):
    """A population whose clients are read when they are asked for, and not kept.

    Only the sizes and checksums of clients that were read are remembered.

    Args:
        ids: Client ids in population order; a `range` costs no memory per client.
        read: Function of an id that returns `(x, y[, sample_weight])` array-likes or a
            `tf.data.Dataset`; it may have a method `where(id)` that names the file.
        spec: Nest of `LeafSpec` that binds every client; if `None`, what the clients read so far
            have in common.
        sizes: Dictionary of the sizes already known.
    """

    def __init__(self, ids: Iterable, read: Callable, spec=None, sizes: Mapping | None = None):
        super().__init__(ids)
        self._read = read
        self._spec = spec
        self._bound = spec is not None
        self._known_sizes = dict(sizes or {})
        self._sums = {}
        self._first = self.ids[0]  # whose columns come in the right order
        self._columns = self._rank = self._check = None

    def where(self, client_id) -> str:
        """Names a client, and its file if there is one, for messages."""
        file = getattr(self._read, "where", None)
        return f"client {client_id!r}" + (f" ({file(client_id)})" if file else "")

    def read(self, client_id) -> checks.Reading:
        """Reads a client as it is, without a look at its values."""
        client_id = self.ids[self._index.position(client_id)]
        where = self.where(client_id)
        reading = checks.read_examples(self._read(client_id), where, self._spec, self._rank)
        self._check_size(client_id, reading.size, where)
        found = checksum(reading.parts)
        if self._sums.setdefault(client_id, found) != found:
            raise ValueError(
                f"Expected the data of {where} to be the same at each reading. Received: other "
                "data than before, so the same seed would not give the same bits. Shuffle with "
                "reshuffle_each_iteration=False and a seed, or not at all (training shuffles), and "
                "put random augmentation into the model as layers."
            )
        return self._in_order(client_id, reading, where)

    def _in_order(self, client_id, reading, where):
        """The reading with the columns of its tables as the first client has them."""
        if not reading.columns:
            return reading
        if self._columns is None:
            first = self._first
            found = checks.read_examples(self._read(first), self.where(first), self._spec)
            self._columns = found.columns
        return checks.in_order(reading, self._columns, where)

    @property
    def columns(self):
        """`{name of an array: names of its columns}` for those that are read from tables."""
        self.leaf_specs()  # which reads a client
        return self._columns or {}

    def in_order(self, columns: dict) -> "LazyClientData":
        """Returns the population with the columns of its tables in the given order."""
        return self.view(columns=columns)

    @property
    def source_columns(self):
        """Of a mapped population, the columns of the tables that were mapped."""
        return self._read.columns if isinstance(self._read, Mapped) else {}

    def source_in_order(self, columns: dict) -> "LazyClientData":
        """Returns a mapped population whose function takes columns in the given order."""
        return self.view(read=self._read.in_order(columns), sums={})

    def __getitem__(self, client_id):
        client_id = self.ids[self._index.position(client_id)]
        where = self.where(client_id)
        reading = checks.checked(self.read(client_id), where)
        self._settle(reading, where)
        parts = conformed(reading.parts, self._spec, where)
        if self._check is not None and reading.size:
            self._check(parts, where)
        return parts

    def _check_size(self, client_id, size, where):
        known = self._known_sizes.setdefault(client_id, size)
        if known != size:
            raise ValueError(
                f"Expected {known} examples of {where}, as declared or read before. Received: "
                f"{size}. Clients may not change while they are in use."
            )

    def _settle(self, reading, where):
        """Takes what a client's arrays are like into what all clients have in common."""
        if not reading.size:
            return check_structure(self.leaf_specs(), reading.spec, where)
        if self._spec is None:
            self._spec = reading.spec
        spec = merged(self._spec, reading.spec, where)
        if reading.unequal and not is_open(spec):
            raise ValueError(
                f"Expected the examples of {where} to have one length. Received: several, which "
                "would be padded; Federated.fit does that where it finds that the model ignores "
                "padding. Let the model mask it (mask_zero=True), or pad to one length."
            )
        if not self._bound:
            self._spec = spec
        return None

    def examples(self, ids):
        return self._examples(list(ids))

    def _examples(self, ids, few_lengths=True):
        clients = [self[i] for i in ids]
        spec = self.leaf_specs()  # a client read later may have brought another dtype
        clients = [
            conformed(parts, spec, self.where(i)) for i, parts in zip(ids, clients, strict=True)
        ]
        sizes = np.array([num_examples(parts) for parts in clients], np.int64)
        clients = clients or [map_leaves(no_examples, spec)]
        arrays = map_leaves(
            lambda want, *leaves: joined(leaves, want.shape if few_lengths else None),
            spec, *clients,
        )
        return Examples(arrays, np.arange(sizes.sum(), dtype=np.int32), sizes)

    def sizes(self, ids=None):
        ids = self.ids if ids is None else [self.ids[self._index.position(i)] for i in ids]
        return np.array([self._size(i) for i in ids], np.int64)

    def _size(self, client_id):
        if client_id not in self._known_sizes:
            return num_examples(self[client_id])
        return self._known_sizes[client_id]

    def leaf_specs(self):
        if self._spec is None:
            self._spec = self._first_spec()
        return self._spec

    def _first_spec(self):
        for client_id in self.ids:
            if self._known_sizes.get(client_id) == 0:
                continue
            where = self.where(client_id)
            reading = checks.checked(self.read(client_id), where)
            if reading.size:
                return reading.spec
        raise ValueError(
            f"Expected at least one client with examples. Received: {len(self)} clients, all "
            "without. Check the path, or the function that reads them."
        )

    def view(self, **changes) -> "LazyClientData":
        """Returns this population with other attributes, e.g. `ids=`, `spec=`, `check=`."""
        new = copy.copy(self)
        if "ids" in changes:
            new._index = IdIndex(changes.pop("ids"))
        for name, value in changes.items():
            setattr(new, f"_{name}", value)
        return new

    def subset(self, ids):
        ids = ids if isinstance(ids, range) else list(ids)
        known = [self.ids[self._index.position(i)] for i in ids]
        sizes = {i: self._known_sizes[i] for i in known if i in self._known_sizes}
        return self.view(ids=ids, known_sizes=sizes)

    def padded(self, spec) -> ClientData:
        """Returns the population with lengths padded where `spec` has an unknown dimension."""
        return self.view(spec=spec)


class HeldClientData(LazyClientData):
    """A population in memory whose clients' lengths differ: `padded` makes it one set of arrays.

    Args:
        data: Dictionary `{id: (x, y[, sample_weight])}`.
        spec: Nest of `LeafSpec` with None for the lengths that differ.
    """

    lengths_differ = True

    def __init__(self, data: Mapping, spec):
        super().__init__(data, data.__getitem__)
        self._spec = spec
        self._one = {}

    def examples(self, ids):
        """Returns the examples of clients of one length, as `LazyClientData` does."""
        ids, first = list(ids), None
        for client_id in ids:
            spec = spec_of(self[client_id])
            first = merged(first or spec, spec, self.where(client_id))
        return super().examples(ids)

    def padded(self, spec):
        key = str(spec), self.ids
        if key not in self._one:
            arrays, rows, sizes = self.view(spec=spec)._examples(self.ids, few_lengths=False)
            self._one[key] = ResidentClientData(arrays, self.ids, rows, sizes, self._columns)
        return self._one[key]


def checksum(parts) -> int:
    """Returns a number that two different sets of arrays are unlikely to share."""
    total = 0
    for name, leaf in named_leaves(parts):
        total = zlib.crc32(f"{name} {leaf.dtype} {leaf.shape}".encode(), total)
        if leaf.dtype.kind == "O":
            leaf = np.frombuffer(repr(leaf.tolist()).encode(), np.uint8)
        total = zlib.crc32(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8), total)
    return total


class Mapped:
    """Reads clients of another population and applies a function to those with examples.

    Args:
        source: The `ClientData`.
        fn: Function of `(x, y[, sample_weight])` as they were read.
    """

    def __init__(self, source: ClientData, fn: Callable):
        self._source, self._fn = source, fn

    def __call__(self, client_id):
        reading = self._source.read(client_id)
        if reading.unequal:
            raise ValueError(
                f"Expected the examples of client {client_id!r} to have one length for map(...). "
                "Received: several, which would be padded unseen. Pad them to one length before."
            )
        return self._fn(*reading.parts) if reading.size else self._nothing

    @functools.cached_property
    def columns(self) -> dict:
        """The columns of the tables that are mapped, by this or an earlier function."""
        return self._given or self._source.source_columns

    @functools.cached_property
    def _given(self):
        return self._source.read(self._source.ids[0]).columns

    def in_order(self, columns: dict) -> "Mapped":
        """Returns the same with the columns of those tables in the given order."""
        order = self._source.in_order if self._given else self._source.source_in_order
        return Mapped(order(columns), self._fn)

    @functools.cached_property
    def _nothing(self):
        """What a client without examples has: nothing, of the shapes of another's results."""
        for client_id in self._source.ids:
            reading = self._source.read(client_id)
            if reading.size:
                made = checks.read_examples(self._fn(*reading.parts), f"client {client_id!r}")
                return map_leaves(lambda leaf: leaf[:0], made.parts)
        return reading.parts
