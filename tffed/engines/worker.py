"""What runs inside a worker process. Loads TensorFlow only there, and nothing else of tffed."""

import functools
import os
import pickle
import shutil
import threading
import time
from pathlib import Path

from tffed.quiet import notes_aside


def start(parent, folder):
    """Loads TensorFlow and gives each of its kernels one thread.

    Args:
        parent: Id of the process that asks. Once that is gone, so are this one and the folder.
        folder: Where the graphs are.
    """
    threading.Thread(target=_end_with, args=(parent, folder), daemon=True).start()
    _load_tensorflow()


def _end_with(parent, folder):
    while os.getppid() == parent:
        time.sleep(1)
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)


@functools.cache
def _load_tensorflow():
    with notes_aside():
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(1)
        tf.constant(0)
    return tf


def run(path, inputs):
    """Runs the graph stored at `path` on NumPy arrays; returns its outputs as arrays."""
    return [output.numpy() for output in _load(path)(*inputs)]


@functools.cache
def _load(path):
    tf = _load_tensorflow()
    definition, *names = pickle.loads(Path(path).read_bytes())
    graph = tf.compat.v1.GraphDef.FromString(definition)
    whole = tf.compat.v1.wrap_function(lambda: tf.import_graph_def(graph, name=""), [])
    ends = [[whole.graph.get_tensor_by_name(name) for name in group] for group in names]
    function = whole.prune(*ends)
    return lambda *inputs: function(*map(tf.constant, inputs))
