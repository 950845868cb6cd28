"""The randomised Hadamard transform, after which entries are alike."""

import math

import numpy as np
import tensorflow as tf

from tffed import random, tree
from tffed.aggregation.stage import Coded, Stage
from tffed.arguments import integer
from tffed.compression.layout import as_rows, from_rows, fused, packed_as, shapes_of

BLOCK = 4096


def rotate(block=BLOCK) -> Stage:
    """Rotates blocks of entries at random: x → H D x / √d, with a stage such as `quantize` after.

    Each block is d consecutive entries of all tensors laid out as one vector, filled up with zeros;
    D has random signs and H is Hadamard's matrix, of ±1 (Ailon & Chazelle 2006; Suresh et al.
    2017). Then entries of a block have the same variance, however uneven x was, and unless a few of
    them made up most of it they are close to normal: few bits do. Lengths and angles stay. Passes
    the blocks on as one tensor `[blocks, d]`, of which `quantize(block=d)` scales each; the seed of
    D travels with it.

    Args:
        block: d, a power of two; of smaller models, the power of two that holds all entries.
            The zeros that fill the last block up travel too: 0.2 % of 1.7 million entries.

    Raises:
        ValueError: `block` is no power of two from 2 to 2**16.
    """
    block = checked_block(block)

    @fused
    def turned(tensors, seed):
        return rotated(as_rows(tensors, block_for(tensors, block)), seed)

    @fused
    def turned_back(rows, seed, shapes):
        return from_rows(rotated_back(rows, seed), shapes)

    def encode(shared, client_state, value, seed):
        del shared
        seed = random.public(seed)
        return Coded(turned(tuple(tree.leaves(value)), seed), {"seed": seed}), client_state, {}

    def decode(shared, payload, like):
        del shared
        tensors = turned_back(payload.value, payload.side["seed"], shapes_of(like))
        return packed_as(like, tensors)

    return Stage(
        encode=encode,
        decode=decode,
        passes=lambda like: tf.TensorSpec(rows_shape(like, block), tf.float32),
        bound=lambda bound: bound,
        weights=True,
        name=f"rotate({block})",
        mixes=1,
    )


def checked_block(block):
    """`block` as an int, if it is a length that can be rotated.

    Raises:
        ValueError: It is not.
    """
    found = integer(block)
    if found is None or not 2 <= found <= 2**16 or found & (found - 1):
        raise ValueError(
            f"`block` must be a power of two from 2 to 2**16. Received: block={block!r}"
        )
    return found


def block_for(nest, block):
    """The entries of a block for such tensors: `block`, or the power of two that holds all."""
    return min(block, 2 ** max(1, math.ceil(math.log2(tree.size(nest)))))


def rows_shape(nest, block):
    """`[blocks, d]` for such tensors."""
    d = block_for(nest, block)
    return [-(-tree.size(nest) // d), d]


def rotated(rows, seed):
    """H D x / √d of each row x, with D from the seed."""
    return _hadamard(_flipped(rows, seed))


def rotated_back(rows, seed):
    """The rows whose `rotated` these are."""
    return _flipped(_hadamard(rows, back=True), seed)


def _flipped(rows, seed):
    signs = tf.where(random.words(tree.size(rows), seed) < 2**31, 1.0, -1.0)
    return rows * tf.reshape(signs, rows.shape)


def _hadamard(rows, back=False):
    """A Hadamard matrix of d = a b times each row: Y = (X H_b)ᵀ H_a of the row as a matrix X.

    Two products of matrices are faster than log₂ d steps over memory, and one that leaves the
    middle transposed spares a pass. So rows are in another order than in Sylvester's matrix.
    """
    d = rows.shape[1]
    b = 2 ** ((int(math.log2(d)) + 1) // 2)
    a = d // b
    if back:
        a, b = b, a
    x = tf.reshape(tf.reshape(rows, [-1, b]) @ _matrix(b), [-1, a, b])
    return tf.reshape(tf.reshape(tf.transpose(x, [0, 2, 1]), [-1, a]) @ _matrix(a), [-1, d])


def _matrix(size):
    """Sylvester's Hadamard matrix over √size; orthonormal and symmetric."""
    matrix = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return tf.constant(matrix / math.sqrt(size), tf.float32)
