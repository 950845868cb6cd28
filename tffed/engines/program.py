"""The compiled parts of a round: a chunk of clients, and the server's step."""

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from tffed import random, tree
from tffed.algorithm import server_seed
from tffed.engines.cohort import MOST_CLIENTS
from tffed.local import LocalData
from tffed.wire import Format


class Program(NamedTuple):
    """What an algorithm compiles to, for one kind of data.

    Reports leave a chunk packed, one vector a dtype (see `tree.pack`), so that adding two of them
    is one operation, whatever the number of layers.

    Attributes:
        chunk: `(bc, arrays, rows, sizes, clients, keys, states, seed) -> (reports, (new states,
            measures))`; the measures are those by which `up` knows the length of each message and,
            if the algorithm has a `send`, `down` that of what each client received.
        finish: `(state, reports, seed) -> (state, metrics)`.
        nothing: The packed reports of no clients.
        up: The `Format` of a client's message.
        down: The `Format` of what a client receives.
        clients: With a capacity, how many clients `chunk` takes, some of which may be padding.
        capacity: Rows that each client is padded to, or None: rows come one client after the other.
        remote: Whether `chunk` runs in another process, which holds no arrays of its own.
    """

    chunk: Callable
    finish: Callable
    nothing: tuple
    up: Format
    down: Format
    clients: int | None
    capacity: int | None
    remote: bool = False


def trace(algorithm, state, bc, client_state, arrays, capacity=None, batched=None) -> Program:
    """Traces an algorithm for clients with such data, each part once.

    Args:
        algorithm: The `Algorithm`.
        state: A `ServerState`, or its specs.
        bc: The specs of a broadcast.
        client_state: The specs of one client's state.
        arrays: The `tf.TensorSpec`s of the clients' arrays.
        capacity: The most examples of a client, to compile the chunk with XLA, which needs static
            shapes; None: the chunk is a graph, for clients of any size.
        batched: With a capacity, the number of clients to train side by side; None: a chunk has
            up to eight, which take turns.

    Raises:
        ValueError: `batched`, and the model has a recurrent layer, or frozen weights.
    """
    # Not inlined: the graph optimiser would join multiplications across the wire, and the bits
    # would differ from those of a message that really travelled. (XLA does inline it.)
    report = tf.function(
        algorithm.report, autograph=False, experimental_attributes={"_noinline": True}
    )
    up, down = [], []

    def measured(formats, sent, codecs):
        formats.append(Format(algorithm.name, tree.spec(sent), codecs))
        return formats[-1].measure(sent)

    @tf.function(autograph=False)
    def one(bc, arrays, rows, count, key, state, seed, most):
        seed = random.client_seed(seed, bc.round, key)
        data = LocalData(arrays, rows, None if capacity is None else count, most)
        if algorithm.send is not None:
            bc = algorithm.send(bc, seed)
        received = measured(down, *algorithm.sent_down(bc))
        message, state = algorithm.client(bc, state, data, seed)
        lengths = measured(up, *algorithm.sent_up(message)), received if algorithm.send else ()
        return report(bc, message), (state, lengths)

    number, pair = tf.TensorSpec([], tf.int32), tf.TensorSpec([2], tf.int32)
    rows = tf.TensorSpec([capacity], tf.int32)
    traced = one.get_concrete_function(
        bc, arrays, rows, number, pair, client_state, pair, number if batched else None
    )
    if batched:
        _check_side_by_side(traced)
    like, kept = tree.spec(traced.structured_outputs)
    collect = algorithm.collect
    most = None if capacity is None else batched or MOST_CLIENTS
    chunk = _side_by_side(one, collect) if batched else _in_turns(one, like, kept, collect, most)
    chunk = tf.function(
        chunk,
        autograph=False,
        jit_compile=capacity is not None,
    ).get_concrete_function(
        bc,
        arrays,
        tf.TensorSpec([None] if capacity is None else [most, capacity], tf.int32),
        tf.TensorSpec([most], tf.int32),
        number,
        tf.TensorSpec([most, 2], tf.int32),
        _stacked(client_state, most),
        pair,
    )
    nothing = tree.pack(tree.zeros_like(_stacked(like, 0) if collect else like), collect)

    @tf.function(autograph=False)
    def finish(state, packed, seed):
        total = tree.unpack(packed, like, collect)
        return algorithm.finish(state, total, server_seed(seed, state.round))

    vectors = tree.map(lambda v: tf.TensorSpec([None] * collect + v.shape[-1:], v.dtype), nothing)
    finish = finish.get_concrete_function(tree.spec(state), vectors, pair)
    return Program(chunk, finish, nothing, up[0], down[0], most, capacity)


