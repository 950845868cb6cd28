"""The compiled parts of a round: a chunk of clients, and the server's step."""

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from tffed import random, tree
from tffed.engines.cohort import MOST_CLIENTS
from tffed.local import LocalData


class Program(NamedTuple):
    """What an algorithm compiles to, for one kind of data.

    Attributes:
        chunk: `(bc, arrays, rows, sizes, clients, keys, states, seed) -> (reports, new states)`.
        finish: `(state, total, seed) -> (state, metrics)`.
        report: The `tf.TensorSpec`s of one client's report.
        bytes_up: Bytes of one client's message.
        bytes_down: Bytes of the broadcast to one client.
        capacity: Rows that each client is padded to, or None: rows come one client after the other.
    """

    chunk: Callable
    finish: Callable
    report: Any
    bytes_up: int
    bytes_down: int
    capacity: int | None


def trace(algorithm, state, bc, client_state, arrays, capacity=None) -> Program:
    """Traces an algorithm for clients with such data, each part once.

    Args:
        algorithm: The `Algorithm`.
        state: A `ServerState`.
        bc: A broadcast.
        client_state: One client's state.
        arrays: The `tf.TensorSpec`s of the clients' arrays.
        capacity: The most examples of a client, to compile the chunk with XLA, which needs static
            shapes; None: the chunk is a graph, for clients of any size.
    """
    # Not inlined: the graph optimiser would join multiplications across the wire, and the bits
    # would differ from those of a message that really travelled. (XLA does inline it.)
    report = tf.function(
        algorithm.report, autograph=False, experimental_attributes={"_noinline": True}
    )
    sent = []

    @tf.function(autograph=False)
    def one(bc, arrays, rows, count, key, state, seed):
        seed = random.client_seed(seed, bc.round, key)
        data = LocalData(arrays, rows, None if capacity is None else count)
        message, state = algorithm.client(bc, state, data, seed)
        sent.append(tree.nbytes(message))
        return report(bc, message), state

    number, pair = tf.TensorSpec([], tf.int32), tf.TensorSpec([2], tf.int32)
    rows = tf.TensorSpec([capacity], tf.int32)
    like, _ = one.get_concrete_function(
        tree.spec(bc), arrays, rows, number, pair, tree.spec(client_state), pair
    ).structured_outputs
    like = tree.spec(like)
    most = None if capacity is None else MOST_CLIENTS
    chunk = tf.function(
        _chunk(one, like, algorithm.collect, padded=capacity is not None),
        autograph=False,
        jit_compile=capacity is not None,
    ).get_concrete_function(
        tree.spec(bc),
        arrays,
        tf.TensorSpec([None] if capacity is None else [most, capacity], tf.int32),
        tf.TensorSpec([most], tf.int32),
        number,
        tf.TensorSpec([most, 2], tf.int32),
        _stacked(client_state, most),
        pair,
    )
    finish = tf.function(algorithm.finish, autograph=False).get_concrete_function(
        tree.spec(state), _stacked(like) if algorithm.collect else like, pair
    )
    return Program(chunk, finish, like, sent[0], tree.nbytes(tree.spec(bc)), capacity)


def _stacked(nest, count=None):
    return tree.map(lambda s: tf.TensorSpec([count, *s.shape], s.dtype), nest)


def _chunk(one, like, collect, padded):
    """The function that trains the clients of a chunk one after the other.

    Reports are added, or stacked if `collect`. Rows are `[clients, capacity]` if `padded`, else
    those of one client after the other.
    """

    def chunk(bc, arrays, rows, sizes, clients, keys, states, seed):
        count = sizes.shape[0] or tf.shape(sizes)[0]
        starts = tf.cumsum(sizes, exclusive=True)

        def body(k, total, out):
            state = tree.map(lambda leaf: leaf[k], states)
            mine = rows[k] if padded else rows[starts[k] : starts[k] + sizes[k]]
            report, new = one(bc, arrays, mine, sizes[k], keys[k], state, seed)
            total = write(total, k, report) if collect else tree.add(total, report)
            return k + 1, total, write(out, k, new)

        def write(arrays, k, nest):
            return [a.write(k, leaf) for a, leaf in zip(arrays, tf.nest.flatten(nest), strict=True)]

        def empty(leaf, shape):
            return tf.TensorArray(leaf.dtype, count, element_shape=shape)

        out = [empty(x, x.shape[1:]) for x in tf.nest.flatten(states)]
        total = [empty(x, x.shape) for x in tf.nest.flatten(like)] if collect else like
        _, total, out = tf.while_loop(
            lambda k, *_: k < clients,
            body,
            (tf.constant(0), total if collect else tree.zeros_like(total), out),
            parallel_iterations=1,
        )
        if collect:
            total = tf.nest.pack_sequence_as(like, [a.stack() for a in total])
        return total, tf.nest.pack_sequence_as(states, [a.stack() for a in out])

    return chunk
