"""Quantity and feature skew against their definitions."""

import numpy as np

from tffed import data
from tffed.data.skews import proportional_sizes


def examples(total, width=4):
    rng = np.random.default_rng(0)
    return rng.normal(size=(total, width)).astype(np.float32), rng.integers(0, 10, total)


def test_proportional_sizes_against_fractions():
    weights = np.array([5.0, 3.0, 1.0, 1.0])
    np.testing.assert_array_equal(proportional_sizes(104, weights), [51, 31, 11, 11])
    np.testing.assert_array_equal(proportional_sizes(7, weights), [3, 2, 1, 1])
    np.testing.assert_array_equal(proportional_sizes(4, weights), [1, 1, 1, 1])


def test_power_law_sizes():
    x, y = examples(5000)
    clients = data.partition(x, y, clients=20, scheme=data.PowerLawQuantity(1.5), seed=1)
    sizes = np.sort(clients.sizes())[::-1]
    weights = np.arange(1, 21) ** -1.5
    np.testing.assert_allclose(sizes - 1, 4980 * weights / weights.sum(), atol=1)


def test_log_normal_sizes():
    # The logarithms of 2,000 sizes deviate by sigma; standard error sigma / sqrt(4000), and
    # rounding adds less than 1 %. 5 standard errors and that.
    x, y = examples(400_000, width=1)
    sizes = data.partition(x, y, clients=2000, scheme=data.LogNormalQuantity(0.8), seed=2).sizes()
    assert abs(np.log(sizes - 1).std() - 0.8) < 0.8 * (5 / np.sqrt(4000) + 0.01)
    equal = data.partition(x, y, clients=2000, scheme=data.LogNormalQuantity(0), seed=2).sizes()
    assert set(equal) == {200}


def component(x):
    """First principal component's scores by a singular value decomposition."""
    z = (x - x.mean(0)) / x.std(0)
    return z @ np.linalg.svd(z, full_matrices=False)[2][0]


def correlated(total):
    rng = np.random.default_rng(5)
    common = rng.normal(size=(total, 1))
    return common * [3.0, -2.0, 5.0] + rng.normal(size=(total, 3)) + [1.0, 100.0, 0.0]


def slices(x, strength, seed):
    rng = np.random.default_rng(seed)
    return data.FeatureSkew(strength).split(x.astype(np.float32), None, 6, rng)


def test_full_feature_skew_slices_the_first_component():
    x = correlated(600)
    scores = component(x)
    intervals = [(scores[part].min(), scores[part].max()) for part in slices(x, 1.0, seed=1)]
    slack = 1e-3 * scores.std()  # inputs are float32
    ordered = sorted(intervals)
    assert all(a[1] <= b[0] + slack for a, b in zip(ordered, ordered[1:], strict=False))
    lowest = {
        int(np.argmin([scores[part].min() for part in slices(x, 1.0, seed)])) for seed in range(8)
    }
    assert len(lowest) > 1  # which client has which slice is random


def test_feature_skew_strength_runs_from_iid_to_slices():
    x = correlated(600)
    scores = component(x)

    def between(strength):
        means = np.array([scores[part].mean() for part in slices(x, strength, seed=2)])
        return 100 * np.sum((means - scores.mean()) ** 2) / scores.var()

    # For IID clients this is chi-square with 5 degrees of freedom: above 31 with probability 1e-5.
    values = [between(strength) for strength in (0.0, 0.5, 1.0)]
    assert values[0] < 31 and 31 < values[1] < values[2], values


def test_feature_skew_takes_constant_features_and_nests():
    x, y = examples(40)
    nest = {"a": np.zeros((40, 2, 2), np.uint8), "b": x}
    clients = data.partition(nest, y, clients=4, scheme=data.FeatureSkew(), seed=1)
    assert set(clients.sizes()) == {10}
