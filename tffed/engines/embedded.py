"""The embedded engine: a whole round in this process, compiled, over several lanes."""

import os
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tensorflow as tf

from tffed import random, tree
from tffed.engines.cohort import MOST_CLIENTS, chunks
from tffed.engines.program import trace

# Sorting and indexing the padded rows of small clients costs too much beyond this.
_MOST_ROWS = 8192
# Chunks come in multiples of these. In worker processes clients take long and chunks cost little.
_CHUNKS, _REMOTE_CHUNKS = 4, 32
# From so many weights on, a client is worth sending to a worker process.
_WORTH_A_PROCESS = 100_000


class Embedded:
    """Runs rounds of one algorithm in this process.

    The cohort is cut into chunks; a lane (a thread) takes the next chunk, trains its clients one
    after the other in one compiled call, and hands back the sum of their reports. Sums are added in
    the order of the chunks, so the result has the same bits for any number of lanes. Everything is
    traced once, whatever the clients' sizes.

    A lane is one of three things:

    - a thread that runs the chunk as compiled by XLA, where `jit_compile` allows it, the algorithm
      is `maskable`, and the federation is held in memory with at most 8192 examples a client.
    - a worker process with one thread a kernel, so that lanes do not contend: for other models of
      at least 100,000 trainable weights, on a machine without a GPU.
    - a thread that runs the chunk as a graph, otherwise.

    Which one depends on the model and the data alone, never on the number of processors. The bits
    are the same for any number of lanes, but differ from one kind of lane to another.

    Args:
        algorithm: An `Algorithm`.
        lanes: Chunks trained at a time; None: one a processor, or 1 where there is a GPU.
        check: `(arrays) -> None`, called on every client's arrays before they are trained on (once
            for a federation held in memory), to raise an error on bad data.
        jit_compile: Whether to use XLA where it can be used.
        processes: Whether lanes without XLA are worker processes; None: as said above.

    Attributes:
        bytes_up: Bytes of one client's message, known after the first round.
        bytes_down: Bytes of the broadcast to one client.

    Raises:
        ValueError: `lanes` is not a positive integer.
    """

    def __init__(self, algorithm, *, lanes=None, check=None, jit_compile=True, processes=None):
        gpu = bool(tf.config.list_logical_devices("GPU"))
        if lanes is None:
            lanes = 1 if gpu else os.cpu_count() or 1
        if isinstance(lanes, bool) or not isinstance(lanes, int) or lanes < 1:
            raise ValueError(f"`lanes` must be a positive integer. Received: lanes={lanes!r}")
        self.algorithm = algorithm
        self.lanes = lanes
        self.bytes_up = self.bytes_down = 0
        self._jit = jit_compile and algorithm.maskable
        self._processes = False if processes is None and gpu else processes
        self._workers = None
        self._threads = ThreadPoolExecutor(lanes)
        self._check = check
        self._begin = None
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
        bc, fresh = self._start(state)
        program = self._program(state, clients)
        self.bytes_up, self.bytes_down = program.bytes_up, program.bytes_down
        sizes = clients.sizes(ids) if clients.resident else None
        multiple = _REMOTE_CHUNKS if program.remote else _CHUNKS
        parts = [[ids[p] for p in part] for part in chunks(len(ids), sizes, multiple)]
        total, states = None, {}
        merge = _stack if self.algorithm.collect else tree.add

        def run(part):
            return self._run_chunk(program, part, bc, fresh, clients, seed, store)

        for part, (report, new) in zip(parts, self._in_lanes(run, parts), strict=True):
            total = report if total is None else merge(total, report)
            leaves = [leaf.numpy() for leaf in tf.nest.flatten(new)]
            states |= {cid: [leaf[k] for leaf in leaves] for k, cid in enumerate(part) if leaves}
        total = program.nothing if total is None else total
        state, metrics = program.finish(state, total, seed)
        if states:
            store.put_all(int(state.round), states)
        return state, metrics

    def client_states(self, state, store, ids):
        """The states of some clients, stacked leaf by leaf; new ones for clients without one."""
        return self._states(store, ids, self._start(state)[1], len(ids))

    def _start(self, state):
        """The broadcast of a round and the state of a new client."""
        if self._begin is None:

            def begin(state):
                bc = self.algorithm.broadcast(state)
                return bc, self.algorithm.client_init(bc)

            begin = tf.function(begin, autograph=False)
            self._begin = begin.get_concrete_function(tree.spec(state))
        return self._begin(state)

    def _in_lanes(self, run, parts):
        """Yields the result of each chunk, in order; holds few that are still to be taken."""
        waiting = deque()
        for part in parts:
            waiting.append(self._threads.submit(run, part))
            if len(waiting) > 2 * self.lanes:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def _run_chunk(self, program, part, bc, fresh, clients, seed, store):
        arrays, rows, sizes = self._read(clients, part, program.remote)
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

    def _read(self, clients, part, remote):
        # A user's reader need not be safe to call from several threads.
        with self._reading:
            arrays, rows, sizes = clients.examples(part)
            if clients.resident and self._resident[0] is not arrays:
                self._resident = (arrays, self._checked(arrays, remote))
        if not clients.resident:
            return self._checked(arrays, remote), rows, sizes
        if remote:
            mine = tree.map(lambda array: array[rows], arrays)
            return mine, np.arange(len(rows), dtype=np.int32), sizes
        return self._resident[1], rows, sizes

    def _checked(self, arrays, remote):
        if self._check is not None:
            self._check(arrays)
        return arrays if remote else tree.map(tf.convert_to_tensor, arrays)

    def _states(self, store, part, fresh, count):
        """The clients' states stacked to `count` rows, those beyond the part being new ones."""
        empty = tf.nest.flatten(fresh)
        if not empty:
            return fresh
        found = [store.get(cid) or empty for cid in part] + [empty] * (count - len(part))
        leaves = [tf.stack(leaf) for leaf in zip(*found, strict=True)]
        return tf.nest.pack_sequence_as(fresh, leaves)

    def _program(self, state, clients):
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
            workers = self._start_workers(state) if capacity is None else None
            begun = tree.spec(self._begin.structured_outputs)
            program = trace(self.algorithm, state, *begun, spec, capacity)
            self._programs[key] = program if workers is None else workers.take(program)
        return self._programs[key]

    def _start_workers(self, state):
        """The worker processes, which start while the program is traced; None without."""
        wanted = self._processes
        if wanted is None:
            wanted = sum(int(tf.size(w)) for w in state.weights.trainable) >= _WORTH_A_PROCESS
        if wanted and self._workers is None:
            from tffed.engines.workers import Workers

            self._workers = Workers(self.lanes)
        return self._workers if wanted else None


def _stack(first, second):
    return tree.map(lambda a, b: tf.concat([a, b], 0), first, second)


def _padded(rows, sizes, capacity):
    """Rows of one client after the other as a table `[MOST_CLIENTS, capacity]`."""
    table = np.zeros((MOST_CLIENTS, capacity), np.int32)
    for k, mine in enumerate(np.split(rows, np.cumsum(sizes)[:-1])):
        table[k, : len(mine)] = mine
    return table
