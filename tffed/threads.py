"""How many threads TensorFlow's kernels use."""

import os

import tensorflow as tf


def single_threaded_kernels(lanes=None):
    """Lets each kernel run on one thread and leaves the processors to the lanes.

    Lanes keep the processors busier than kernels that split small operations, and a kernel's result
    can depend on its number of threads: with one, the same seed gives the same bits on machines
    with other numbers of processors. Call it before TensorFlow is first used, so before a model is
    built; the setting is the whole process's.

    Args:
        lanes: Chunks of clients trained at a time; None: one a processor.

    Raises:
        RuntimeError: TensorFlow has started with other settings.
    """
    lanes = lanes or os.cpu_count() or 1
    try:
        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(max(2, lanes))
    except RuntimeError as error:
        raise RuntimeError(
            "single_threaded_kernels() must come before TensorFlow is first used. Received: a "
            "process in which it has started. Move the call to the top of the program."
        ) from error
