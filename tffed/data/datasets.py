"""Reads a `tf.data.Dataset` of examples, or of batches of them, into arrays."""

import numpy as np

from tffed.data.leaf_values import dense, is_unequal
from tffed.data.lengths import joined
from tffed.data.nest import leaves, map_leaves
from tffed.data.spec import named_leaves


def dataset_arrays(dataset, where: str, spec=None, batched=None, rank=None):
    """Reads a whole `tf.data.Dataset` into arrays.

    Elements are batches if every component has an unknown leading dimension, as `batch` leaves
    it, and single examples if a component is a scalar or if the leading dimensions differ. Where
    all components share a known one, as `batch(n, drop_remainder=True)` leaves it, they are batches
    if the dataset was made by batching.

    Args:
        dataset: Finite dataset of `(x, y[, sample_weight])`.
        where: Whose data it is, for messages.
        spec: Nest of `LeafSpec`, which settles what is ambiguous otherwise.
        batched: Whether elements are batches, if known.
        rank: The rank of one example of the first input, if known: settles it likewise.

    Returns:
        `(nest of all examples, whether lengths differ and were padded with zeros)`.

    Raises:
        ValueError: Infinitely many elements, or it is unclear whether they are batches.
    """
    if int(dataset.cardinality()) == -1:  # tf.data.INFINITE_CARDINALITY
        raise ValueError(
            f"Expected the dataset of {where} to end. Received: an infinite tf.data.Dataset. Leave "
            "out repeat(): the local epochs are a setting of the algorithm."
        )
    if spec is not None:
        rank = len(named_leaves(spec)[0][1].shape)
    if batched is None:
        batched = _is_batched(dataset, where, rank)
    shapes = [leaf.shape for _, leaf in leaves(dataset.element_spec)]
    if not batched and all(shape.is_fully_defined() for shape in shapes):
        dataset, batched = dataset.batch(1024), True
    elements = list(dataset)
    unequal = any(is_unequal(leaf) for element in elements for _, leaf in leaves(element))
    batches = [map_leaves(dense, element) for element in elements]
    if not batched:
        batches = [map_leaves(lambda a: np.expand_dims(a, 0), b) for b in batches]
    if not batches:
        return map_leaves(lambda leaf: _nothing(leaf, batched), dataset.element_spec), False
    unequal |= len({str([a.shape[1:] for _, a in leaves(batch)]) for batch in batches}) > 1
    return map_leaves(lambda *parts: joined(list(parts)), *batches), unequal


def _nothing(leaf, batched):
    dtype = leaf.dtype.as_numpy_dtype
    shape = tuple(leaf.shape)[1:] if batched else tuple(leaf.shape)
    return np.zeros((0, *(size or 0 for size in shape)), dtype)


def _is_batched(dataset, where, rank):
    shapes = [tuple(leaf.shape) for _, leaf in leaves(dataset.element_spec)]
    if rank is not None:
        return len(shapes[0]) == rank + 1
    if any(not shape for shape in shapes) or len({shape[0] for shape in shapes}) > 1:
        return False
    if shapes[0][0] is None or _was_batched(dataset):
        return True
    raise ValueError(
        f"Expected the dataset of {where} to show whether its elements are examples or batches. "
        f"Received: components of shapes {shapes}, which may be either. Batch it with batch(...), "
        "or pass `spec` to from_function."
    )


def _was_batched(dataset):
    """Whether the last step of its making that groups or splits elements is one that groups."""
    while dataset is not None:
        name = type(dataset).__name__
        if "Unbatch" in name:
            return False
        if "Batch" in name:
            return True
        dataset = getattr(dataset, "_input_dataset", None)
    return False
