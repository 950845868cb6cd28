"""Checks shared by the algorithms' arguments."""

import math

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
        if value is not None:
            positive_integer(name, value)
    return arguments


def passes(work):
    """`(clients) -> int`: how often one example is used in a round of such local work, at most."""

    def count(clients):
        if work["local_steps"] is None:
            return work["local_epochs"]
        # The fewer batches a client has, the more often it goes through them.
        batches = 1
        if work["batch_size"] is not None:
            batches = max(1, math.ceil(int(clients.sizes().min()) / work["batch_size"]))
        return math.ceil(work["local_steps"] / batches)

    return count
