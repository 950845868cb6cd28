"""Turns what a client holds into checked NumPy arrays of settled dtypes."""

import dataclasses

import numpy as np

from tffed.data.nest import leaves, map_leaves

_PARTS = ("x", "y", "sample_weight")


@dataclasses.dataclass(frozen=True)
class LeafSpec:
    """Shape of one example and dtype of one leaf of the data."""

    shape: tuple
    dtype: np.dtype

    def __str__(self):
        return f"shape {self.shape}, dtype {self.dtype}"


def named_leaves(parts) -> list[tuple[str, object]]:
    """Lists the leaves of `(x, y[, sample_weight])` with names such as `x['image']`."""
    return [pair for name, part in zip(_PARTS, parts, strict=False) for pair in leaves(part, name)]


def num_examples(parts) -> int:
    """Returns the leading dimension of checked arrays."""
    return len(named_leaves(parts)[0][1])


def as_examples(value, where: str, spec=None):
    """Checks and normalises the examples of one client, or of a whole federation.

    `float64` becomes `float32`; every other numeric dtype stays as it is.

    Args:
        value: `(x, y)` or `(x, y, sample_weight)`, each a nest of array-likes with one leading
            dimension, or a `tf.data.Dataset` of such examples or of batches of them.
        where: Whose data it is, for messages, e.g. `"client 'anna'"`.
        spec: Nest of `LeafSpec`, if known; tells batches from examples in a `tf.data.Dataset`.

    Returns:
        A tuple `(x, y)` or `(x, y, sample_weight)` of nests of `np.ndarray`.

    Raises:
        ValueError: Not such a tuple, no examples, leaves of different lengths, a dtype that is
            not numeric, or values that are not finite.
    """
    if hasattr(value, "as_numpy_iterator"):
        value = dataset_arrays(value, where, spec)
    if not isinstance(value, (tuple, list)) or len(value) not in (2, 3):
        length = f" of length {len(value)}" if isinstance(value, (tuple, list)) else ""
        raise ValueError(
            f"Expected the data of {where} to be a tuple (x, y) or (x, y, sample_weight), or a "
            f"tf.data.Dataset of such tuples. Received: {type(value).__name__}{length}. Return "
            "the inputs and the targets as one tuple."
        )
    value = tuple(value[:2]) if len(value) == 3 and value[2] is None else tuple(value)
    names = iter([name for name, _ in named_leaves(value)])
    parts = map_leaves(lambda leaf: _as_array(leaf, next(names), where), value)
    _check_lengths(parts, where)
    return parts


def _as_array(leaf, name, where):
    try:
        array = np.asarray(leaf)
    except ValueError as error:
        raise ValueError(
            f"Expected {name} of {where} to be an array. Received: {type(leaf).__name__}, which "
            f"NumPy refuses ({error}). Give every example the same shape, by padding for example."
        ) from error
    if array.dtype.kind not in "biuf":
        raise ValueError(
            f"Expected numbers in {name} of {where}. Received: dtype={array.dtype}. Convert to "
            "numbers, and give examples of unequal shapes one shape by padding."
        )
    if array.ndim == 0:
        raise ValueError(
            f"Expected {name} of {where} to have a leading dimension of examples. Received: the "
            f"scalar {leaf!r}. Lists are taken for nests of arrays: turn a list of numbers into "
            "an array with np.asarray."
        )
    if array.dtype == np.float64:
        with np.errstate(over="ignore"):  # what does not fit becomes infinite and is refused below
            array = array.astype(np.float32)
    _check_finite(array, name, where)
    return array


def _check_finite(array, name, where):
    # min and max carry NaN and infinity along, without a temporary the size of the data.
    if array.dtype.kind != "f" or not array.size:
        return
    with np.errstate(invalid="ignore"):
        finite = np.isfinite(array.min()) and np.isfinite(array.max())
    if not finite:
        bad = ~np.isfinite(array.reshape(len(array), -1)).all(axis=1)
        raise ValueError(
            f"Expected finite values in {name} of {where}. Received: NaN or infinity (or values "
            f"beyond {array.dtype}) in {bad.sum()} of {len(array)} examples, the first at row "
            f"{int(np.argmax(bad))}. Remove or fill in those values."
        )


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
    if not next(iter(lengths.values())):
        raise ValueError(
            f"Expected {where} to have at least one example. Received: 0 examples. Leave clients "
            "without data out of the population."
        )


