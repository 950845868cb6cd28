"""Matrices as products of two thin ones."""

import math

import tensorflow as tf

from tffed import random, tree
from tffed.aggregation.stage import Stage
from tffed.arguments import positive_integer
from tffed.compression.layout import at_unit_scale

# Of a column's norm, what is left of it after projections if it depended on the others.
_ROUNDING = 1e-6


def power_sgd(rank, *, min_size=1024) -> Stage:
    """Sends each matrix M [a, b] as P [a, rank] and Q [b, rank], decoded to P Qᵀ.

    One step of power iteration, from the Q of the client's last round (Vogels et al. 2019):

        P ← orthogonalise(M Q),   Q ← Mᵀ P,   M ≈ P Qᵀ

    Q is kept in the client store, so that the steps of several rounds add up to the best
    approximation of what the rounds have in common. A tensor counts as a matrix of its last axis
    against all others; vectors, tensors below `min_size`, and those for which (a + b) rank is not
    less than a b are handed on as they are. Hands on all P, all Q and the rest, so `cast` or
    `quantize` may follow; each column of P and the one of Q share the length of their product, so
    that entries of both are alike.

    Biased: use `error_feedback` around it. A Q that says little of M is not kept: where P Qᵀ holds
    less than half the share rank / b of ‖M‖², which a random Q takes on average at the least, the
    next round begins from a random one, and so does a column that took nothing. So for each matrix,
    of any two rounds one is a contraction in the mean, E‖M - P Qᵀ‖² <= (1 - rank / 2b) ‖M‖², and
    the other does not lengthen the residual: no direction stays unsent.

    As published, all workers agree on P before they compute Q. Here each client sends factors of
    its own update: one message a round, and any cohort.

    Args:
        rank: Columns of P and Q.
        min_size: The least number of entries of a tensor that is factorised.

    Raises:
        ValueError: `rank` or `min_size` is no positive integer.
    """
    rank = positive_integer("rank", rank)
    min_size = positive_integer("min_size", min_size)

    def shrinks(leaf):
        if leaf.shape.rank < 2 or math.prod(leaf.shape) < min_size:
            return False
        return sum(_matrix(leaf.shape)) * rank < math.prod(leaf.shape)

    def split(nest):
        leaves = tree.leaves(nest)
        return [x for x in leaves if shrinks(x)], [x for x in leaves if not shrinks(x)]

    def client_init(like):
        large, _ = split(like)
        return tuple(
            random.normal([leaf.shape[-1], rank], random.fold_in(random.seed(0), k))
            for k, leaf in enumerate(large)
        )

    def encode(shared, client_state, value, seed):
        del shared
        large, rest = split(value)
        left, right, kept = [], [], []
        for k, (leaf, start) in enumerate(zip(large, client_state, strict=True)):
            matrix = tf.reshape(tf.cast(leaf, tf.float32), _matrix(leaf.shape))
            p, q, own = _factors(matrix, start, random.fold_in(seed, k))
            left.append(p)
            right.append(q)
            kept.append(own)
        return (tuple(left), tuple(right), tuple(rest)), tuple(kept), {}

    def decode(shared, payload, like):
        del shared
        left, right, rest = payload
        factors, others, leaves = zip(left, right, strict=True), iter(rest), []
        for leaf in tree.leaves(like):
            if shrinks(leaf):
                product = tf.matmul(*next(factors), transpose_b=True)
                leaves.append(tf.cast(tf.reshape(product, leaf.shape), leaf.dtype))
            else:
                leaves.append(next(others))
        return tf.nest.pack_sequence_as(like, leaves)

    def passes(like):
        large, rest = split(like)
        sides = zip(*(_matrix(leaf.shape) for leaf in large), strict=True) if large else ((), ())
        specs = [tuple(tf.TensorSpec([n, rank], tf.float32) for n in side) for side in sides]
        return (*specs, tuple(tree.spec(rest)))

    return Stage(
        client_init=client_init,
        encode=encode,
        decode=decode,
        passes=passes,
        name=f"power_sgd({rank}, min_size={min_size})",
        tracks=True,
        mixes=2,
    )


def _matrix(shape):
    return math.prod(shape[:-1]), shape[-1]


def _factors(matrix, start, seed):
    """`(P, Q, the start of the next round)` of one step of power iteration."""
    matrix, unit = at_unit_scale(matrix, (0, 1))
    p = _orthogonalise(tf.matmul(matrix, start))
    q = tf.matmul(matrix, p, transpose_a=True)
    kept = _next_start(matrix, start, q, seed)
    # Each entry of P and of Q is then about √‖q‖ / (a b)^¼.
    rows, columns = matrix.shape
    length = tf.sqrt(tf.norm(q, axis=0) * (rows / columns) ** 0.5)
    return p * length * tf.sqrt(unit), tf.math.divide_no_nan(q, length) * tf.sqrt(unit), kept


def _next_start(matrix, start, q, seed):
    columns, rank = start.shape
    lengths = tf.norm(q, axis=0)
    taken, all_there_is = tf.reduce_sum(lengths**2), tf.reduce_sum(matrix**2)
    poor = (lengths == 0) | (taken < rank / columns / 2 * all_there_is)
    found = tf.where(poor, random.normal([columns, rank], seed), q / lengths)
    return tf.where(all_there_is > 0, found, start)  # of zeros there is nothing to learn


def _orthogonalise(matrix):
    """Orthonormal columns that span those of the matrix; zeros for one that adds nothing.

    Gram and Schmidt's process, each column twice, which leaves it orthogonal up to rounding.
    """
    done = []
    for column in tf.unstack(matrix, axis=1):
        norm = tf.norm(column)
        for _ in range(2):
            for other in done:
                column -= tf.reduce_sum(other * column) * other
        left = tf.norm(column)
        # A norm that overflows must not become zeros: of a NaN the client is left out.
        factor = tf.where(left > _ROUNDING * norm, 1.0 / left, 0.0)
        done.append(tf.where(tf.math.is_finite(norm), factor, float("nan")) * column)
    return tf.stack(done, axis=1)
