"""Sparse updates against NumPy and against the papers' formulas."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.compression.stages import LIKE, SIZE, decoded, encoded, flat, normal
from tffed import Stage, chain, mean, random, tree
from tffed.compression import prune, random_k, rotate, threshold, top_k
from tffed.compression.selection import distinct, largest, place, where

# Magnitudes with many ties, zeros of both signs, infinities and subnormal numbers.
values = st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, -2.0, 0.5, 1e-40, -3e38, np.inf])


def numpy_largest(vector, k):
    """Positions from 0 of the k largest magnitudes, the first of equal ones; by sorting."""
    return np.sort(np.argsort(-np.abs(vector), kind="stable")[:k])


@settings(max_examples=60, deadline=None)
@given(st.lists(values, min_size=1, max_size=150), st.data())
def test_the_largest_are_those_of_a_sort_with_ties_by_position(entries, data):
    vector = np.array(entries, np.float32)
    k = data.draw(st.integers(1, len(vector)))
    found, positions = largest(tf.constant(vector), k)
    expected = numpy_largest(vector, k)
    np.testing.assert_array_equal(positions.numpy() - 1, expected)
    assert found.numpy().tobytes() == vector[expected].tobytes()


@pytest.mark.parametrize("k", [1, 100, 30_000])
def test_the_largest_are_the_same_compiled_in_a_graph_and_under_xla(k):
    rng = np.random.default_rng(k)
    vector = rng.normal(size=40_003).astype(np.float32).round(2)  # a few hundred magnitudes
    expected = numpy_largest(vector, k)
    for jit in (False, True):
        run = tf.function(lambda v: largest(v, k), jit_compile=jit, autograph=False)
        found, positions = run(tf.constant(vector))
        np.testing.assert_array_equal(positions.numpy() - 1, expected)
        np.testing.assert_array_equal(found, vector[expected])


@pytest.mark.parametrize("size", [1, 31, 32, 33, 40_000])
def test_where_and_place_are_inverse(size):
    vector = np.random.default_rng(size).normal(size=size).astype(np.float32)
    mask = np.abs(vector) > 0.7
    kept, positions = where(tf.constant(mask), tf.constant(vector))
    count = mask.sum()
    np.testing.assert_array_equal(positions.numpy()[:count] - 1, np.flatnonzero(mask))
    np.testing.assert_array_equal(kept.numpy()[:count], vector[mask])
    assert not kept.numpy()[count:].any() and not positions.numpy()[count:].any()
    np.testing.assert_array_equal(place(kept, positions, size), np.where(mask, vector, 0))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, SIZE), st.floats(1e-3, 1e3))
def test_top_k_is_a_contraction(seed, k, scale):
    update = normal(seed, scale)
    x, c = flat(update), flat(decoded(top_k(k), update))
    np.testing.assert_array_equal(np.flatnonzero(c), numpy_largest(x, k))
    np.testing.assert_array_equal(c[c != 0], x[c != 0])
    assert np.sum((x - c) ** 2) <= (1 - k / SIZE) * np.sum(x**2) * (1 + 1e-6)
    if k == SIZE:
        np.testing.assert_array_equal(c, x)


def test_top_k_of_equal_magnitudes_meets_its_bound():
    update = tree.map(lambda leaf: leaf + 2.0, LIKE)
    x, c = flat(update), flat(decoded(top_k(5), update))
    np.testing.assert_array_equal(np.flatnonzero(c), np.arange(5))
    assert np.sum((x - c) ** 2) == pytest.approx((1 - 5 / SIZE) * np.sum(x**2))


@pytest.mark.parametrize(("k", "counts"), [(0.25, (8, 2, 3, 1)), (13, (8, 2, 4, 1))])
def test_top_k_per_tensor_keeps_a_share_of_each(k, counts):
    assert [leaf.shape.num_elements() for leaf in LIKE] == [30, 6, 12, 2]
    update = tuple(leaf * 10.0**i for i, leaf in enumerate(normal(3)))
    found = decoded(top_k(k, per_tensor=True), update)
    for leaf, got, count in zip(update, found, counts, strict=True):
        kept = numpy_largest(flat(leaf), count)
        np.testing.assert_array_equal(flat(got)[kept], flat(leaf)[kept])
        assert np.count_nonzero(got) == count


def test_a_share_is_rounded_up_once():
    sizes = {(0.07, 100): 7, (0.01, 199_210): 1993, (0.001, 5): 1, (0.5, 7): 4, (7, 7): 7}
    for (k, size), count in sizes.items():
        for stage in (top_k(k), random_k(k)):
            assert stage.passes((tf.TensorSpec([size]),)).shape == [count]


def test_positions_ascend_and_hand_the_values_on():
    payload = encoded(top_k(9), normal(1))
    (side,) = payload.side
    assert side["indices"].dtype == tf.int32 and (np.diff(side["indices"]) > 0).all()
    assert side["indices"][0] >= 1 and side["indices"][-1] <= SIZE
    np.testing.assert_array_equal(payload.value, flat(normal(1))[side["indices"].numpy() - 1])
    (codecs,) = chain(top_k(9), mean()).codecs(_update(payload)).payload.side
    assert codecs["indices"].most == SIZE


def _update(payload):
    from tffed.aggregation.chain import EncodedUpdate

    return EncodedUpdate(payload, tf.constant(1.0), ({},))


@pytest.mark.parametrize("stage", [top_k(3), top_k(0.1, per_tensor=True), random_k(3)])
def test_stages_after_it_work_on_the_values(stage):
    half = Stage(encode=lambda sh, st, v, s: (0.5 * v, st, {}), decode=lambda sh, p, like: 2 * p)
    update = normal(4)
    assert flat(decoded(stage, update)).tobytes() == flat(decoded((stage, half), update)).tobytes()


@pytest.mark.parametrize("stage", [top_k(1), random_k(1), random_k(1, unbiased=False)])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_reaches_the_server(stage, bad):
    for k in range(4):
        update = [leaf.numpy() for leaf in normal(5)]
        update[k].flat[-1] = bad
        found = flat(decoded(stage, tuple(tf.constant(leaf) for leaf in update)))
        assert not np.isfinite(found).all()


def test_random_k_is_unbiased_with_the_papers_variance():
    """False alarms below 1e-6: k n = 50 means at 6.5 standard errors, and one mean square at 6."""
    update, k, runs = normal(6), 20, 4000
    x = flat(update).astype(np.float64)
    stage = random_k(k)
    seeds = tf.constant(np.random.default_rng(0).integers(0, 2**31 - 1, (runs, 2)), tf.int32)
    once = lambda seed: tf.concat(  # noqa: E731
        [tf.reshape(leaf, [-1]) for leaf in decoded(stage, update, seed)], 0
    )
    found = tf.function(lambda s: tf.map_fn(once, s, tf.float32), jit_compile=True)(seeds).numpy()
    assert (np.count_nonzero(found, axis=1) == k).all()
    scaled = np.abs(found[:, :] - (found != 0) * x * SIZE / k)
    assert scaled.max() < 1e-4
    # Each entry is n/k x_i with probability k/n, so its variance is (n/k - 1) x_i².
    deviation = np.sqrt((SIZE / k - 1) * x**2 / runs)
    assert (np.abs(found.mean(0) - x) <= 6.5 * deviation).all()
    errors = np.sum((found - x) ** 2, axis=1)
    assert abs(errors.mean() - (SIZE / k - 1) * np.sum(x**2)) <= 6 * errors.std() / runs**0.5


def test_random_k_without_the_factor_is_a_contraction_in_the_mean():
    update = tree.map(lambda leaf: leaf + 3.0, LIKE)  # all entries alike: the error is exact
    x, c = flat(update), flat(decoded(random_k(20, unbiased=False), update))
    assert np.sum((x - c) ** 2) == pytest.approx((1 - 20 / SIZE) * np.sum(x**2), rel=1e-6)


@pytest.mark.parametrize(("count", "size"), [(1, 2), (2, 3), (2, 5), (5, 33)])
def test_positions_are_drawn_like_a_random_sample(count, size):
    """Pairs of positions fit a uniform law: χ² at a false alarm rate of 1e-6 a case."""
    from scipy import stats

    runs = 6000
    seeds = tf.constant(np.random.default_rng(size).integers(0, 2**31 - 1, (runs, 2)), tf.int32)
    draw = tf.function(
        lambda s: tf.map_fn(lambda seed: distinct(count, size, seed), s), jit_compile=True
    )
    found = draw(seeds).numpy()
    assert found.min() >= 1 and found.max() <= size
    assert (np.diff(np.sort(found, axis=1), axis=1) > 0).all()
    singles = np.bincount(found[:, 0] - 1, minlength=size)
    assert stats.chisquare(singles).pvalue > 1e-6
    if count > 1:
        pairs = np.bincount((found[:, 0] - 1) * size + found[:, 1] - 1, minlength=size**2)
        apart = ~np.eye(size, dtype=bool).ravel()
        assert stats.chisquare(pairs[apart]).pvalue > 1e-6


def test_positions_are_the_same_compiled_and_not():
    seed = random.seed(9)
    with_xla = tf.function(lambda: distinct(3000, 1_663_370, seed), jit_compile=True)()
    from tffed.compression.selection import _distinct

    plain = _distinct(3000, 1_663_370, seed).numpy()
    np.testing.assert_array_equal(with_xla, plain)
    np.testing.assert_array_equal(distinct(3000, 1_663_370, seed), plain)
    assert len(set(plain)) == 3000 and 1 <= plain.min() and plain.max() <= 1_663_370


def test_secret_seeds_travel_as_public_ones():
    secret = random.secret(4)
    payload = encoded(random_k(5), normal(1), seed=secret)
    (side,) = payload.side
    assert side["seed"].dtype == tf.int32
    assert flat(decoded(random_k(5), normal(1), seed=secret)).any()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.05, 3.0))
def test_threshold_keeps_what_reaches_it(seed, tau):
    update = normal(seed)
    tau = float(np.float32(tau))
    x, c = flat(update), flat(decoded(threshold(tau), update))
    np.testing.assert_array_equal(c, np.where(np.abs(x) >= tau, x, 0))


def test_threshold_pads_at_the_end_and_reports_the_share():
    update = tuple(tf.constant(leaf) for leaf in normal(2))
    payload = encoded(threshold(1.0), update)
    (side,), x = payload.side, flat(update)
    count = (np.abs(x) >= 1).sum()
    assert 0 < count < SIZE and payload.value == ()
    assert np.flatnonzero(side["values"]).tolist() == list(range(count))
    assert np.flatnonzero(side["indices"]).tolist() == list(range(count))
    aggregator = chain(threshold(1.0), mean())
    shared = aggregator.shared(aggregator.init(LIKE))
    own, one = aggregator.client_init(LIKE), tf.constant(1.0)
    sent, _ = aggregator.encode(shared, own, update, one, random.seed(0))
    report = aggregator.report(shared, sent, LIKE)
    _, _, metrics = aggregator.finish(aggregator.init(LIKE), report, random.seed(0))
    assert float(metrics["kept"]) == pytest.approx(count / SIZE)
    kept = flat(decoded(threshold(1.0), (*update[:3], tf.constant([np.nan, 0.0]))))
    assert np.isnan(kept).sum() == 1


@pytest.mark.parametrize("stage", [top_k, random_k])
@pytest.mark.parametrize("k", [0, -1, 1.0, 0.0, 1.5, True, "1", None, float("nan")])
def test_k_is_a_number_or_a_share(stage, k):
    with pytest.raises(ValueError, match=r"Received: k="):
        stage(k)


def test_numbers_of_numpy_are_numbers():
    for k, same in (
        *((np.int64(3), 3), (np.uint8(3), 3), (np.float64(0.3), 0.3)),
        # The float32 nearest to 0.3 is above it, and 0.3 of 50 entries are 15.
        *((np.float32(0.3), 0.3), (np.float16(0.1), 0.1)),
    ):
        assert top_k(k).passes(LIKE) == top_k(same).passes(LIKE)
        assert random_k(k).passes(LIKE) == random_k(same).passes(LIKE)
    assert rotate(np.int32(16)).passes(LIKE) == rotate(16).passes(LIKE)
    for make in (top_k, random_k, rotate, lambda begin: prune(0.5, begin, 4)):
        for bad in (True, np.bool_(True), float("nan"), np.float32("nan")):
            with pytest.raises(ValueError, match="Received: "):
                make(bad)
    schedule = prune(0.5, np.int64(1), np.int32(3)), prune(0.5, 1, 3)
    weights = (tf.constant(np.random.default_rng(0).normal(size=(4, 5)), tf.float32),)
    for k in (0, 1, 2, 3):
        masks = [s.advance(s.init(weights), weights, tf.constant(k))[0] for s in schedule]
        np.testing.assert_array_equal(*masks)


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="must not exceed the number of entries, 50"):
        top_k(51).passes(LIKE)
    with pytest.raises(ValueError, match="`tau` must be positive"):
        threshold(0.0)
    with pytest.raises(ValueError, match="Put it before"):
        chain(threshold(0.1), top_k(3), mean())
