"""All contact with the import of the package dp-accounting."""

import importlib


def load(name=""):
    """dp-accounting or one of its modules, e.g. `"pld.pld_pmf"`, imported when first needed.

    Raises:
        ImportError: It is not installed. The message gives the command that installs it.
    """
    try:
        return importlib.import_module(f"dp_accounting.{name}".rstrip("."))
    except ImportError as error:
        raise ImportError(
            "Privacy accounting needs the package dp-accounting, which could not be imported "
            f"({error}). Install it with: pip install dp-accounting"
        ) from error
