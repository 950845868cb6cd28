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
    """`(clients) -> Uses` of such local work; None if the number of steps is not known before."""
    if isinstance(work["local_steps"], AdaptiveSteps):
        return None
    epochs, steps, size = (work[n] for n in ("local_epochs", "local_steps", "batch_size"))

    def find(clients):
        if size is None:
            return Uses(steps or epochs, ((steps or epochs, 1.0),))
        counts = sorted({int(n) for n in clients.sizes() if n}, reverse=True)
        fewest = {math.ceil(n / size): n for n in counts}  # by the number of batches
        worst = [(epochs * batches if epochs else steps, n) for batches, n in fewest.items()]
        if not epochs:  # of as many steps, those that draw the larger shares
            worst = worst[-1:]
        passes = epochs or math.ceil(steps / min(fewest))
        return Uses(passes, tuple((taken, min(1.0, size / n)) for taken, n in worst))

    return find
