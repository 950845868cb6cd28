"""What runs inside a worker process. Loads TensorFlow only there, and nothing else of tffed."""

import functools
import pickle
from pathlib import Path

from tffed.quiet import notes_aside


def start():
    """Loads TensorFlow and gives each of its kernels one thread."""
    with notes_aside():
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(1)
        tf.constant(0)


def run(path, inputs):
    """Runs the graph stored at `path` on NumPy arrays; returns its outputs as arrays."""
    return [output.numpy() for output in _load(path)(*inputs)]


@functools.cache
def _load(path):
    start()
    import tensorflow as tf

    definition, *names = pickle.loads(Path(path).read_bytes())
    graph = tf.compat.v1.GraphDef.FromString(definition)
    whole = tf.compat.v1.wrap_function(lambda: tf.import_graph_def(graph, name=""), [])
    ends = [[whole.graph.get_tensor_by_name(name) for name in group] for group in names]
    function = whole.prune(*ends)
    return lambda *inputs: function(*map(tf.constant, inputs))
