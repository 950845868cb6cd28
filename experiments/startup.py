"""How the experiments start TensorFlow."""

import contextlib
import os
import sys
import tempfile


def start(lanes=None):
    """Loads TensorFlow with single-threaded kernels and opens its devices.

    Args:
        lanes: Clients trained at a time; None: one a processor.

    Returns:
        The devices in words.

    Raises:
        RuntimeError: TensorFlow has started with other settings.
    """
    with _notes_aside():
        import tensorflow as tf

        import tffed

        tffed.single_threaded_kernels(lanes)
        gpus = tf.config.list_logical_devices("GPU")
    return f"{len(gpus)} GPU" if gpus else f"{os.cpu_count()} processors"


@contextlib.contextmanager
def _notes_aside():
    """Keeps TensorFlow's notes on standard error back, unless something fails.

    The first ones come before its log level holds: TF_CPP_MIN_LOG_LEVEL does not silence them, and
    0 there asks for all of them.
    """
    if os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2") == "0":
        yield
        return
    sys.stderr.flush()
    standard = os.dup(2)
    with tempfile.TemporaryFile() as notes:
        os.dup2(notes.fileno(), 2)
        try:
            yield
        except BaseException:
            notes.seek(0)
            os.write(standard, notes.read())
            raise
        finally:
            os.dup2(standard, 2)
            os.close(standard)
