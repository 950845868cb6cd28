"""Partition schemes that skew the clients' labels."""

import dataclasses

import numpy as np

from tffed.data.schemes import Scheme, is_count, plain_fields, require_number


@dataclasses.dataclass(frozen=True)
class Dirichlet(Scheme):
    """Label skew by Dirichlet shares; the smaller `alpha`, the fewer classes a client has.

    By default the examples of each class are divided among the K clients in shares drawn from
    `Dir(alpha, ..., alpha)`, so clients also differ in size. The share of a class that one client
    gets has mean `1/K` and variance `(1/K)(1 - 1/K) / (K alpha + 1)`. Clients left with fewer than
    `min_size` examples get random ones from the clients that are then the largest.

    With `equal_sizes`, all clients have as many examples (but for one), and the classes of each
    are drawn from a distribution out of `Dir(alpha * p)`, where p are the shares of the classes in
    the data. A class that runs out is left out of the later clients' distributions.

    Args:
        alpha: Concentration, positive. Near 0 is one client to a class (one class to a client
            with `equal_sizes`), large is IID.
        min_size: Least number of examples of a client.
        equal_sizes: Hsu et al.'s form instead of Yurochkin et al.'s.
        bins: Number of quantile bins that stand for the classes of a real target.

    References:
        Yurochkin et al. 2019, Bayesian Nonparametric Federated Learning of Neural Networks.
        Hsu, Qi and Brown 2019, Measuring the Effects of Non-Identical Data Distribution for
        Federated Visual Classification.
    """

    alpha: float
    min_size: int = 1
    equal_sizes: bool = False
    bins: int | None = None

    def __post_init__(self):
        plain_fields(self)
        require_number(
            "alpha", self.alpha, 0, np.inf,
            "Give for example 0.3; for IID clients use IID().", above=True,
        )
        if not is_count(self.min_size):
            raise ValueError(
                "Expected min_size to be an integer of at least 1. Received: "
                f"min_size={self.min_size!r}. Every client needs an example."
            )
        check_bins(self.bins)

    def split(self, x, y, clients, rng):
        labels = class_index(y, "Dirichlet", self.bins)
        if clients * self.min_size > len(labels):
            raise ValueError(
                f"Expected at least clients * min_size = {clients * self.min_size} examples. "
                f"Received: {len(labels)} examples, clients={clients}, min_size={self.min_size}. "
                "Ask for fewer clients or a smaller min_size."
            )
        pools = [rng.permutation(np.flatnonzero(labels == c)) for c in range(labels.max() + 1)]
        if self.equal_sizes:
            return self._equal(pools, len(labels), clients, rng)
        pieces = []
        for pool in pools:
            shares = np.cumsum(rng.dirichlet(np.full(clients, self.alpha)))[:-1]
            pieces.append(np.split(pool, np.floor(shares * len(pool)).astype(np.int64)))
        parts = [np.concatenate(mine) for mine in zip(*pieces, strict=True)]
        return fill_up(parts, self.min_size, rng)

    def _equal(self, pools, total, clients, rng):
        left = np.array([len(pool) for pool in pools])
        prior = left / total
        parts = []
        for size in _even_sizes(total, clients):
            share = rng.dirichlet(self.alpha * prior)
            taken = np.zeros_like(left)
            while (need := size - taken.sum()) > 0:
                open_share = np.where(left > taken, share, 0)
                if not open_share.sum() > 0:  # only classes that this client has no share of remain
                    open_share = (left - taken).astype(float)
                drawn = rng.multinomial(need, open_share / open_share.sum())
                taken = np.minimum(taken + drawn, left)
            parts.append(np.concatenate([
                pool[n - t : n] for pool, n, t in zip(pools, left, taken, strict=True)
            ]))
            left = left - taken
        return parts