def spec_of(parts):
    """Returns the nest of `LeafSpec` of checked arrays."""
    return map_leaves(lambda leaf: LeafSpec(leaf.shape[1:], leaf.dtype), parts)


def spec_from_tensors(spec):
    """Turns a nest of `tf.TensorSpec` (leading dimension `None`) into one of `LeafSpec`.

    Raises:
        ValueError: The spec is not `(x, y[, sample_weight])`, or a dimension other than the
            leading one is unknown.
    """
    if not isinstance(spec, (tuple, list)) or len(spec) not in (2, 3):
        raise ValueError(
            "Expected a spec (x, y) or (x, y, sample_weight) of tf.TensorSpec. Received: "
            f"spec={spec!r}. Describe inputs and targets in one tuple."
        )
    return map_leaves(_leaf_spec, tuple(spec))


def _leaf_spec(leaf):
    shape = tuple(leaf.shape)
    dtype = np.dtype(getattr(leaf.dtype, "as_numpy_dtype", leaf.dtype))
    if not shape or None in shape[1:]:
        raise ValueError(
            "Expected shapes with a leading dimension of examples and known dimensions after it. "
            f"Received: shape={shape}. Give tf.TensorSpec((None, ...), dtype), and pad examples "
            "of unequal shapes to one shape."
        )
    return LeafSpec(shape[1:], np.dtype(np.float32) if dtype == np.float64 else dtype)


def check_spec(parts, spec, where: str):
    """Checks one client's arrays against the spec of the population.

    Raises:
        ValueError: Another structure, shape or dtype.
    """
    got, want = (dict(named_leaves(nest)) for nest in (spec_of(parts), spec))
    if got.keys() != want.keys():
        raise ValueError(
            f"Expected {where} to hold the arrays {', '.join(want)}, as the other clients do. "
            f"Received: {', '.join(got)}. Give every client the same arrays."
        )
    for name in want:
        if got[name] != want[name]:
            raise ValueError(
                f"Expected {name} of {where} to have {want[name]} per example, as the other "
                f"clients have. Received: {got[name]}. Give every client one shape and dtype."
            )


def dataset_arrays(dataset, where: str, spec=None, batched=None):
    """Reads a whole `tf.data.Dataset` into arrays.

    Elements are batches if every component has an unknown leading dimension, as `batch` leaves
    it, and single examples if a component is a scalar or if the leading dimensions differ.

    Args:
        dataset: Finite dataset of `(x, y[, sample_weight])`.
        where: Whose data it is, for messages.
        spec: Nest of `LeafSpec`, which settles what is ambiguous otherwise.
        batched: Whether elements are batches, if known.

    Returns:
        The elements' structure with `np.ndarray` leaves of all examples.

    Raises:
        ValueError: No elements, infinitely many, or it is unclear whether they are batches.
    """
    if int(dataset.cardinality()) == -1:  # tf.data.INFINITE_CARDINALITY
        raise ValueError(
            f"Expected the dataset of {where} to end. Received: an infinite tf.data.Dataset. Leave "
            "out repeat(): the local epochs are a setting of the algorithm."
        )
    if batched is None:
        batched = _is_batched(dataset.element_spec, where, spec)
    batches = list((dataset if batched else dataset.batch(1024)).as_numpy_iterator())
    if not batches:
        raise ValueError(
            f"Expected {where} to have at least one example. Received: an empty tf.data.Dataset. "
            "Leave clients without data out of the population."
        )
    return map_leaves(lambda *parts: np.concatenate(parts), *batches)


def _is_batched(element_spec, where, spec):
    shapes = [tuple(leaf.shape) for _, leaf in leaves(element_spec)]
    if spec is not None:
        return len(shapes[0]) == len(named_leaves(spec)[0][1].shape) + 1
    if any(not shape for shape in shapes) or len({shape[0] for shape in shapes}) > 1:
        return False
    if shapes[0][0] is None:
        return True
    raise ValueError(
        f"Expected the dataset of {where} to show whether its elements are examples or batches. "
        f"Received: components of shapes {shapes}, which may be either. Batch it without "
        "drop_remainder, or pass `spec` to from_function."
    )