def _stacked(nest, count=None):
    return tree.map(lambda s: tf.TensorSpec([count, *s.shape], s.dtype), nest)


def _check_side_by_side(traced):
    """Checks that `vectorized_map` makes something of a client that XLA can compile."""
    graph = traced.graph.as_graph_def()
    nodes = [*graph.node, *(node for f in graph.library.function for node in f.node_def)]
    why = None
    if any(node.op == "TensorListReserve" for node in nodes):
        why = "recurrent layers"
    elif any(tensor.dtype == tf.resource for tensor in traced.captured_inputs):
        why = "weights that training leaves as they are (frozen layers, adapters)"
    if why:
        raise ValueError(
            f"Clients of a model with {why} cannot train side by side. Received: batched=True "
            "(the default where there is a GPU). Give batched=False."
        )


def _side_by_side(one, collect):
    """The function that trains the clients of a chunk in common steps; as `_in_turns`, padded."""

    def chunk(bc, arrays, rows, sizes, clients, keys, states, seed):
        most = tf.reduce_max(sizes)
        reports, new = tf.vectorized_map(
            lambda mine: one(bc, arrays, *mine, seed, most), (rows, sizes, keys, states)
        )
        if not collect:
            there = tf.range(sizes.shape[0]) < clients
            reports = tree.map(lambda leaf: tf.reduce_sum(_where(there, leaf), 0), reports)
        return tree.pack(reports, batched=collect), new

    return chunk


def _where(there, leaf):
    """The leaf with zeros in the rows that are not there."""
    return tf.where(tf.reshape(there, [-1] + [1] * (leaf.shape.rank - 1)), leaf, 0)


def _in_turns(one, like, kept, collect, padded):
    """The function that trains the clients of a chunk one after the other.

    Reports are added, or stacked if `collect`, and packed; what is `kept` is stacked. Rows are
    `[clients, capacity]` if `padded`, else those of one client after the other.
    """

    def chunk(bc, arrays, rows, sizes, clients, keys, states, seed):
        count = sizes.shape[0] or tf.shape(sizes)[0]
        starts = tf.cumsum(sizes, exclusive=True)

        def body(k, total, out):
            state = tree.map(lambda leaf: leaf[k], states)
            mine = rows[k] if padded else rows[starts[k] : starts[k] + sizes[k]]
            report, new = one(bc, arrays, mine, sizes[k], keys[k], state, seed, None)
            total = write(total, k, report) if collect else tree.add(total, report)
            return k + 1, total, write(out, k, new)

        def write(arrays, k, nest):
            return [a.write(k, leaf) for a, leaf in zip(arrays, tf.nest.flatten(nest), strict=True)]

        def empty(leaf, shape):
            return tf.TensorArray(leaf.dtype, count, element_shape=shape)

        out = [empty(x, x.shape) for x in tf.nest.flatten(kept)]
        total = [empty(x, x.shape) for x in tf.nest.flatten(like)] if collect else like
        _, total, out = tf.while_loop(
            lambda k, *_: k < clients,
            body,
            (tf.constant(0), total if collect else tree.zeros_like(total), out),
            parallel_iterations=1,
        )
        if collect:
            total = [a.stack() for a in total]
        packed = tree.pack(total, batched=collect)
        return packed, tf.nest.pack_sequence_as(kept, [a.stack() for a in out])

    return chunk
