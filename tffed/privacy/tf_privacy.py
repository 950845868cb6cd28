"""All contact with the package tensorflow-privacy."""

import importlib
import sys


def load(name):
    """A module of tensorflow-privacy, e.g. `"dp_query.gaussian_query"`.

    The package's top level imports what TensorFlow no longer has; its modules work without it.

    Raises:
        ImportError: It is not installed. The message gives the commands that install it.
    """
    missing = object()
    before = getattr(sys, "skip_tf_privacy_import", missing)
    sys.skip_tf_privacy_import = True
    try:
        return importlib.import_module(f"tensorflow_privacy.privacy.{name}")
    except ImportError as error:
        raise ImportError(
            "Noise for differential privacy needs tensorflow-privacy 0.9.0, which could not be "
            f"imported ({error}). On Python 3.11 it comes with tffed; on later ones install it "
            "with:\n"
            "  pip install --no-deps --ignore-requires-python tensorflow-privacy==0.9.0\n"
            "  pip install dp-accounting packaging"
        ) from error
    finally:
        if before is missing:
            del sys.skip_tf_privacy_import
        else:
            sys.skip_tf_privacy_import = before
