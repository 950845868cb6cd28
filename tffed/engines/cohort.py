"""How a cohort is cut into chunks: by the cohort alone, never by the machine."""

import numpy as np

MOST_CLIENTS = 8


def chunks(count, sizes=None, multiple=4):
    """Cuts positions 0 … count - 1 of a cohort into chunks of work.

    There are as many chunks as clients up to `multiple`, then a multiple of it, so that lanes have
    equal shares, and never more than eight clients in one, so that memory does not grow with the
    cohort. With sizes, clients go largest first to the chunk that has the fewest examples and room,
    and the largest chunks come first; without, chunks are consecutive. Inside a chunk clients keep
    the order of the cohort. Sums follow this order, so they are the same bits for any number of
    lanes.

    Args:
        count: Number of clients.
        sizes: Their numbers of examples, or None where those are not known cheaply.
        multiple: For how many lanes at least there shall be work. More chunks cost more calls.

    Returns:
        A list of int arrays of positions.
    """
    number = min(count, multiple * -(-count // (multiple * MOST_CLIENTS)))
    if sizes is None:
        return [part for part in np.array_split(np.arange(count), number or 1) if len(part)]
    room = -(-count // number) if number else 0
    loads, parts = np.zeros(number), [[] for _ in range(number)]
    for position in np.argsort(-np.asarray(sizes), kind="stable"):
        chunk = int(np.argmin(loads))
        parts[chunk].append(int(position))
        loads[chunk] += sizes[position]
        if len(parts[chunk]) == room:
            loads[chunk] += np.inf
    parts = [np.array(sorted(part)) for part in parts if part]
    return sorted(parts, key=lambda part: (-sum(sizes[p] for p in part), part[0]))


def alike(count, sizes, most):
    """Cuts positions of a cohort into chunks of clients of similar sizes, the largest first.

    Args:
        count: Number of clients.
        sizes: Their numbers of examples, or None where those are not known cheaply.
        most: Clients in one chunk.

    Returns:
        A list of int arrays of positions.
    """
    order = np.arange(count) if sizes is None else np.argsort(-np.asarray(sizes), kind="stable")
    return [order[start : start + most] for start in range(0, count, most)]
