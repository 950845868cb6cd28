"""Stages that send few entries of each update: the largest, random, or large enough ones."""

import math

import tensorflow as tf

from tffed import random, tree
from tffed.aggregation.stage import Coded, Stage, travels
from tffed.arguments import integer, positive, real
from tffed.compression.selection import distinct, flat, largest, place, unflat, where
from tffed.wire import Indices, Trimmed


def top_k(k, *, per_tensor=False) -> Stage:
    """Sends the k entries of largest magnitude, and where they are.

    All tensors count as one vector x of n entries; of equal magnitudes the first are sent. Biased,
    a contraction: ‖x - C(x)‖² <= (1 - k/n) ‖x‖². With `error_feedback` around it nothing is lost
    for good. Hands on the values, float32 `[k]` in order of position, so `quantize` may follow; the
    positions travel beside them, compressed.

    A NaN counts as the largest, so it is sent and the client left out. (Aji and Heafield 2017;
    Stich et al. 2018.)

    Args:
        k: How many entries: an integer, or a share in (0, 1) of n, rounded up.
        per_tensor: Whether each tensor sends this share of its own entries (k/n for an integer),
            rounded up.

    Raises:
        ValueError: `k` is neither; or, once the model is known, more than n.
    """
    k, count = _count(k)

    def counts(sizes):
        if k < 1:
            return [count(size) for size in sizes]
        return [-(-size * count(sum(sizes)) // sum(sizes)) for size in sizes]

    def encode(shared, client_state, value, seed):
        del shared, seed
        if per_tensor:
            parts = [flat(leaf) for leaf in tree.leaves(value)]
        else:
            parts = [flat(value)]
        sizes = [part.shape[0] for part in parts]
        starts = [sum(sizes[:k]) for k in range(len(sizes))]
        each = zip(parts, counts(sizes), starts, strict=True)
        found = [(*largest(part, k), start) for part, k, start in each if k]
        values = tf.concat([values for values, _, _ in found], 0)
        places = tf.concat([at + start for _, at, start in found], 0)
        return Coded(values, _indices(places, sum(sizes))), client_state, {}

    def decode(shared, payload, like):
        del shared
        return unflat(place(payload.value, payload.side["indices"], tree.size(like)), like)

    def passes(like):
        sizes = [tree.size(leaf) for leaf in tree.leaves(like)]
        return _values(sum(counts(sizes if per_tensor else [sum(sizes)])))

    return Stage(
        encode=encode,
        decode=decode,
        bound=lambda bound: bound,
        passes=passes,
        wire=_wire,
        name=f"top_k({k}{', per_tensor' if per_tensor else ''})",
    )


def random_k(k, *, unbiased=True) -> Stage:
    """Sends k entries at random places: C(x) = (n/k) x on them, 0 elsewhere.

    All tensors count as one vector x of n entries; the places are drawn without replacement, each
    with probability k/n, for each client and round anew. Unbiased, E ‖x - C(x)‖² = (n/k - 1) ‖x‖²;
    without the factor n/k a contraction in the mean, E ‖x - C(x)‖² = (1 - k/n) ‖x‖², as
    `error_feedback` demands it. Only a seed travels beside the values, from which the server draws
    the places again. Hands on the values, float32 `[k]`. (Wangni et al. 2018; Konečný et al. 2016.)

    Args:
        k: How many entries: an integer, or a share in (0, 1) of n, rounded up.
        unbiased: Whether to scale by n/k.

    Raises:
        ValueError: `k` is neither; or, once the model is known, more than n.
    """
    k, count = _count(k)

    def encode(shared, client_state, value, seed):
        del shared
        vector, seed = flat(value), random.public(seed)
        size = vector.shape[0]
        kept = tf.gather(vector, distinct(count(size), size, seed) - 1)
        if unbiased:
            kept *= size / count(size)
        # What is not finite must not pass unseen because it was not drawn.
        kept = tf.where(tree.all_finite(vector), kept, float("nan"))
        return Coded(kept, {"seed": seed}), client_state, {}

    def decode(shared, payload, like):
        del shared
        size = tree.size(like)
        places = distinct(count(size), size, payload.side["seed"])
        return unflat(place(payload.value, places, size), like)

    return Stage(
        encode=encode,
        decode=decode,
        bound=lambda bound: None if unbiased else bound,
        passes=lambda like: _values(count(tree.size(like))),
        wire=travels(),
        name=f"random_k({k}{'' if unbiased else ', biased'})",
        # With k > n / 2 it is a contraction too, but not if what comes after it has errors as well.
        expands=lambda like: unbiased and count(tree.size(like)) < tree.size(like),
    )


def threshold(tau) -> Stage:
    """Sends the entries with |x| >= tau, and where they are.

    How many that are depends on the update, and so does the message's length. Biased; no entry is
    off by tau or more. Reports `kept`, the mean share of entries that were sent. Leaves nothing to
    the next stage. A NaN is sent, and the client left out. (Strom 2015.)

    Args:
        tau: The smallest magnitude that is sent, positive.

    Raises:
        ValueError: `tau` is not positive and finite.
    """
    tau = positive("tau", tau)

    def encode(shared, client_state, value, seed):
        del shared, seed
        vector = flat(value)
        mask = (tf.abs(vector) >= tau) | tf.math.is_nan(vector)
        values, places = where(mask, vector)
        side = {"values": values} | _indices(places, vector.shape[0])
        return Coded((), side), client_state, {"kept": tf.reduce_mean(tf.cast(mask, tf.float32))}

    def decode(shared, payload, like):
        del shared
        side = payload.side
        return unflat(place(side["values"], side["indices"], tree.size(like)), like)

    def finish(state, total, stats, clients, seed):
        del seed
        return total, state, {"kept": tf.math.divide_no_nan(stats["kept"], clients)}

    return Stage(
        encode=encode,
        decode=decode,
        finish=finish,
        bound=lambda bound: bound,
        passes=lambda like: (),
        wire=_wire,
        ends=True,
        name=f"threshold({tau})",
    )


def _indices(places, size):
    # The server must know the largest possible place; the empty tensor tells it without a byte.
    return {"indices": places, "places": tf.zeros([size, 0], tf.uint8)}


def _wire(side):
    most = side["places"].shape[0]
    return travels(indices=Indices(most), values=Trimmed())(side)


def _values(count):
    return tf.TensorSpec([count], tf.float32)


def _count(k):
    """`(k, (n) -> how many of n entries)`; a ValueError unless `k` is a number or a share."""
    whole = (integer(k) or 0) >= 1
    if not whole and not 0 < real(k) < 1:
        raise ValueError(
            f"`k` must be a positive integer, or a share in (0, 1). Received: k={k!r}. All entries "
            "travel without this stage."
        )
    k = integer(k) if whole else real(k)

    def count(size):
        if not whole:
            # 0.07 · 100 is 7.000000000000001 in floats, which means 7.
            return math.ceil(k * size - 1e-9 * size)
        if k > size:
            raise ValueError(
                f"`k` must not exceed the number of entries, {size}. Received: k={k}. Give a share."
            )
        return k

    return k, count
