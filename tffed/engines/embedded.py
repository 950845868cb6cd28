"""The embedded engine: a whole round on this machine, compiled, over several lanes."""

import math
import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor, wait

import numpy as np
import tensorflow as tf

from tffed import random, tree
from tffed.arguments import positive_integer
from tffed.engines.cohort import alike, chunks
from tffed.engines.program import trace
from tffed.engines.reading import Reader
from tffed.engines.round_noise import RoundNoise
from tffed.model_call import example

# Sorting and indexing the padded rows of small clients costs too much beyond this.
_MOST_ROWS = 8192
# Chunks come in multiples of these. In worker processes clients take long and chunks cost little.
_CHUNKS, _REMOTE_CHUNKS = 4, 32
# From so many weights on, a graph is worth sending to a worker process.
_WORTH_A_PROCESS = 100_000
# Side by side train up to so many clients, and no more weights of them all than these.
_SIDE_BY_SIDE, _MOST_WEIGHTS = 32, 2**27


class Embedded:
    """Runs rounds of one algorithm on this machine.

    The cohort is cut into chunks; a lane (a thread) takes the next chunk, trains its clients one
    after the other in one compiled call, and hands back the sum of their reports. Sums are added in
    the order of the chunks, so the result has the same bits for any number of lanes. Clients that
    are not held in memory are read ahead, one at a time, by a thread of their own.

    A chunk is compiled by XLA where the algorithm is `maskable` and clients have at most 8192
    examples, which are padded: to the largest client if the federation is held in memory, else the
    chunk's to one of a few sizes, each compiled once. Otherwise the chunk is a graph. Lanes are

    - threads of this process for chunks compiled by XLA, for small models and where there is a GPU.
      XLA's matrix products are shared among all of TensorFlow's threads, so there the last bits
      depend on how many these are: by default, on the number of processors.
    - worker processes, whose kernels have one thread each, for graphs of at least 100,000 weights,
      or for everything with `processes=True`. The bits depend on no number of threads.

    Args:
        algorithm: An `Algorithm`.
        lanes: Chunks trained at a time; None: one a processor, or 1 where there is a GPU.
        check: `(arrays) -> None`, called on every client's arrays before they are trained on (once
            for a federation held in memory), to raise an error on bad data.
        jit_compile: Whether to use XLA where it can be used.
        processes: Whether lanes are worker processes; None: as said above.
        batched: Whether lanes with XLA train up to 32 clients side by side, each step one for all
            of them, instead of one after the other; None: where there is a GPU, which one client's
            step does not fill.

    Attributes:
        bytes_up: Bytes that all clients of the last round sent: the lengths of the payloads that
            `tffed.wire` would make of their messages.
        bytes_down: Bytes that they received.
        release: Of the last round, what its noise was bound to (see `RoundNoise.release`).

    Raises:
        ValueError: `lanes` is not a positive integer.
    """

    def __init__(
        self,
        algorithm,
        *,
        lanes=None,
        check=None,
        jit_compile=True,
        processes=None,
        batched=None,
    ):
        gpu = bool(tf.config.list_logical_devices("GPU"))
        if lanes is None:
            lanes = 1 if gpu else os.cpu_count() or 1
        self.algorithm = algorithm
        self.lanes = positive_integer("lanes", lanes)
        self.bytes_up = self.bytes_down = 0
        self.release = None
        self._padded = {}
        self._may_jit = bool(jit_compile and algorithm.maskable)
        self._may_batch = gpu if batched is None else batched
        self._jit = self._batched = False
        self._processes = False if processes is None and gpu else processes
        self._workers = None
        self._threads = ThreadPoolExecutor(lanes)
        self._check = check
        self._begin = self._specs = None
        self._programs = {}
        self._resident = (None, None)
        self._reader = Reader(self._prepare)
        self._ahead = 2 * lanes

    def run_round(self, state, clients, ids, *, seed, store, then=(), context=b""):
        """Runs one round.

        Args:
            state: The `ServerState`.
            clients: A `ClientData`.
            ids: The ids of the cohort, in the order in which reports are to be added.
            seed: A seed tensor, from `tffed.random.seed`.
            store: A `ClientStore`; receives the clients' new states under the number of the round.
            then: The ids of the next cohort, if known: some are read while this one trains.
            context: What else the noise of the round is bound to; see `RoundNoise`.

        Returns:
            `(state, metrics)`: the new state and a dictionary of float32 tensors.
        """
        noise = RoundNoise(state, context)
        state = noise.begin(state)
        bc, fresh = self._start(state)
        self._settle(clients)
        parts, program, total, states = self._parts(clients, ids), None, None, {}
        self.bytes_up = self.bytes_down = 0
        self._start_workers(len(parts))
        merge = _stack if self.algorithm.collect else tree.add

        def with_noise(read, states):
            return noise.of_clients(bc, () if clients.resident else read, states)

        def run(part, ready):
            return self._run_chunk(part, ready.result(), with_noise, fresh, seed, store)

        following = self._parts(clients, then)[: self._ahead] if not clients.resident else []
        results = self._in_lanes(run, clients, parts, following)
        for part, result in zip(parts, results, strict=True):
            program, report, (new, (up, down)) = result
            total = report if total is None else merge(total, report)
            self.bytes_up += _length(program.up, up, len(part))
            if self.algorithm.send is not None:
                self.bytes_down += _length(program.down, down, len(part))
            leaves = [leaf.numpy() for leaf in tf.nest.flatten(new)]
            states |= {cid: [leaf[k] for leaf in leaves] for k, cid in enumerate(part) if leaves}
        if program is None:
            program, *_ = self._reader.read(clients, []).result()
        if self.algorithm.send is None:
            measures = program.down.measure(self.algorithm.sent_down(bc)[0])
            self.bytes_down = len(ids) * program.down.length([m.numpy() for m in measures])
        total = program.nothing if total is None else total
        state, metrics = program.finish(noise.of_server(state, total), total, seed)
        self.release = noise.release
        if states:
            store.put_all(int(state.round), states)
        return noise.end(state), metrics

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
            self._specs = (tree.spec(state), *tree.spec(self._begin.structured_outputs))
        return self._begin(state)

    def _settle(self, clients):
        """Decides by a trial whether such clients may be padded, and so compiled by XLA."""
        if not self._may_jit:
            return
        key = str(clients.spec)
        if key not in self._padded:
            batch = tree.map(lambda spec: example(spec, rows=5), clients.spec)
            self._padded[key] = self.algorithm.maskable(batch)
        self._jit = self._padded[key]
        self._batched = self._jit and self._may_batch

    def _parts(self, clients, ids):
        """The ids of each chunk."""
        sizes = clients.sizes(ids) if clients.resident else None
        if self._batched:
            room = _MOST_WEIGHTS // tree.size(self._specs[0].weights)
            parts = alike(len(ids), sizes, max(1, min(room, _SIDE_BY_SIDE)))
        else:
            parts = chunks(len(ids), sizes, _REMOTE_CHUNKS if self._remote() else _CHUNKS)
        return [[ids[p] for p in part] for part in parts]

    def _in_lanes(self, run, clients, parts, following):
        """Yields the result of each chunk, in order; holds few that are still to be taken.

        A round that fails leaves none behind: those that run end, the others never begin. One that
        is interrupted does not wait for a user's reader.
        """
        waiting = deque()
        try:
            for part in parts:
                waiting.append(self._threads.submit(run, part, self._reader.read(clients, part)))
                if len(waiting) > self._ahead:
                    yield waiting.popleft().result()
            self._reader.expect(clients, following)
            while waiting:
                yield waiting.popleft().result()
        except KeyboardInterrupt:
            self._reader.abandon()
            raise
        finally:
            for chunk in waiting:
                chunk.cancel()
            wait(waiting)

    def _run_chunk(self, part, ready, with_noise, fresh, seed, store):
        program, arrays, rows, sizes = ready
        keys = np.stack([random.client_key(cid) for cid in part])
        number = len(part)
        if program.capacity is not None:
            rows = _padded(rows, sizes, (program.clients, program.capacity))
            sizes = np.pad(sizes, (0, program.clients - number))
            keys = np.pad(keys, ((0, program.clients - number), (0, 0)))
        states = self._states(store, part, fresh, len(sizes))
        bc = with_noise((arrays, rows), states)
        rows, sizes, count = (tf.constant(v, tf.int32) for v in (rows, sizes, number))
        report, new = program.chunk(bc, arrays, rows, sizes, count, tf.constant(keys), states, seed)
        if self.algorithm.collect:
            report = tree.map(lambda stacked: stacked[:number], report)
        return program, report, new

    def _prepare(self, clients, part):
        """`(program, arrays, rows, sizes)` of a chunk; runs in the reader's thread alone."""
        arrays, rows, sizes = clients.examples(part)
        if clients.resident:
            if self._resident[0] is not arrays:
                self._resident = (arrays, self._checked(arrays))
            most = int(clients.sizes().max())
            capacity = self._capacity(most, most)
            program = self._program(clients.spec, arrays, len(part), capacity)
            held = self._workers.store(arrays) if program.remote else self._resident[1]
            return program, held, rows, sizes
        capacity = self._capacity(max(sizes, default=0), _bucket(len(rows)))
        if capacity is not None:
            arrays = tree.map(lambda array: _filled(array, _bucket(len(rows))), arrays)
        program = self._program(clients.spec, arrays, len(part), capacity)
        return program, self._checked(arrays), rows, sizes

    def _capacity(self, most, wanted):
        """To how many rows clients of at most `most` examples are padded; None: not at all."""
        return min(wanted, _MOST_ROWS) if self._jit and most <= _MOST_ROWS else None

    def _checked(self, arrays):
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

    def _program(self, spec, arrays, number, capacity):
        """The compiled program for so many clients of such data; traced at its first use."""
        batched = None
        if capacity is not None:
            spec = tree.map(lambda a, s: tf.TensorSpec(a.shape, s.dtype), arrays, spec)
            batched = 2 ** math.ceil(math.log2(max(number, 1))) if self._batched else None
        key = (str(spec), capacity, batched)
        if key not in self._programs:
            program = trace(self.algorithm, *self._specs, spec, capacity, batched)
            self._programs[key] = self._workers.take(program) if self._remote() else program
        return self._programs[key]

    def _remote(self):
        """Whether lanes are worker processes."""
        if self._processes is not None:
            return self._processes
        return not self._jit and tree.size(self._specs[0].weights.trainable) >= _WORTH_A_PROCESS

    def _start_workers(self, number):
        """Starts worker processes, which takes them as long as tracing takes here."""
        if self._remote():
            from tffed.engines import workers

            self._workers = workers.at_least(min(self.lanes, max(number, 1)))


def _stack(first, second):
    return tree.map(lambda a, b: tf.concat([a, b], 0), first, second)


def _length(form, measures, clients):
    """Bytes of the messages of the first clients, whose measures are stacked."""
    measures = [m.numpy() for m in measures]
    return sum(form.length([m[k] for m in measures]) for k in range(clients))


def _padded(rows, sizes, shape):
    """Rows of one client after the other as a table of that shape, a row a client."""
    table = np.zeros(shape, np.int32)
    for k, mine in enumerate(np.split(rows, np.cumsum(sizes)[:-1])):
        table[k, : len(mine)] = mine
    return table


def _bucket(rows):
    """The power of four, at least 64, that holds so many rows: few shapes to compile for."""
    return max(64, 4 ** math.ceil(math.log(max(rows, 1), 4)))


def _filled(array, rows):
    """An array with rows of zeros after its own; no client has these."""
    return np.pad(array, [(0, rows - len(array))] + [(0, 0)] * (array.ndim - 1))
