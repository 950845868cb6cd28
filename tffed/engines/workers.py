"""Compiled functions in worker processes whose kernels have one thread each.

TensorFlow fixes the number of threads of its kernels when it starts, for the whole process, and a
user's process has started long before the first round. Processes of our own can have one thread a
kernel, so lanes do not fight over the processors, and a kernel's bits do not depend on how many
processors there are. Workers receive the traced graph and never import the user's code.
"""

import atexit
import os
import pickle
import threading
import weakref

import loky
import tensorflow as tf

from tffed.engines import files, worker

_ENVIRONMENT = {"CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"}
_PYTHON_OPERATIONS = frozenset({"PyFunc", "PyFuncStateless", "EagerPyFunc"})
_shared = []
_sharing = threading.Lock()


def at_least(count):
    """The `Workers` of this program, `count` processes or more; all engines share them."""
    with _sharing:
        if not _shared:
            _shared.append(Workers())
            atexit.register(_shared[0].end)
    _shared[0].grow(count)
    return _shared[0]


class Workers:
    """Worker processes, started in the background, and the files they read."""

    def __init__(self):
        self._process = os.getpid()
        self._folder = files.folder()
        self._lock = threading.RLock()
        self._count, self._pool = 0, None
        self._stored = {}

    def grow(self, count):
        """Makes it `count` processes if there are fewer."""
        with self._lock:
            if count > self._count:
                self._count = count
                self._start()

    def _start(self):
        if self._pool is not None:
            self._pool.shutdown(wait=False)  # ends what it has been given
        self._pool = loky.ProcessPoolExecutor(self._count, env=_ENVIRONMENT)
        for _ in range(self._count):
            self._pool.submit(worker.start, os.getpid(), self._folder and self._folder.name)

    def end(self):
        """Ends the processes at once and removes the files; in a forked process it does nothing."""
        if os.getpid() != self._process:
            return
        self._pool.shutdown(wait=False, kill_workers=True)
        if self._folder is not None:
            self._folder.remove()

    def take(self, program):
        """A `Program` whose chunks run in the workers; the same one if it cannot leave its process.

        Its chunk takes the arrays that `store` gave, or NumPy's. It raises RuntimeError if a worker
        died; the next call finds new workers.
        """
        if not can_leave(program.chunk):
            return program
        return program._replace(chunk=self._remote(program), remote=True)

    def store(self, arrays):
        """Writes a nest of arrays to a file that all workers read; it lasts as long as they do.

        Returns:
            The `files.Stored`, the same one for the same arrays.
        """
        leaves = tf.nest.flatten(arrays)
        key = tuple(map(id, leaves))
        with self._lock:
            if key not in self._stored:
                self._stored[key] = self._write(leaves)
                for leaf in leaves:  # once one is gone, its id may become another's
                    weakref.finalize(leaf, self._stored.pop, key, None)
            return self._stored[key][1]

    def _file(self):
        return files.File(self._folder and self._folder.name)

    def _write(self, arrays):
        """The file that arrays are written to, which is to be kept, and the `Stored`."""
        file = self._file()
        return file, files.write(file.place, arrays)

    def _remote(self, program):
        function, graph = program.chunk, self._file()
        names = [[t.name for t in tensors] for tensors in (function.inputs, function.outputs)]
        jit_compile = program.capacity is not None
        with open(graph.place.path, "wb") as file:
            pickle.dump((_definition(function).SerializeToString(), jit_compile, *names), file)
        captured = [tensor.numpy() for tensor in function.captured_inputs]
        broadcast = _Latest(lambda leaves: self._write(_arrays(leaves)))

        def call(bc, arrays, *others):
            kept, sent = broadcast(bc)
            data = [arrays] if isinstance(arrays, files.Stored) else _arrays(arrays)
            outputs = self._run(graph.place, [sent, *data, *_arrays(others), *captured])
            del kept  # not before the worker has read it, though other lanes may send others
            outputs = list(map(tf.constant, outputs))
            return tf.nest.pack_sequence_as(function.structured_outputs, outputs)

        return call

    def _run(self, graph, inputs):
        results = self._file()
        try:
            with self._lock:  # a pool that is replaced takes no more
                pool = self._pool
                future = pool.submit(worker.run, graph, inputs, results.place)
            return files.read(future.result())
        except loky.process_executor.BrokenProcessPool as error:
            with self._lock:  # once for all lanes that meet it
                if self._pool is pool:
                    self._start()
            told = " ".join(str(error).split()).rstrip(".")
            raise RuntimeError(
                f"A worker process died, perhaps for want of memory. Received: {told}. Train "
                "with fewer lanes, or with processes=False; a run with a checkpoint_dir goes "
                "on from its last checkpoint."
            ) from error


def can_leave(function):
    """Whether a graph holds no variables, tables or Python code of this process."""
    definition = _definition(function)
    nodes = [*definition.node, *(n for f in definition.library.function for n in f.node_def)]
    captured = {tensor.dtype for tensor in function.captured_inputs}
    return not (
        captured & {tf.resource, tf.variant} or any(node.op in _PYTHON_OPERATIONS for node in nodes)
    )


def _definition(function):
    return function.graph.as_graph_def()


def _arrays(nest):
    return [leaf.numpy() if tf.is_tensor(leaf) else leaf for leaf in tf.nest.flatten(nest)]


class _Latest:
    """Stores the tensors it was last called with, once for all lanes; forgets those of before."""

    def __init__(self, store):
        self._store = store
        self._held = ([], None)
        self._lock = threading.Lock()

    def __call__(self, nest):
        leaves = tf.nest.flatten(nest)
        with self._lock:
            if list(map(id, leaves)) != list(map(id, self._held[0])) or self._held[1] is None:
                self._held = (leaves, self._store(leaves))
            return self._held[1]
