"""Adaptive clipping against Andrew et al.'s recursion, tree noise against Honaker's estimator."""

from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from tests.helpers import assert_close, assert_same_bits, needs_tf_privacy
from tests.privacy.stage_rounds import SECRET, SMALL, clipped_sum, make_round, updates
from tffed import random, tree
from tffed.privacy import queries, tree_noise
from tffed.privacy.stages import adaptive_gaussian, tree_gaussian

pytestmark = needs_tf_privacy


def test_the_clip_follows_andrews_recursion():
    bound, quantile, rate, expected = 2.0, 0.3, 0.7, 6
    stage = adaptive_gaussian(
        bound,
        0,
        quantile=quantile,
        learning_rate=rate,
        count_stddev=0,
        expected_clients=expected,
    )
    run, state = make_round(stage, SMALL)
    rng, seen = np.random.default_rng(1), set()
    for number in range(8):
        norms = rng.lognormal(0.5, 0.8, 5)  # one fewer than expected
        values = updates(norms, seed=number)
        total, state, metrics = run(state, values, number)
        assert_close(total, clipped_sum(values, bound), 1e-5)
        assert float(metrics["clip_norm"]) == pytest.approx(bound, rel=1e-5)
        within = (np.sum(norms <= bound) - 2.5) / expected + 0.5
        bound *= np.exp(-rate * (within - quantile))
        assert float(state[0]) == pytest.approx(bound, rel=1e-5)
        seen.add(int(np.sum(norms <= bound)))
    assert len(seen) > 2


def test_the_clip_finds_the_median_of_norms_in_spite_of_the_noise():
    norms = np.random.default_rng(2).lognormal(1.0, 0.3, 21)
    stage = adaptive_gaussian(0.5, 0.5, expected_clients=21)
    run, state = make_round(stage, SMALL)
    values, bounds = updates(norms), []
    for number in range(45):
        _, state, metrics = run(state, values, number)
        bounds.append(float(metrics["clip_norm"]))
    assert bounds[0] == pytest.approx(0.5)
    # Noise of 1.05 in 21 clients moves the bound by 1 % a round, around the median.
    assert np.median(bounds[25:]) == pytest.approx(np.median(norms), rel=0.05)


def test_the_count_is_noised_and_not_with_the_noise_of_the_sum():
    many, stddev, rate = 10_000, 1.5, 0.2
    stage = adaptive_gaussian(1.0, 0.8, count_stddev=stddev, expected_clients=40)

    @tf.function(autograph=False)
    def draw(seeds):
        def one(seed):
            stats, clients = {"below": tf.constant(3.0)}, tf.constant(20.0)
            total, bound, _ = stage.finish(tf.constant(1.0), (tf.zeros(()),), stats, clients, seed)
            return total[0], bound

        return tf.map_fn(one, seeds, fn_output_signature=(tf.float32, tf.float32))

    steps = tf.stack([tf.range(many, dtype=tf.int64), tf.zeros(many, tf.int64)], 1)
    total, bound = (np.asarray(a, np.float64) for a in draw(SECRET + 1000 * steps))
    count = (-np.log(bound) / rate + 0.5 - 0.5) * 40
    # Each within 5 standard errors: wrong for one seed in a million, and the seed is fixed.
    error = 5 / np.sqrt(2 * many)
    assert np.std(count) == pytest.approx(stddev, rel=error)
    assert np.mean(count) == pytest.approx(3.0, abs=5 * stddev / np.sqrt(many))
    assert np.std(total) == pytest.approx((0.8**-2 - 3.0**-2) ** -0.5, rel=error)
    assert abs(np.corrcoef(count, total)[0, 1]) < 5 / np.sqrt(many)


@pytest.mark.parametrize("z, stddev", [(0.5, 0.6), (1.0, 5.0), (3.0, 1.6)])
def test_sum_and_count_together_cost_what_the_multiplier_says(z, stddev):
    accounting = pytest.importorskip("dp_accounting")

    def epsilon(*multipliers):
        accountant = accounting.rdp.RdpAccountant()
        for multiplier in multipliers:
            accountant.compose(accounting.GaussianDpEvent(multiplier), 10)
        return accountant.get_epsilon(1e-5)

    both = epsilon(queries.multiplier_of_sum(z, stddev), stddev / 0.5)
    assert both == pytest.approx(epsilon(z), rel=1e-9)


