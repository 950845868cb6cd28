"""Checks shared by the algorithms' arguments."""

import math

from tffed.algorithm import Uses
from tffed.algorithms.adaptive import AdaptiveSteps
from tffed.arguments import positive_integer


def check_local_work(local_epochs, local_steps, batch_size):
    """The three arguments as a dictionary, checked; `local_epochs` is 1 if neither is given."""
    if local_epochs is not None and local_steps is not None:
        raise ValueError(
            "Give the local work as epochs or as steps, not as both. "
            f"Received: local_epochs={local_epochs}, local_steps={local_steps}"
        )
    if local_steps is None:
        local_epochs = 1 if local_epochs is None else local_epochs
    arguments = {
        "local_epochs": local_epochs,
        "local_steps": local_steps,
        "batch_size": batch_size,
    }
    for name, value in arguments.items():
        if value is not None and not isinstance(value, AdaptiveSteps):
            arguments[name] = positive_integer(name, value)
    return arguments


def uses(work):
    """`(clients) -> Uses` of such local work: those of the client with the fewest examples.

    None if the number of steps is not known before.
    """
    if isinstance(work["local_steps"], AdaptiveSteps):
        return None

    def find(clients):
        epochs, steps, size = (work[n] for n in ("local_epochs", "local_steps", "batch_size"))
        fewest = int(clients.sizes().min()) if size is not None else 1
        batches = max(1, math.ceil(fewest / (size or 1)))
        steps = batches * epochs if steps is None else steps
        return Uses(math.ceil(steps / batches), steps, min(1.0, (size or 1) / fewest))

    return find
