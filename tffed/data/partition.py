"""Partitions one data set among clients."""

import numpy as np

from tffed.arguments import plain
from tffed.data import checks
from tffed.data.client_data import ClientData, ResidentClientData
from tffed.data.schemes import Scheme, is_count
from tffed.data.spec import num_examples

_STREAM = 1  # keeps this stream of random numbers apart from those of the samplers


def partition(
    x, y, *, clients: int | None, scheme: Scheme, seed: int, sample_weight=None
) -> ClientData:
    """Deals the examples of a data set to clients.

    Every example goes to exactly one client, and every client has at least one. The same seed
    gives the same partition.

    ```python
    clients = partition(x, y, clients=100, scheme=Dirichlet(0.3), seed=1)
    ```

    Args:
        x: Inputs, a nest of arrays with leading dimension N. Kept by reference where no dtype
            changes.
        y: Targets, likewise.
        clients: Number of clients; `None` with `NaturalKey`.
        scheme: How to deal: `IID`, `Dirichlet`, `Shards`, `LogNormalQuantity`, `PowerLawQuantity`,
            `FeatureSkew`, `NaturalKey`, or any other `Scheme`.
        seed: Integer of at least 0.
        sample_weight: Weights of the examples, if any.

    Returns:
        A resident `ClientData` with ids `0 ... clients - 1`, or the keys of `NaturalKey`.

    Raises:
        ValueError: More clients than examples, labels that the scheme cannot use, data that are
            not finite, or a scheme that loses or repeats examples.
    """
    _check_arguments(clients, scheme, seed)
    clients, seed = plain(clients), plain(seed)
    reading = checks.read_examples((x, y, sample_weight), "the data set")
    arrays = checks.checked(reading, "the data set").parts
    total = num_examples(arrays)
    ids = scheme.client_ids(clients)
    if len(ids) > total:
        raise ValueError(
            f"Expected at most as many clients as examples. Received: clients={len(ids)}, {total} "
            "examples. Ask for fewer clients."
        )
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_STREAM,)))
    parts = [np.sort(part) for part in scheme.split(arrays[0], arrays[1], len(ids), rng)]
    rows, sizes = np.concatenate(parts), np.array([len(part) for part in parts])
    _check_split(rows, sizes, len(ids), total, scheme)
    return ResidentClientData(arrays, ids, rows, sizes, reading.columns)


def _check_arguments(clients, scheme, seed) -> None:
    if not isinstance(scheme, Scheme):
        raise ValueError(
            f"Expected a partition scheme. Received: scheme={scheme!r}. Give an instance, for "
            "example tffed.data.Dirichlet(0.3) or tffed.data.IID()."
        )
    if clients is not None and not is_count(clients):
        raise ValueError(
            "Expected clients to be an integer of at least 1. Received: "
            f"clients={clients!r}. Give the number of clients."
        )
    if not is_count(seed, 0):
        raise ValueError(
            f"Expected seed to be an integer of at least 0. Received: seed={seed!r}. Give a fixed "
            "number to be able to repeat the partition."
        )


def _check_split(rows, sizes, clients, total, scheme) -> None:
    whole = np.array_equal(np.sort(rows), np.arange(total))
    if len(sizes) != clients or not whole or sizes.min() < 1:
        raise ValueError(
            f"Expected {type(scheme).__name__}.split to give {clients} clients at least one row "
            f"each and every one of {total} rows once. Received: {len(sizes)} clients, smallest "
            f"{sizes.min()}, {len(rows)} rows, {len(np.unique(rows))} distinct. Correct the scheme."
        )