def honaker(rounds, period):
    """The matrix from the nodes' noise to the noise of the cumulative sums of `rounds` rounds.

    A node's estimate is its own noise plus the mean of its children's, over 2 - 2**-level; of a sum
    of t rounds, those of the subtrees that make up t. A tree that is over keeps its last noise.
    """
    rows, nodes = [], 0
    for begin in range(0, rounds, period):
        subtrees, before = [], rows[-1] if rows else {}
        for _ in range(min(period, rounds - begin)):
            node, level = {nodes: 1.0}, 0
            nodes += 1
            while subtrees and subtrees[-1][0] == level:
                _, left = subtrees.pop()
                children = {k: (left.get(k, 0) + node.get(k, 0)) / 2 for k in left | node}
                node, level = children | {nodes: 1.0}, level + 1
                nodes += 1
            subtrees.append((level, node))
            row = dict(before)
            for height, estimate in subtrees:
                for k, v in estimate.items():
                    row[k] = row.get(k, 0) + v / (2 - 0.5**height)
            rows.append(row)
    matrix = np.zeros((rounds, nodes))
    for t, row in enumerate(rows):
        matrix[t, list(row)] = list(row.values())
    return matrix


def cumulative_noise(stage, like, rounds):
    run, state = make_round(stage, like)
    sums, total = [], 0
    for number in range(rounds):
        noise, new, _ = run(state, [like], number)
        assert tree.spec(new) == tree.spec(state)
        state = new
        total = total + np.concatenate([np.ravel(a) for a in noise]).astype(np.float64)
        sums.append(total)
    return np.array(sums)


def test_honakers_matrix_has_the_variances_of_the_paper():
    variances = np.square(honaker(40, 40)).sum(1)
    for t, variance in enumerate(variances, 1):
        bits = [j for j in range(6) if t >> j & 1]
        assert variance == pytest.approx(sum(1 / (2 - 2.0**-j) for j in bits))


def check_covariance(period):
    like, rounds, stddev = (tf.zeros((200, 500)), tf.zeros((50_000,))), 11, 0.7 * 1.5
    sums = cumulative_noise(tree_gaussian(1.5, 0.7, period=period), like, rounds)
    matrix = honaker(rounds, period)
    expected, found = stddev**2 * matrix @ matrix.T, sums @ sums.T / sums.shape[1]
    variances = np.diag(expected)
    error = np.sqrt((np.outer(variances, variances) + expected**2) / sums.shape[1])
    # Each of 66 entries within 5 standard errors: wrong for 4 of 100,000 seeds; the seed is fixed.
    assert np.all(np.abs(found - expected) < 5 * error)


@pytest.mark.parametrize("period", [1, 5])
def test_cumulative_tree_noise_has_honakers_covariance_and_restarts(period):
    check_covariance(period)


def test_nodes_that_share_a_seed_are_noticed(monkeypatch):
    same = SimpleNamespace(fold_in=lambda seed, number: seed)
    monkeypatch.setattr(tree_noise, "random", same)
    with pytest.raises(AssertionError):
        check_covariance(5)


def test_a_state_that_was_stored_gives_the_same_bits_and_another_secret_others():
    run, state = make_round(tree_gaussian(1.0, 1.0, period=5), SMALL)
    one, other = (run(state, [SMALL], 0, secret)[0] for secret in (SECRET, random.secret(8)))
    assert np.abs(one[0] - other[0]).min() > 0
    for number in range(7):
        stored = [leaf.numpy() for leaf in tf.nest.flatten(state)]
        back = tf.nest.pack_sequence_as(state, [tf.constant(a) for a in stored])
        assert_same_bits(run(state, [SMALL], number), run(back, [SMALL], number))
        _, state, _ = run(state, [SMALL], number)


def test_another_multiplier_begins_another_tree():
    like = (tf.zeros((100_000,)),)
    run, state = make_round(tree_gaussian(1.0, 1.0, period=4), like)
    louder, _ = make_round(tree_gaussian(1.0, 3.0, period=4), like)
    first, state, _ = run(state, [like], 0)
    second, state, _ = run(state, [like], 1)
    rest = []
    for number in (2, 3, 4):
        noise, state, _ = louder(state, [like], number)
        rest.append(noise[0])
    before = first[0] + second[0]
    # A tree of rounds 3 and 4, then, at the period, another; each within 5 standard errors.
    for noise, variance in ((rest[0], 9), (rest[0] + rest[1], 9 / 1.5), (rest[2], 9)):
        assert np.var(noise) == pytest.approx(variance, rel=5 * np.sqrt(2 / 100_000))
        assert abs(np.corrcoef(noise, before)[0, 1]) < 5 / np.sqrt(100_000)
