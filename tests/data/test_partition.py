"""Partitioners: what holds for all of them, and each against its definition."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tffed import data

SCHEMES = [
    data.IID(), data.Dirichlet(0.05), data.Dirichlet(10.0), data.Dirichlet(0.3, min_size=2),
    data.Dirichlet(0.1, equal_sizes=True), data.Shards(1), data.Shards(2), data.Shards(3),
    data.LogNormalQuantity(0.0), data.LogNormalQuantity(3.0), data.PowerLawQuantity(0.0),
    data.PowerLawQuantity(2.5), data.FeatureSkew(0.0), data.FeatureSkew(0.7), data.FeatureSkew(),
]


def examples(total, classes=10, width=4, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(total, width)).astype(np.float32), rng.integers(0, classes, total)


def split(x, y, clients, scheme, seed=0):
    """Rows of each client, recovered through an input that holds the row number."""
    numbered = np.column_stack([x, np.arange(len(x))]).astype(np.float32)
    part = data.partition(
        numbered, y, clients=clients, scheme=scheme, seed=seed, sample_weight=np.arange(len(x))
    )
    return [part[i][2].astype(np.int64) for i in part]


@settings(max_examples=60, deadline=None)
@given(
    scheme=st.sampled_from(SCHEMES), clients=st.integers(1, 12), spare=st.integers(0, 60),
    classes=st.integers(1, 6), seed=st.integers(0, 2**64),
)
def test_every_example_goes_to_one_client_and_no_client_is_empty(
    scheme, clients, spare, classes, seed
):
    total = 3 * clients + spare  # enough for three shards or two examples a client
    x, y = examples(total, classes)
    rows = split(x, y, clients, scheme, seed)
    assert len(rows) == clients and min(map(len, rows)) >= getattr(scheme, "min_size", 1)
    np.testing.assert_array_equal(np.sort(np.concatenate(rows)), np.arange(total))
    np.random.seed(seed % 2**32)  # the global generator has no part in it
    for again, first in zip(split(x, y, clients, scheme, seed), rows, strict=True):
        np.testing.assert_array_equal(again, first)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_another_seed_gives_another_partition(scheme):
    x, y = examples(400)
    one, other = (np.concatenate(split(x, y, 8, scheme, seed)) for seed in (1, 2))
    assert not np.array_equal(one, other)


def test_a_partition_holds_the_examples_that_it_was_given():
    x, y = examples(50)
    weights = np.linspace(0, 1, 50, dtype=np.float32)
    clients = data.partition(
        {"a": x, "b": x[:, 0]}, y, clients=4, scheme=data.IID(), seed=3, sample_weight=weights
    )
    assert clients.resident and clients.ids == range(4)
    assert clients.examples([0]).arrays[0]["a"] is x  # no copy
    for i in clients:
        got_x, got_y, got_weight = clients[i]
        rows = np.searchsorted(weights, got_weight)
        np.testing.assert_array_equal(got_x["a"], x[rows])
        np.testing.assert_array_equal(got_x["b"], x[rows, 0])
        np.testing.assert_array_equal(got_y, y[rows])


def test_iid_is_even_and_mixed():
    x, y = examples(1003)
    rows = split(x, y, 10, data.IID())
    assert sorted({len(part) for part in rows}) == [100, 101]
    # Chi-square of the 10 x 10 table of labels by client, 81 degrees of freedom: mean 81,
    # deviation 12.7. Outside 81 +- 5 deviations with probability below 1e-5.
    table = np.array([np.bincount(y[part], minlength=10) for part in rows])
    expected = np.outer(table.sum(1), table.sum(0)) / table.sum()
    assert abs(((table - expected) ** 2 / expected).sum() - 81) < 5 * np.sqrt(2 * 81)


def test_dirichlet_shares_have_the_variance_of_the_distribution():
    # Shares of a class among K clients: mean 1/K, variance (1/K)(1 - 1/K) / (K alpha + 1). The mean
    # square deviation over 25 seeds of 10 classes is normal to good approximation; 5 standard
    # errors are passed by chance with probability below 1e-6.
    clients, alpha, per_class = 10, 0.5, 400
    y = np.repeat(np.arange(10), per_class)
    x = np.zeros((len(y), 1), np.float32)
    squares = []
    for seed in range(25):
        rows = split(x, y, clients, data.Dirichlet(alpha), seed)
        shares = np.array([np.bincount(y[part], minlength=10) for part in rows]) / per_class
        squares.extend(np.mean((shares - 1 / clients) ** 2, axis=0))
    expected = (1 / clients) * (1 - 1 / clients) / (clients * alpha + 1)
    error = np.std(squares) / np.sqrt(len(squares))
    assert abs(np.mean(squares) - expected) < 5 * error and error < 0.05 * expected


def test_equal_size_dirichlet_has_hsus_class_distribution():
    # The first client's count of a class is multinomial of size m with probabilities from
    # Dir(alpha p): its share has variance p (1 - p) (1/m + (1 - 1/m) / (alpha + 1)). 5 standard
    # errors over 400 seeds.
    alpha, m, classes = 2.0, 40, 4
    y = np.repeat(np.arange(classes), 10 * m)
    x = np.zeros((len(y), 1), np.float32)
    p = 1 / classes
    squares = []
    for seed in range(400):
        rows = split(x, y, len(y) // m, data.Dirichlet(alpha, equal_sizes=True), seed)
        assert {len(part) for part in rows} == {m}
        squares.append(np.mean((np.bincount(y[rows[0]], minlength=classes) / m - p) ** 2))
    expected = p * (1 - p) * (1 / m + (1 - 1 / m) / (alpha + 1))
    error = np.std(squares) / np.sqrt(len(squares))
    assert abs(np.mean(squares) - expected) < 5 * error and error < 0.06 * expected


def test_dirichlet_alpha_orders_the_skew():
    x, y = examples(4000)

    def largest_class(alpha, **options):
        rows = split(x, y, 10, data.Dirichlet(alpha, **options))
        return np.mean([np.bincount(y[part]).max() / len(part) for part in rows])

    for options in ({}, {"equal_sizes": True}):
        shares = [largest_class(alpha, **options) for alpha in (0.05, 1.0, 1000.0)]
        assert shares[0] > 0.5 and shares[0] > shares[1] > shares[2] and shares[2] < 0.2, shares


def test_dirichlet_fills_small_clients_up():
    x, y = examples(300)
    sizes = [len(part) for part in split(x, y, 100, data.Dirichlet(0.01, min_size=2))]
    assert min(sizes) == 2 and sum(sizes) == 300


def test_shards_are_mcmahans():
    # 20 shards of 30 examples, classes of 60: no shard holds two classes.
    y = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 60))
    rows = split(np.zeros((600, 1), np.float32), y, 10, data.Shards(2))
    assert all(len(part) == 60 and len(set(y[part])) <= 2 for part in rows)
    assert len({tuple(sorted(set(y[part]))) for part in rows}) > 3  # dealt at random


def test_shards_that_cross_classes():
    # Sorted labels change class 9 times, so shards and classes meet at most 40 + 9 times.
    x, y = examples(1237)
    rows = split(x, y, 20, data.Shards(2))
    assert sum(len(set(y[part])) for part in rows) <= 49
    assert max(map(len, rows)) - min(map(len, rows)) <= 2


@pytest.mark.parametrize("scheme", [data.Dirichlet, data.Shards])
def test_quantile_bins_stand_for_classes_of_a_real_target(scheme):
    x, _ = examples(500)
    y = np.random.default_rng(1).normal(size=500)
    fifth = np.argsort(np.argsort(y)) // 100
    of_bins = split(x, y, 5, scheme(2, bins=5), seed=4)
    for got, want in zip(of_bins, split(x, fifth, 5, scheme(2), seed=4), strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("convert", [list, np.array, lambda k: np.array(k, dtype=object)])
def test_natural_keys_name_the_clients(convert):
    keys = ["cleo", "anna", "ben", "anna", "cleo", "anna"]
    x, y = examples(6)
    clients = data.partition(x, y, clients=None, scheme=data.NaturalKey(convert(keys)), seed=0)
    assert list(clients) == ["anna", "ben", "cleo"]
    np.testing.assert_array_equal(clients["anna"][0], x[[1, 3, 5]])
    np.testing.assert_array_equal(clients["cleo"][1], y[[0, 4]])
    np.testing.assert_array_equal(clients.sizes(), [3, 1, 2])


def test_natural_keys_may_be_integers():
    x, y = examples(4)
    scheme = data.NaturalKey(np.array([70, 7, 70, 7]))
    assert data.partition(x, y, clients=2, scheme=scheme, seed=0).ids == (7, 70)


class Loses(data.Scheme):
    """A scheme with a mistake."""

    def split(self, x, y, clients, rng):
        return np.array_split(np.arange(len(x) - 1), clients)


X, Y = examples(20)
REAL = np.linspace(0, 1, 20)
BAD = {
    "clients": (Y, 21, data.IID(), "at most as many clients as examples.*clients=21, 20"),
    "zero": (Y, 0, data.IID(), "integer of at least 1.*clients=0"),
    "fraction": (Y, 2.5, data.IID(), "clients=2.5"),
    "none": (Y, None, data.IID(), "number of clients for IID"),
    "shards": (Y, 11, data.Shards(2), "as many examples as shards.*20 examples, 22 shards"),
    "min_size": (Y, 5, data.Dirichlet(1.0, min_size=5), r"clients \* min_size = 25.*20 examples"),
    "real dirichlet": (REAL, 2, data.Dirichlet(1.0), "integer label.*float32.*bins=10"),
    "real shards": (REAL, 2, data.Shards(), "integer label.*bins=10"),
    "one-hot": (np.eye(10)[Y], 2, data.Shards(), "argmax"),
    "two outputs": ((Y, Y), 2, data.Dirichlet(1.0), "integer label.*tuple"),
    "class": (Y, 2, data.IID, "partition scheme.*instance"),
    "keys": (Y, None, data.NaturalKey([1, 2]), "one key per example.*2 keys, 20 examples"),
    "key count": (Y, 3, data.NaturalKey([1] * 20), "distinct keys, 1.*clients=3"),
    "loses": (Y, 4, Loses(), "every one of 20 rows once.*19 rows"),
    "nan": (np.full(20, np.nan), 4, data.IID(), "finite values in y of the data set"),
}


@pytest.mark.parametrize("case", BAD)
def test_impossible_requests_are_refused(case):
    y, clients, scheme, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        data.partition(X, y, clients=clients, scheme=scheme, seed=0)


@pytest.mark.parametrize("seed", [-1, 1.5, None, "a", True])
def test_bad_seeds_are_refused(seed):
    with pytest.raises(ValueError, match="seed to be an integer of at least 0"):
        data.partition(X, Y, clients=2, scheme=data.IID(), seed=seed)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: data.Dirichlet(0.0), "alpha to be a finite number above 0.*alpha=0.0"),
        (lambda: data.Dirichlet(-1.0), "alpha=-1.0"),
        (lambda: data.Dirichlet(float("nan")), "alpha=nan"),
        (lambda: data.Dirichlet("a"), "alpha='a'"),
        (lambda: data.Dirichlet(1.0, min_size=0), "min_size=0"),
        (lambda: data.Dirichlet(1.0, bins=1), "bins=1"),
        (lambda: data.Shards(0), "per_client=0"),
        (lambda: data.Shards(2, bins=2.5), "bins=2.5"),
        (lambda: data.LogNormalQuantity(-0.1), "sigma.*at least 0"),
        (lambda: data.PowerLawQuantity(float("inf")), "exponent=inf"),
        (lambda: data.FeatureSkew(1.1), "strength.*at most 1.*1.1"),
        (lambda: data.NaturalKey([0.5]), "integers or strings.*float64"),
        (lambda: data.NaturalKey([[1]]), r"one-dimensional.*\(1, 1\)"),
    ],
)
def test_bad_parameters_are_refused_at_once(make, message):
    with pytest.raises(ValueError, match=message):
        make()
