"""A compiled function in worker processes whose kernels have one thread each.

TensorFlow fixes the number of threads of its kernels when it starts, for the whole process, and a
user's process has started long before the first round. Processes of our own can have one thread a
kernel, so lanes do not fight over the processors, and a kernel's bits do not depend on how many
processors there are. Workers receive the traced graph and never import the user's code.
"""

import os
import pickle
import tempfile
import threading
import weakref
from pathlib import Path

import loky
import tensorflow as tf

from tffed.engines import worker

_ENVIRONMENT = {"CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"}
_PYTHON_OPERATIONS = frozenset({"PyFunc", "PyFuncStateless", "EagerPyFunc"})


class Workers:
    """Worker processes, started at once in the background.

    Args:
        count: Number of processes.
    """

    def __init__(self, count):
        self._count, self._graphs = count, 0
        self._replacing = threading.Lock()
        self._folder = tempfile.TemporaryDirectory(prefix="tffed-")
        self._pool = self._start()

    def _start(self):
        pool = loky.ProcessPoolExecutor(self._count, env=_ENVIRONMENT)
        for _ in range(self._count):
            pool.submit(worker.start, os.getpid(), self._folder.name)
        weakref.finalize(self, pool.shutdown, wait=False, kill_workers=True)
        return pool

    def take(self, program):
        """A `Program` whose chunks run in the workers; the same one if it cannot leave its process.

        Its chunk raises RuntimeError if a worker died; the next call finds new workers.
        """
        if not _can_leave(program.chunk):
            return program
        return program._replace(chunk=self._remote(program.chunk), remote=True)

    def _remote(self, function):
        self._graphs += 1
        path = Path(self._folder.name) / f"{self._graphs}.graph"
        names = [[t.name for t in tensors] for tensors in (function.inputs, function.outputs)]
        path.write_bytes(pickle.dumps((_definition(function).SerializeToString(), *names)))
        captured = [tensor.numpy() for tensor in function.captured_inputs]

        def call(*arguments):
            inputs = [_array(leaf) for leaf in tf.nest.flatten(arguments)] + captured
            pool = self._pool
            try:
                outputs = pool.submit(worker.run, str(path), inputs).result()
            except loky.process_executor.BrokenProcessPool as error:
                self._replace(pool)
                told = " ".join(str(error).split()).rstrip(".")
                raise RuntimeError(
                    f"A worker process died, perhaps for want of memory. Received: {told}. Train "
                    "with fewer lanes, or with processes=False; a run with a checkpoint_dir goes "
                    "on from its last checkpoint."
                ) from error
            outputs = [tf.constant(output) for output in outputs]
            return tf.nest.pack_sequence_as(function.structured_outputs, outputs)

        return call

    def _replace(self, broken):
        """Puts new workers in the place of a broken pool, once for all lanes that meet it."""
        with self._replacing:
            if self._pool is broken:
                self._pool = self._start()


def _can_leave(function):
    """Whether a graph holds no variables, tables or Python code of this process."""
    definition = _definition(function)
    nodes = [*definition.node, *(n for f in definition.library.function for n in f.node_def)]
    captured = {tensor.dtype for tensor in function.captured_inputs}
    return not (
        captured & {tf.resource, tf.variant} or any(node.op in _PYTHON_OPERATIONS for node in nodes)
    )


def _definition(function):
    return function.graph.as_graph_def()


def _array(leaf):
    return leaf.numpy() if tf.is_tensor(leaf) else leaf
