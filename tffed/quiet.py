"""Keeps TensorFlow's notes off the terminal."""

import contextlib
import os
import sys
import tempfile


@contextlib.contextmanager
def notes_aside():
    """Keeps what is written to standard error back, unless something fails.

    TensorFlow's first notes come before its log level holds: TF_CPP_MIN_LOG_LEVEL does not silence
    them, and 0 there asks for all of them.
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