def _even_sizes(total, clients):
    return np.diff(np.arange(clients + 1) * total // clients)


@dataclasses.dataclass(frozen=True)
class Shards(Scheme):
    """Sorts the examples by label, cuts them into shards and deals each client `per_client`.

    With two shards a client and shards no larger than a class, a client sees one to four classes:
    one if both of its shards come from one class. It sees two at most where the class sizes are
    multiples of the shard size.

    Args:
        per_client: Shards per client. The shards' sizes differ by one at most.
        bins: Number of quantile bins that stand for the classes of a real target.

    References:
        McMahan et al. 2017, Communication-Efficient Learning of Deep Networks from Decentralized
        Data, section 3.
    """

    per_client: int = 2
    bins: int | None = None

    def __post_init__(self):
        plain_fields(self)
        if not is_count(self.per_client):
            raise ValueError(
                "Expected per_client to be an integer of at least 1. Received: "
                f"per_client={self.per_client!r}. Give the number of shards of each client."
            )
        check_bins(self.bins)

    def split(self, x, y, clients, rng):
        labels = class_index(y, "Shards", self.bins)
        count = clients * self.per_client
        if count > len(labels):
            raise ValueError(
                f"Expected at least as many examples as shards. Received: {len(labels)} examples, "
                f"{count} shards (clients={clients}, per_client={self.per_client}). Ask for fewer "
                "clients or fewer shards per client."
            )
        order = rng.permutation(len(labels))
        order = order[np.argsort(labels[order], kind="stable")]
        shards = np.array_split(order, count)
        deal = rng.permutation(count).reshape(clients, self.per_client)
        return [np.concatenate([shards[s] for s in mine]) for mine in deal]


def class_index(y, scheme: str, bins: int | None = None) -> np.ndarray:
    """Returns the class of each example as an integer from 0.

    Args:
        y: Targets: integers of shape `[N]` or `[N, 1]`, or real numbers if `bins` is given.
        scheme: Name of the scheme, for messages.
        bins: Number of quantile bins of real targets that stand for classes.

    Raises:
        ValueError: Targets that have no classes.
    """
    labels = y.reshape(-1) if isinstance(y, np.ndarray) and y.size == len(y) else None
    if labels is None or (labels.dtype.kind == "f" and bins is None):
        got = f"dtype={y.dtype}, shape={y.shape}" if isinstance(y, np.ndarray) else type(y).__name__
        raise ValueError(
            f"Expected one integer label per example for {scheme}. Received: y of {got}. For "
            f"regression give {scheme}(..., bins=10), which takes quantile bins for classes, or "
            "use a quantity or feature skew; turn one-hot labels into integers with argmax."
        )
    if bins is not None:
        edges = np.quantile(labels, np.linspace(0, 1, bins + 1)[1:-1])
        labels = np.searchsorted(edges, labels, side="right")
    return np.unique(labels, return_inverse=True)[1].reshape(-1)


def check_bins(bins):
    """Raises a `ValueError` unless `bins` is `None` or an integer of at least 2."""
    if bins is not None and not is_count(bins, 2):
        raise ValueError(
            f"Expected bins to be None or an integer of at least 2. Received: bins={bins!r}. Give "
            "the number of quantile bins that stand for the classes of a real target."
        )


def fill_up(parts: list, least: int, rng) -> list[np.ndarray]:
    """Moves random rows from the largest clients until every client has `least` rows."""
    parts = [rng.permutation(part) for part in parts]
    sizes = np.array([len(part) for part in parts])
    moved = {}
    for k in np.flatnonzero(sizes < least):
        while sizes[k] < least:
            donor = int(np.argmax(sizes))
            sizes[donor] -= 1
            sizes[k] += 1
            moved.setdefault(k, []).append(parts[donor][sizes[donor]])
    for k, rows in moved.items():
        parts[k] = np.concatenate([parts[k], np.array(rows, np.int64)])
    # What a donor gave away lies at the end of its rows; a client that received has not given.
    return [
        part if k in moved else part[:size]
        for k, (part, size) in enumerate(zip(parts, sizes, strict=True))
    ]
