"""Turns what a client holds into checked NumPy arrays of settled dtypes."""

from typing import Any, NamedTuple

from tffed.data.datasets import dataset_arrays
from tffed.data.leaf_values import checked_array, column_names, is_unequal, raw_array
from tffed.data.nest import map_leaves
from tffed.data.spec import named_leaves, spec_of


class Reading(NamedTuple):
    """What was read of one client.

    Attributes:
        parts: `(x, y[, sample_weight])`, nests of arrays.
        columns: `{name of an array: names of its columns}` for those that came as tables.
        unequal: Whether lengths differ within the client and were padded with zeros.
    """

    parts: Any
    columns: dict
    unequal: bool = False

    @property
    def size(self) -> int:
        """The number of examples."""
        return len(named_leaves(self.parts)[0][1])

    @property
    def spec(self):
        """The nest of `LeafSpec` of the arrays."""
        return spec_of(self.parts)


def read_examples(value, where: str, spec=None, rank=None) -> Reading:
    """Reads what a client holds into arrays, without a look at their values.

    Args:
        value: `(x, y)` or `(x, y, sample_weight)`, each a nest of array-likes with one leading
            dimension, or a `tf.data.Dataset` of such examples or of batches of them; or a
            `Reading` of arrays.
        where: Whose data it is, for messages, e.g. `"client 'anna'"`.
        spec: Nest of `LeafSpec`, if known; tells batches from examples in a `tf.data.Dataset`.
        rank: The rank of one example of the first input, if known; likewise.

    Raises:
        ValueError: Not such a tuple, or leaves of different lengths.
    """
    unequal = False
    if isinstance(value, Reading):
        value, _, unequal = value
    if hasattr(value, "as_numpy_iterator"):
        value, unequal = dataset_arrays(value, where, spec, rank=rank)
    if not isinstance(value, (tuple, list)) or len(value) not in (2, 3):
        length = f" of length {len(value)}" if isinstance(value, (tuple, list)) else ""
        raise ValueError(
            f"Expected the data of {where} to be a tuple (x, y) or (x, y, sample_weight), or a "
            f"tf.data.Dataset of such tuples. Received: {type(value).__name__}{length}. Return "
            "the inputs and the targets as one tuple."
        )
    value = tuple(value[:2]) if len(value) == 3 and value[2] is None else tuple(value)
    found = named_leaves(value)
    columns = {name: column_names(leaf) for name, leaf in found}
    unequal = unequal or any(is_unequal(leaf) for _, leaf in found)
    parts = _map_named(lambda leaf, name: raw_array(leaf, name, where), value)
    _check_lengths(parts, where)
    return Reading(parts, {name: c for name, c in columns.items() if c}, unequal)


def in_order(reading: Reading, columns: dict, where: str) -> Reading:
    """Returns a reading with the columns of its tables in the given order.

    Args:
        reading: The `Reading`.
        columns: `{name of an array: names of its columns}`, as of the first client.
        where: Who the client is, for messages.

    Raises:
        ValueError: A column is missing, or there is one more.
    """

    def order(leaf, name):
        want, got = columns.get(name), reading.columns.get(name)
        if want is None or got is None or want == got:
            return leaf
        missing, surplus = [c for c in want if c not in got], [c for c in got if c not in want]
        if missing or surplus or len(set(got)) < len(got):
            raise ValueError(
                f"Expected the columns {list(want)} in {name} of {where}, as the first data read "
                f"have. Received: {list(got)}, so {missing} are missing and {surplus} surplus. "
                "Give all data the same columns, each once."
            )
        return leaf[..., [got.index(column) for column in want]]

    parts = _map_named(order, reading.parts)
    known = {name: columns.get(name, got) for name, got in reading.columns.items()}
    return reading._replace(parts=parts, columns=known)


def checked(reading: Reading, where: str) -> Reading:
    """Checks the values of a reading and settles its dtypes.

    `float64` becomes `float32` where that keeps numbers apart; every other numeric dtype stays as
    it is, and so do strings in x.

    Raises:
        ValueError: A dtype that no model takes, values that are not finite or would not survive.
    """

    def check(leaf, name):
        return checked_array(leaf, name, where, reading.columns.get(name))

    return reading._replace(parts=_map_named(check, reading.parts))


def as_examples(value, where: str, spec=None):
    """Returns the examples of one client, or of a whole federation, read and checked."""
    return checked(read_examples(value, where, spec), where).parts


def _map_named(fn, parts):
    names = iter([name for name, _ in named_leaves(parts)])
    return map_leaves(lambda leaf: fn(leaf, next(names)), parts)


def _check_lengths(parts, where):
    lengths = {name: len(leaf) for name, leaf in named_leaves(parts)}
    if not lengths:
        raise ValueError(
            f"Expected {where} to hold arrays. Received: empty nests. Give x and y at least one "
            "array each."
        )
    if len(set(lengths.values())) > 1:
        raise ValueError(
            f"Expected all arrays of {where} to have one number of examples. Received: "
            f"{', '.join(f'{name}: {n}' for name, n in lengths.items())}. Make the leading "
            "dimensions equal."
        )
