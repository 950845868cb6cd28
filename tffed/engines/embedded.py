"""The embedded engine: a whole round in this process, compiled, over several lanes."""

import os
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tensorflow as tf

from tffed import random, tree
from tffed.algorithm import server_seed
from tffed.engines.cohort import chunks
from tffed.local import LocalData


class Embedded:
    """Runs rounds of one algorithm in this process.

    The cohort is cut into chunks; a lane (a thread) takes the next chunk, trains its clients one
    after the other in one compiled call, and hands back the sum of their reports. Sums are added in
    the order of the chunks, so the result has the same bits for any number of lanes. Everything is
    traced once, whatever the clients' sizes.

    Args:
        algorithm: An `Algorithm`.
        lanes: Chunks trained at a time; None: one a processor, or 1 where there is a GPU.
        check: `(arrays) -> None`, called on every client's arrays before they are trained on (once
            for a federation held in memory), to raise an error on bad data.

    Attributes:
        bytes_up: Bytes of one client's message, known after the first round.
        bytes_down: Bytes of the broadcast to one client.

    Raises:
        ValueError: `lanes` is not a positive integer.
    """

    def __init__(self, algorithm, *, lanes=None, check=None):
        if lanes is None:
            lanes = 1 if tf.config.list_logical_devices("GPU") else os.cpu_count() or 1
        if not isinstance(lanes, int) or lanes < 1:
            raise ValueError(f"`lanes` must be a positive integer. Received: lanes={lanes!r}")
        self.algorithm = algorithm
        self.lanes = lanes
        self.bytes_up = self.bytes_down = 0
        self._check = check
        self._broadcast = tf.function(algorithm.broadcast, autograph=False)
        self._client_init = tf.function(algorithm.client_init, autograph=False)
        self._add = tf.function(tree.add, autograph=False)
        self._chunk = None
        self._finish = None
        self._resident = (None, None)
        self._reading = threading.Lock()

    def run_round(self, state, clients, ids, *, seed, store):
        """Runs one round.

        Args:
            state: The `ServerState`.
            clients: A `ClientData`.
            ids: The ids of the cohort, in the order in which reports are to be added.
            seed: A seed tensor, from `tffed.random.seed`.
            store: A `ClientStore`; receives the clients' new states under the number of the round.

        Returns:
            `(state, metrics)`: the new state and a dictionary of float32 tensors.
        """
        bc = self._broadcast(state)
        fresh = self._client_init(bc)
        if self._chunk is None:
            self._trace(state, bc, fresh, clients)
        sizes = clients.sizes(ids) if clients.resident else None
        parts = [[ids[p] for p in part] for part in chunks(len(ids), sizes)]
        total, states = self._zero(), {}
        for part, (report, new) in zip(
            parts, self._in_lanes(parts, bc, fresh, clients, seed, store), strict=True
        ):
            total = self._merge(total, report)
            leaves = [leaf.numpy() for leaf in tf.nest.flatten(new)]
            states |= {cid: [leaf[k] for leaf in leaves] for k, cid in enumerate(part) if leaves}
        state, metrics = self._finish(state, total, server_seed(seed, state.round))
        if states:
            store.put_all(int(state.round), states)
        return state, metrics

    def _in_lanes(self, parts, bc, fresh, clients, seed, store):
        """Yields the result of each chunk, in order; holds few that are still to be taken."""

        def run(part):
            arrays, rows, sizes = self._read(clients, part)
            offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
            keys = np.stack([random.client_key(cid) for cid in part])
            states = self._states(store, part, fresh)
            return self._chunk(bc, arrays, tf.constant(rows), offsets, keys, states, seed)

        with ThreadPoolExecutor(self.lanes) as pool:
            waiting = deque()
            for part in parts:
                waiting.append(pool.submit(run, part))
                if len(waiting) > self.lanes:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def _read(self, clients, part):
        # A user's reader need not be safe to call from several threads.
        with self._reading:
            arrays, rows, sizes = clients.examples(part)
            if clients.resident:
                if self._resident[0] is not arrays:
                    self._resident = (arrays, self._tensors(arrays))
                return self._resident[1], rows, sizes
        return self._tensors(arrays), rows, sizes

    def _tensors(self, arrays):
        if self._check is not None:
            self._check(arrays)
        return tree.map(tf.convert_to_tensor, arrays)

    def client_states(self, state, store, ids):
        """The states of some clients, stacked leaf by leaf; new ones for clients without one."""
        return self._states(store, ids, self._client_init(self._broadcast(state)))

    def _states(self, store, part, fresh):
        empty = tf.nest.flatten(fresh)
        if not empty:
            return fresh
        found = [store.get(cid) or empty for cid in part]
        leaves = [tf.stack(leaf) for leaf in zip(*found, strict=True)]
        return tf.nest.pack_sequence_as(fresh, leaves)

    def _zero(self):
        if not self.algorithm.collect:
            return tree.zeros_like(self._like)
        return tree.map(lambda s: tf.zeros([0, *s.shape], s.dtype), self._like)

    def _merge(self, total, report):
        if self.algorithm.collect:
            return tree.map(lambda a, b: tf.concat([a, b], 0), total, report)
        return self._add(total, report)

    def _trace(self, state, bc, fresh, clients):
        """Traces the client's work, a chunk and the server's step, each once."""
        with self._reading:
            example = clients.spec
        arrays = tree.map(lambda s: tf.TensorSpec([None, *s.shape[1:]], s.dtype), example)
        algorithm = self.algorithm
        # Not inlined: the graph optimiser would join multiplications across the wire, and the bits
        # would differ from those of a message that really travelled.
        report = tf.function(
            algorithm.report, autograph=False, experimental_attributes={"_noinline": True}
        )

        @tf.function(autograph=False)
        def one(bc, arrays, rows, key, state, seed):
            seed = random.client_seed(seed, bc.round, key)
            message, state = algorithm.client(bc, state, LocalData(arrays, rows), seed)
            self.bytes_up = tree.nbytes(message)
            return report(bc, message), state

        vector, scalar_pair = tf.TensorSpec([None], tf.int32), tf.TensorSpec([2], tf.int32)
        like, _ = one.get_concrete_function(
            tree.spec(bc), arrays, vector, scalar_pair, tree.spec(fresh), scalar_pair
        ).structured_outputs
        self._like = tree.spec(like)
        self.bytes_down = tree.nbytes(tree.spec(bc))
        stacked = lambda nest: tree.map(  # noqa: E731
            lambda s: tf.TensorSpec([None, *s.shape], s.dtype), nest
        )
        pairs = tf.TensorSpec([None, 2], tf.int32)
        chunk = _chunk_of(one, self._like, algorithm.collect)
        self._chunk = tf.function(chunk, autograph=False).get_concrete_function(
            tree.spec(bc), arrays, vector, vector, pairs, stacked(fresh), scalar_pair
        )
        total = stacked(self._like) if algorithm.collect else self._like
        self._finish = tf.function(algorithm.finish, autograph=False).get_concrete_function(
            tree.spec(state), total, scalar_pair
        )


