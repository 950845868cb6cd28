"""What the clients' arrays have in common: their names, shapes and dtypes."""

import dataclasses

import numpy as np

from tffed.data.dtypes import cast, common
from tffed.data.nest import leaves, map_leaves

_PARTS = ("x", "y", "sample_weight")


@dataclasses.dataclass(frozen=True)
class LeafSpec:
    """Shape of one example and dtype of one leaf of the data.

    Attributes:
        shape: With None where examples differ in length and are padded.
        dtype: `object` for strings.
    """

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


def spec_of(parts):
    """Returns the nest of `LeafSpec` of checked arrays."""
    return map_leaves(lambda leaf: LeafSpec(leaf.shape[1:], leaf.dtype), parts)


def tensor_specs(spec):
    """Returns the nest of `tf.TensorSpec` with leading dimension None."""
    import tensorflow as tf

    return map_leaves(lambda leaf: tf.TensorSpec((None, *leaf.shape), leaf.dtype), spec)


def is_open(spec) -> bool:
    """Whether lengths differ somewhere, and are padded."""
    return any(None in leaf.shape for _, leaf in named_leaves(spec))


def opened(spec, got):
    """Returns the spec with None for the dimensions in which a client's arrays differ from it."""
    if [name for name, _ in named_leaves(spec)] != [name for name, _ in named_leaves(got)]:
        return spec

    def leaf(want, new):
        if len(want.shape) != len(new.shape):
            return want
        pairs = zip(want.shape, new.shape, strict=True)
        return LeafSpec(tuple(a if a == b else None for a, b in pairs), want.dtype)

    return map_leaves(leaf, spec, got)


def no_examples(leaf: LeafSpec):
    """Returns an array without examples of such a leaf."""
    return np.zeros((0, *(size or 0 for size in leaf.shape)), leaf.dtype)


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
            f"Received: shape={shape}. Give tf.TensorSpec((None, ...), dtype) and pad examples to "
            "one shape, or leave the spec out where lengths differ."
        )
    return LeafSpec(shape[1:], np.dtype(np.float32) if dtype == np.float64 else dtype)


def merged(spec, got, where: str):
    """Returns the spec of a population of which one more client was read.

    Args:
        spec: Nest of `LeafSpec` of the population so far.
        got: That of the client.
        where: Who the client is, for messages.

    Raises:
        ValueError: Another structure or shape, or strings beside numbers.
    """
    check_structure(spec, got, where)
    names = iter([name for name, _ in named_leaves(spec)])
    return map_leaves(lambda want, new: _merged(want, new, next(names), where), spec, got)


def check_structure(spec, got, where):
    """Raises a `ValueError` unless a client has the arrays of the population."""
    want, have = ([name for name, _ in named_leaves(nest)] for nest in (spec, got))
    if want != have:
        raise ValueError(
            f"Expected {where} to hold the arrays {', '.join(want)}, as the other clients do. "
            f"Received: {', '.join(have)}. Give every client the same arrays."
        )


def _merged(want, new, name, where):
    dtype = common(want.dtype, new.dtype)
    if dtype is None or not fits(want.shape, new.shape):
        raise ValueError(
            f"Expected {name} of {where} to have {want} per example, as the other "
            f"clients have. Received: {new}. Give every client one shape and dtype; lengths may "
            "differ where Federated.fit finds that the model ignores padding (see docs/data.md)."
        )
    return LeafSpec(want.shape, dtype)


def fits(shape, other):
    """Whether a shape without unknown dimensions is one of those that `shape` stands for."""
    return len(shape) == len(other) and all(
        a is None or a == b for a, b in zip(shape, other, strict=True)
    )


def conformed(parts, spec, where: str):
    """Returns a client's arrays in the dtypes of the population.

    Args:
        parts: The arrays.
        spec: The population's nest of `LeafSpec`, which `merged` gave.
        where: Who the client is, for messages.

    Raises:
        ValueError: A number would become another one, or no examples are of another shape.
    """
    names = iter([name for name, _ in named_leaves(parts)])

    def conform(leaf, want):
        name = next(names)
        if len(leaf):
            return cast(leaf, want.dtype, name, where)
        shape = leaf.shape[1:]  # np.array([]) has none
        known = [b and a for a, b in zip(want.shape, shape, strict=False)]
        if shape and not fits(known, shape):
            raise ValueError(
                f"Expected {name} of {where} to have {want} per example, as the other clients "
                f"have. Received: no examples, of shape {shape}. Give every client one shape."
            )
        return no_examples(want)

    return map_leaves(conform, parts, spec)
