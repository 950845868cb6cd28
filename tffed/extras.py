"""Optional packages, imported when they are first needed."""

import importlib


def require(module: str, extra: str):
    """Imports an optional package, or says how to install it.

    Args:
        module: Name of the module to import, e.g. `"matplotlib.pyplot"`.
        extra: The extra of tffed that brings it, e.g. `"plot"`.

    Returns:
        The imported module.

    Raises:
        ImportError: The package is not installed. The message gives the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"This feature needs the package `{module.partition('.')[0]}`, which could not be "
            f"imported ({error}). Install it with: pip install 'tffed[{extra}]'"
        ) from error
