"""Populations made of Python objects.

```python
clients = from_dict({"anna": (x_a, y_a), "ben": (x_b, y_b)})
clients["anna"]                                   # (x_a, y_a), checked, as NumPy arrays
clients.examples(["ben", "anna"])                 # what an engine trains on
million = from_function(range(1_000_000), lambda i: read(i))    # opens at once, reads on demand
```
"""

from collections.abc import Callable, Iterable, Mapping

import numpy as np

from tffed.data import checks
from tffed.data.client_data import ClientData, ResidentClientData
from tffed.data.ids import IdIndex
from tffed.data.lazy import HeldClientData, LazyClientData
from tffed.data.nest import map_leaves
from tffed.data.spec import check_structure, conformed, is_open, merged, opened, spec_from_tensors


def from_function(ids: Iterable, fn: Callable, spec=None) -> ClientData:
    """Makes a population whose clients are read by a function.

    Args:
        ids: Client ids in population order. `range(1_000_000)` costs no memory.
        fn: Function of an id that returns `(x, y)` or `(x, y, sample_weight)`, nests of arrays, or
            a finite `tf.data.Dataset` of such examples or batches of them. It must return the
            same data in every call, which is checked; only clients that are asked for are read.
        spec: Nest `(x, y[, sample_weight])` of `tf.TensorSpec` with leading dimension `None`; by
            default what the clients read so far have in common.

    Returns:
        The population.

    Raises:
        ValueError: No ids, duplicate ids, or a spec with unknown dimensions.
    """
    return LazyClientData(ids, fn, None if spec is None else spec_from_tensors(spec))


def from_dict(data: Mapping) -> ClientData:
    """Makes a population of a dictionary `{id: (x, y[, sample_weight])}`.

    Arrays are checked now and copied into one resident set of arrays. If a value is a
    `tf.data.Dataset`, all clients are read on demand instead; if lengths differ between clients,
    when they are padded, which `Federated.fit` decides.

    Args:
        data: Dictionary of ids to nests of arrays or to `tf.data.Dataset`s.

    Returns:
        The population, in the order of the dictionary.

    Raises:
        ValueError: No clients, none with examples, or clients whose data differ in structure or
            shape, have no common dtype or are not finite.
    """
    if any(hasattr(value, "as_numpy_iterator") for value in data.values()):
        return LazyClientData(data, data.__getitem__)
    ids = IdIndex(data).ids
    readings, columns = _read_all(data)
    spec = _common_spec(readings)
    if is_open(spec) or any(reading.unequal for reading in readings.values()):
        return HeldClientData(data, spec)
    clients = [conformed(r.parts, spec, where) for where, r in readings.items()]
    sizes = np.array([reading.size for reading in readings.values()], np.int64)
    arrays = map_leaves(lambda *leaves: np.concatenate(leaves), *clients)
    return ResidentClientData(arrays, ids, np.arange(sizes.sum()), sizes, columns)


def _read_all(data):
    """`{who: Reading}`, with the columns of tables in the order of the first client, and those."""
    readings, columns = {}, None
    for client_id, value in data.items():
        where = f"client {client_id!r}"
        reading = checks.read_examples(value, where)
        columns = reading.columns if columns is None else columns
        readings[where] = checks.checked(checks.in_order(reading, columns, where), where)
    return readings, columns


def _common_spec(readings):
    spec = None
    for where, reading in readings.items():
        if reading.size:
            spec = reading.spec if spec is None else spec
            spec = merged(opened(spec, reading.spec), reading.spec, where)
    if spec is None:
        raise ValueError(
            f"Expected at least one client with examples. Received: {len(readings)} clients, all "
            "without. Check where the examples come from."
        )
    for where, reading in readings.items():
        check_structure(spec, reading.spec, where)
    return spec
