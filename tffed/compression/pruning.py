"""Magnitude pruning while training (Zhu and Gupta 2017, arXiv:1710.01878)."""

import io
import math
import zlib
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tffed import tree
from tffed.aggregation.submodel import Submodel
from tffed.arguments import integer_from, positive, positive_integer, real
from tffed.wire import Bits, Raw, Trimmed


class _Plan(NamedTuple):
    """What clients know of the mask, for the kernels laid out as one vector of n entries.

    Attributes:
        mask: uint8 [n], 1 where a weight survives: this travels. The rest follows from it.
        order: int32 [n], the positions of the survivors, then those of the others.
        rank: int32 [n], the inverse of `order`.
    """

    mask: Any
    order: Any
    rank: Any


def prune(
    final_sparsity, begin, end, every=1, *, power=3, initial_sparsity=0.0, per_tensor=False
) -> Submodel:
    """Sets the smallest weights to zero, more and more of them; only the others travel.

    After round t = begin, begin + every, …, end, the share of weights that are zero becomes

        s_t = s_f + (s_i - s_f) (1 - (t - begin) / (end - begin))^power

    of the kernels (tensors of rank 2 or more) together, or of each: the round(s_t · n) smallest in
    magnitude, those that were zero before first, at ties the first ones. What is pruned stays so:
    the server and the clients keep it at zero, whatever their optimizers do. Biases and other
    vectors are never pruned. Reports `sparsity`, the share of the kernels after the round.

    Up travel the surviving entries of the update, as one vector; down those of the weights, and the
    mask, a bit for each entry, because a client may have seen none before. A stage after this one
    gets the vector filled up with zeros to n entries, and if it makes codes of it, these all
    travel: choose one that compresses zeros, or keeps few entries.

    Args:
        final_sparsity: s_f, in (0, 1).
        begin: Rounds done when pruning begins; 0: before the first.
        end: Rounds done when s_f is reached: train a few more.
        every: Rounds from one pruning to the next; divides `end - begin`.
        power: The exponent, 3 in the paper: fast at first.
        initial_sparsity: s_i, in [0, final_sparsity].
        per_tensor: Whether each kernel gets the same sparsity, as in the paper; else the smallest
            weights of all go.

    Returns:
        A `Submodel`: the first part of a `chain`.

    Raises:
        ValueError: An argument is outside its range.
    """
    begin, end = integer_from(0, "begin", begin), integer_from(0, "end", end)
    every, power = positive_integer("every", every), positive("power", power)
    final_sparsity, initial_sparsity = real(final_sparsity), real(initial_sparsity)
    times = _check(final_sparsity, begin, end, every, initial_sparsity)
    done = (np.arange(times + 1) / times) if times else np.ones(1)
    schedule = final_sparsity + (initial_sparsity - final_sparsity) * (1 - done) ** power

    def pruned(like):
        """int32 [step, tensor or 1]: how many entries are zero after each pruning; first: none."""
        sizes = [math.prod(k.shape) for k in _kernels(like)]
        sizes = sizes if per_tensor else [sum(sizes)]
        table = np.floor(np.outer(np.concatenate([[0.0], schedule]), sizes) + 0.5)
        return table.astype(np.int32), sizes

    def masked(mask, weights, step):
        """The mask that prunes more, by the table's row `step`."""
        table, sizes = pruned(weights)
        counts = tf.gather(tf.constant(table), step)
        keys = tf.where(mask > 0, tf.abs(_vector(weights)), -1.0)
        found = []
        parts = zip(
            sizes, tf.unstack(counts), tf.split(keys, sizes), tf.split(mask, sizes), strict=True
        )
        for size, count, key, old in parts:
            order = tf.argsort(key, stable=True)
            place = tf.scatter_nd(order[:, None], tf.range(size), [size])
            found.append(tf.where(place < count, tf.zeros_like(old), old))
        return tf.concat(found, 0)

    def init(weights):
        _check_kernels(weights)
        mask = tf.ones([sum(math.prod(k.shape) for k in _kernels(weights))], tf.uint8)
        return masked(mask, weights, 1) if begin == 0 else mask

    def advance(mask, weights, rounds):
        step = tf.clip_by_value((rounds - begin) // every, 0, times) + 1
        due = (rounds >= begin) & (rounds <= end) & ((rounds - begin) % every == 0)
        mask = tf.cond(due, lambda: masked(mask, weights, step), lambda: mask)
        share = 1.0 - tf.reduce_mean(tf.cast(mask, tf.float32))
        return (
            mask,
            _put_vector(tf.where(mask > 0, _vector(weights), 0), weights),
            {"sparsity": share},
        )

    return Submodel(
        init=init,
        shared=lambda mask: mask,
        wire=lambda mask: Bits(1),
        known=_plan,
        told=lambda plan: plan.mask,
        choose=lambda plan, seed: plan,
        like=_like,
        take=_take,
        put=_put,
        codecs=lambda value: (Trimmed(), *(Raw() for _ in value[1:])),
        advance=advance,
        name=f"prune({final_sparsity}, {begin}, {end}, {every}, {power:g}, {initial_sparsity}, "
        f"{per_tensor})",
    )


def sparsity(model):
    """How sparse a Keras model's kernels are, and what its weights weigh compressed.

    Args:
        model: A built Keras model, in training or loaded.

    Returns:
        A dictionary: `zeros`, the share of exact zeros in all weights of rank 2 or more; `tensors`,
        the same of each by its path; `bytes` of all weights, and `compressed`, their size as a zlib
        archive (level 9).
    """
    weights = [(w.path, np.asarray(w.value)) for w in model.weights]
    kernels = [(path, w) for path, w in weights if w.ndim >= 2]
    total = sum(w.size for _, w in kernels)
    content = io.BytesIO()
    for _, w in weights:
        content.write(w.tobytes())
    return {
        "zeros": sum(int((w == 0).sum()) for _, w in kernels) / max(total, 1),
        "tensors": {path: float((w == 0).mean()) for path, w in kernels},
        "bytes": content.tell(),
        "compressed": len(zlib.compress(content.getvalue(), 9)),
    }


def _check(final, begin, end, every, initial):
    """The number of prunings after the first."""
    if end < begin or (end - begin) % every:
        raise ValueError(
            "Expected `end` to be `begin` plus a multiple of `every`. Received: "
            f"begin={begin}, end={end}, every={every}"
        )
    if not 0 <= initial <= final or not 0 < final < 1:
        raise ValueError(
            "Expected 0 <= initial_sparsity <= final_sparsity < 1, and 0 < final_sparsity. "
            f"Received: initial_sparsity={initial}, final_sparsity={final}"
        )
    return (end - begin) // every


def _check_kernels(weights):
    dtypes = {w.dtype for w in _kernels(weights)}
    if len(dtypes) != 1:
        raise ValueError(
            "Expected kernels (trainable tensors of rank 2 or more) of one dtype to prune. "
            f"Received: the dtypes {sorted(d.name for d in dtypes)}. Leave prune out."
        )


def _kernels(weights):
    return [w for w in weights if len(w.shape) > 1]


def _vector(weights):
    return tf.concat([tf.reshape(w, [-1]) for w in _kernels(weights)], 0)


def _put_vector(vector, weights):
    """The weights with their kernels replaced by the entries of a vector."""
    parts = iter(tf.split(vector, [math.prod(w.shape) for w in _kernels(weights)]))
    return tuple(tf.reshape(next(parts), w.shape) if len(w.shape) > 1 else w for w in weights)


def _plan(mask):
    kept = mask > 0
    order = tf.concat([tf.where(kept)[:, 0], tf.where(~kept)[:, 0]], 0)
    order = tf.ensure_shape(tf.cast(order, tf.int32), mask.shape)
    rank = tf.scatter_nd(order[:, None], tf.range(mask.shape[0]), mask.shape)
    return _Plan(mask, order, rank)


def _like(weights):
    size = sum(math.prod(w.shape) for w in _kernels(weights))
    others = [tree.spec(w) for w in weights if len(w.shape) < 2]
    return (tf.TensorSpec([size], _kernels(weights)[0].dtype), *others)


def _take(plan, weights):
    vector = tf.gather(tf.where(plan.mask > 0, _vector(weights), 0), plan.order)
    return (vector, *(w for w in weights if len(w.shape) < 2))


def _put(plan, value, like):
    vector = tf.where(plan.mask > 0, tf.gather(value[0], plan.rank), 0)
    others = iter(value[1:])
    blank = tuple(w if len(w.shape) > 1 else next(others) for w in like)
    return _put_vector(vector, blank)
