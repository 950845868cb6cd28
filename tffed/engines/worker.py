"""What runs inside a worker process. Loads TensorFlow only there, and nothing else of tffed."""

import functools
import os
import pickle
import shutil
import threading
import time
from pathlib import Path

import loky

from tffed.engines import files
from tffed.quiet import notes_aside


def start(parent, folder):
    """Loads TensorFlow and gives each of its kernels one thread.

    Args:
        parent: Id of the process that asks. Once that is gone, so are this one and the folder.
        folder: Where graphs and arrays are; None: in no folder.
    """
    threading.Thread(target=_end_with, args=(parent, folder), daemon=True).start()
    # Else loky takes the memory that TensorFlow needs for a leak and starts the process anew.
    loky.process_executor._USE_PSUTIL = False
    _load_tensorflow()


def _end_with(parent, folder):
    while os.getppid() == parent:
        time.sleep(1)
    if folder is not None:
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


def run(graph, inputs, results):
    """Runs a graph.

    Args:
        graph: The `Place` of the graph.
        inputs: Its inputs in order: arrays, and `Stored` ones, which may be several.
        results: The `Place` for its outputs.

    Returns:
        The `Stored` outputs.
    """
    function, found = _graph(graph), []
    for value in inputs:
        found.extend(_tensors(value) if isinstance(value, files.Stored) else [value])
    return files.write(results, [output.numpy() for output in function(*found)])


@functools.cache
def _graph(place):
    tf = _load_tensorflow()
    definition, jit_compile, *names = pickle.loads(Path(place.path).read_bytes())
    graph = tf.compat.v1.GraphDef.FromString(definition)
    whole = tf.compat.v1.wrap_function(lambda: tf.import_graph_def(graph, name=""), [])
    ends = [[whole.graph.get_tensor_by_name(name) for name in group] for group in names]
    function = whole.prune(*ends)
    if jit_compile:
        function = tf.function(function, autograph=False, jit_compile=True)
    return lambda *inputs: function(*map(tf.convert_to_tensor, inputs))


@functools.lru_cache(maxsize=2)  # the round's broadcast and the federation
def _tensors(stored):
    tf = _load_tensorflow()
    return [tf.experimental.dlpack.from_dlpack(a.__dlpack__()) for a in files.read(stored)]