def _chunk_of(one, like, collect):
    """The function that trains the clients of a chunk one after the other.

    `(bc, arrays, rows, offsets, keys, states, seed) -> (reports, new states)`: rows of client k
    are `rows[offsets[k]:offsets[k + 1]]`. Reports are added, or stacked if `collect`.
    """

    def chunk(bc, arrays, rows, offsets, keys, states, seed):
        count = tf.shape(keys)[0]

        def body(k, total, out):
            state = tree.map(lambda leaf: leaf[k], states)
            mine = rows[offsets[k] : offsets[k + 1]]
            report, new = one(bc, arrays, mine, keys[k], state, seed)
            if collect:
                total = write(total, k, report)
            else:
                total = tree.add(total, report)
            return k + 1, total, write(out, k, new)

        def write(arrays, k, nest):
            return [a.write(k, leaf) for a, leaf in zip(arrays, tf.nest.flatten(nest), strict=True)]

        state_leaves = tf.nest.flatten(states)
        out = [tf.TensorArray(x.dtype, count, element_shape=x.shape[1:]) for x in state_leaves]
        total = (
            [tf.TensorArray(x.dtype, count, element_shape=x.shape) for x in tf.nest.flatten(like)]
            if collect
            else tree.zeros_like(like)
        )
        _, total, out = tf.while_loop(
            lambda k, *_: k < count, body, (tf.constant(0), total, out), parallel_iterations=1
        )
        if collect:
            total = tf.nest.pack_sequence_as(like, [a.stack() for a in total])
        return total, tf.nest.pack_sequence_as(states, [a.stack() for a in out])

    return chunk
