"""The embedded engine: a whole round in this process, compiled, over several lanes."""

import os
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tensorflow as tf

from tffed import random, tree
from tffed.algorithm import server_seed
from tffed.engines.cohort import MOST_CLIENTS, chunks
from tffed.engines.program import trace

# Sorting and indexing the padded rows of small clients costs too much beyond this.
_MOST_ROWS = 8192


class Embedded:
    """Runs rounds of one algorithm in this process.

    The cohort is cut into chunks; a lane (a thread) takes the next chunk, trains its clients one
    after the other in one compiled call, and hands back the sum of their reports. Sums are added in
    the order of the chunks, so the result has the same bits for any number of lanes. Everything is
    traced once, whatever the clients' sizes.

    With `jit_compile` the chunk is compiled with XLA where it can be: the algorithm is `maskable`,
    and the federation is held in memory, with at most 8192 examples a client. Its bits differ from
    those of the graph.

    Args:
        algorithm: An `Algorithm`.
        lanes: Chunks trained at a time; None: one a processor, or 1 where there is a GPU.
        check: `(arrays) -> None`, called on every client's arrays before they are trained on (once
            for a federation held in memory), to raise an error on bad data.
        jit_compile: Whether to use XLA where it can be used.

    Attributes:
        bytes_up: Bytes of one client's message, known after the first round.
        bytes_down: Bytes of the broadcast to one client.

    Raises:
        ValueError: `lanes` is not a positive integer.
    """

    def __init__(self, algorithm, *, lanes=None, check=None, jit_compile=False):
        if lanes is None:
            lanes = 1 if tf.config.list_logical_devices("GPU") else os.cpu_count() or 1
        if isinstance(lanes, bool) or not isinstance(lanes, int) or lanes < 1:
            raise ValueError(f"`lanes` must be a positive integer. Received: lanes={lanes!r}")
        self.algorithm = algorithm
        self.lanes = lanes
        self.bytes_up = self.bytes_down = 0
        self._jit = jit_compile and algorithm.maskable
        self._check = check
        self._broadcast = tf.function(algorithm.broadcast, autograph=False)
        self._client_init = tf.function(algorithm.client_init, autograph=False)
        self._programs = {}
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
        program = self._program(state, bc, fresh, clients)
        self.bytes_up, self.bytes_down = program.bytes_up, program.bytes_down
        sizes = clients.sizes(ids) if clients.resident else None
        parts = [[ids[p] for p in part] for part in chunks(len(ids), sizes)]
        total, states = self._zero(program), {}

        def run(part):
            return self._run_chunk(program, part, bc, fresh, clients, seed, store)

        for part, (report, new) in zip(parts, self._in_lanes(run, parts), strict=True):
            total = self._merge(total, report)
            leaves = [leaf.numpy() for leaf in tf.nest.flatten(new)]
            states |= {cid: [leaf[k] for leaf in leaves] for k, cid in enumerate(part) if leaves}
        state, metrics = program.finish(state, total, server_seed(seed, state.round))
        if states:
            store.put_all(int(state.round), states)
        return state, metrics

    def client_states(self, state, store, ids):
        """The states of some clients, stacked leaf by leaf; new ones for clients without one."""
        return self._states(store, ids, self._client_init(self._broadcast(state)), len(ids))

    def _in_lanes(self, run, parts):
        """Yields the result of each chunk, in order; holds few that are still to be taken."""
        with ThreadPoolExecutor(self.lanes) as pool:
            waiting = deque()
            for part in parts:
                waiting.append(pool.submit(run, part))
                if len(waiting) > 2 * self.lanes:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def _run_chunk(self, program, part, bc, fresh, clients, seed, store):
        arrays, rows, sizes = self._read(clients, part)
        keys = np.stack([random.client_key(cid) for cid in part])
        number = len(part)
        if program.capacity is not None:
            rows = _padded(rows, sizes, program.capacity)
            sizes = np.pad(sizes, (0, MOST_CLIENTS - number))
            keys = np.pad(keys, ((0, MOST_CLIENTS - number), (0, 0)))
        states = self._states(store, part, fresh, len(sizes))
        rows, sizes, count = (tf.constant(v, tf.int32) for v in (rows, sizes, number))
        report, new = program.chunk(bc, arrays, rows, sizes, count, tf.constant(keys), states, seed)
        if self.algorithm.collect:
            report = tree.map(lambda stacked: stacked[:number], report)
        return report, new

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

    def _states(self, store, part, fresh, count):
        """The clients' states stacked to `count` rows, those beyond the part being new ones."""
        empty = tf.nest.flatten(fresh)
        if not empty:
            return fresh
        found = [store.get(cid) or empty for cid in part] + [empty] * (count - len(part))
        leaves = [tf.stack(leaf) for leaf in zip(*found, strict=True)]
        return tf.nest.pack_sequence_as(fresh, leaves)

    def _zero(self, program):
        if not self.algorithm.collect:
            return tree.zeros_like(program.report)
        return tree.map(lambda s: tf.zeros([0, *s.shape], s.dtype), program.report)

    def _merge(self, total, report):
        # One operation at a time: in a graph the optimiser would add in an order of its own.
        if self.algorithm.collect:
            return tree.map(lambda a, b: tf.concat([a, b], 0), total, report)
        return tree.add(total, report)

    def _program(self, state, bc, fresh, clients):
        """The compiled program for such data; traced at its first use."""
        with self._reading:
            spec = clients.spec
        capacity = None
        if self._jit and clients.resident and (most := int(clients.sizes().max())) <= _MOST_ROWS:
            capacity = most
            arrays = clients.examples([]).arrays
            spec = tree.map(lambda a, s: tf.TensorSpec(a.shape, s.dtype), arrays, spec)
        key = (str(spec), capacity)
        if key not in self._programs:
            self._programs[key] = trace(self.algorithm, state, bc, fresh, spec, capacity)
        return self._programs[key]


def _padded(rows, sizes, capacity):
    """Rows of one client after the other as a table `[MOST_CLIENTS, capacity]`."""
    table = np.zeros((MOST_CLIENTS, capacity), np.int32)
    for k, mine in enumerate(np.split(rows, np.cumsum(sizes)[:-1])):
        table[k, : len(mine)] = mine
    return table
