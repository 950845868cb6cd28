"""Aggregators against NumPy."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import arrays, assert_close
from tests.shell import compiled, population
from tffed import random, tree
from tffed.aggregation import Stage, adaptive_clip, chain, clip, mean, median

SEED = random.seed(5)
LIKE = (tf.zeros((2, 3)), tf.zeros((2,)))
counts = st.lists(st.integers(1, 100_000), min_size=1, max_size=12)


def updates(number, scale=1.0, seed=0):
    """`number` updates like `LIKE`."""
    rng = np.random.default_rng(seed)
    return [
        tuple(tf.constant(scale * rng.normal(size=w.shape), tf.float32) for w in LIKE)
        for _ in range(number)
    ]


def report(aggregator, state, update, examples=1.0, client_state=None):
    """One client's report, through encode and decode."""
    shared = aggregator.shared(state)
    own = aggregator.client_init(LIKE) if client_state is None else client_state
    encoded, _ = aggregator.encode(shared, own, update, tf.cast(examples, tf.float32), SEED)
    return aggregator.report(shared, encoded, LIKE)


def aggregate(aggregator, values, examples=None, state=None):
    """(result, state, metrics) of a whole round."""
    state = aggregator.init(LIKE) if state is None else state
    examples = [1.0] * len(values) if examples is None else examples
    reports = [report(aggregator, state, *pair) for pair in zip(values, examples, strict=True)]
    if aggregator.collect:
        total = tree.map(lambda *leaves: tf.stack(leaves), *reports)
    else:
        total = reports[0]
        for one in reports[1:]:
            total = tree.add(total, one)
    return aggregator.finish(state, total, SEED)


def columns(values):
    """Leaf by leaf, the updates of all clients stacked."""
    return [np.stack(leaf) for leaf in zip(*values, strict=True)]


def norm(update):
    return np.sqrt(sum(np.square(a, dtype=np.float64).sum() for a in arrays(update)))


@settings(max_examples=40, deadline=None)
@given(counts)
def test_weights_sum_to_one(n):
    # Client k's update is the unit vector e_k, so the result is the vector of the weights.
    ones = np.eye(len(n), dtype=np.float32)
    by_examples, _, _ = aggregate(chain(mean()), [(tf.constant(e),) for e in ones], n)
    np.testing.assert_allclose(by_examples[0], np.array(n) / sum(n), rtol=1e-5)
    assert float(tf.reduce_sum(by_examples[0])) == pytest.approx(1, abs=1e-6)
    uniform, _, _ = aggregate(chain(mean("uniform")), [(tf.constant(e),) for e in ones], n)
    np.testing.assert_allclose(uniform[0], np.full(len(n), 1 / len(n)), rtol=1e-5)


def test_mean_of_no_clients_is_zero():
    aggregator = chain(clip(1.0), mean())
    nothing = tree.zeros_like(report(aggregator, aggregator.init(LIKE), updates(1)[0]))
    result, _, metrics = aggregator.finish(aggregator.init(LIKE), nothing, SEED)
    assert_close(result, LIKE, 0)
    assert float(metrics["clipped"]) == 0


def test_mean_streams_in_a_graph_of_one_trace():
    aggregator, traces = chain(clip(2.0), mean()), []
    state = aggregator.init(LIKE)

    @tf.function(autograph=False)
    def streamed(stacked, examples):
        traces.append(1)

        def body(k, total):
            update = tuple(leaf[k] for leaf in stacked)
            return k + 1, tree.add(total, report(aggregator, state, update, examples[k]))

        first = tree.zeros_like(report(aggregator, state, LIKE))
        more = lambda k, total: k < tf.size(examples)  # noqa: E731
        _, total = tf.while_loop(more, body, (tf.constant(0), first))
        return aggregator.finish(state, total, SEED)[0]

    specs = tuple(tf.TensorSpec([None, *w.shape], tf.float32) for w in LIKE)
    compiled = streamed.get_concrete_function(specs, tf.TensorSpec([None], tf.float32))
    for number in (1, 3, 40):
        values, n = updates(number, seed=number), np.arange(1, number + 1)
        scaled = [[a * min(1, 2.0 / norm(u)) for a in arrays(u)] for u in values]
        expected = [np.average(leaf, 0, weights=n) for leaf in columns(scaled)]
        stacked = tuple(tf.constant(leaf) for leaf in columns(values))
        assert_close(compiled(stacked, tf.constant(n, tf.float32)), expected, 1e-5)
    assert len(traces) == 1


@settings(max_examples=40, deadline=None)
@given(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3))
def test_clip_equals_numpy(scale, bound):
    values = updates(3, scale)
    factors = [min(1.0, bound / norm(u)) for u in values]
    for value, factor in zip(values, factors, strict=True):
        result, _, _ = aggregate(chain(clip(bound), mean()), [value])
        expected = [np.float64(factor) * a for a in arrays(value)]
        for a, e in zip(arrays(result), expected, strict=True):
            np.testing.assert_allclose(a, e, rtol=2e-5)
        assert norm(result) <= bound * (1 + 1e-5)


def test_clip_reports_the_fraction_and_leaves_zero_alone():
    values = [LIKE, *updates(1, 100.0), *updates(2, 1e-3)]
    result, _, metrics = aggregate(chain(clip(1.0), mean()), values)
    assert float(metrics["clipped"]) == 0.25
    assert np.isfinite(norm(result)) and norm(result) > 0.2


def test_adaptive_clip_follows_the_recursion():
    bound, quantile, rate = 2.0, 0.3, 0.7
    aggregator = chain(adaptive_clip(bound, quantile, rate), mean("uniform"))
    state, seen = None, []
    for round_number in range(6):
        values = updates(5, 0.4 * (1 + round_number % 3), seed=round_number)
        result, state, metrics = aggregate(aggregator, values, state=state)
        norms = np.array([norm(u) for u in values])
        scaled = [
            [a * min(1, bound / n) for a in arrays(u)] for u, n in zip(values, norms, strict=True)
        ]
        assert_close(result, [np.mean(leaf, 0) for leaf in columns(scaled)], 1e-5)
        assert float(metrics["clip_norm"]) == pytest.approx(bound, rel=1e-5)
        within = np.mean(norms <= bound)
        seen.append(within)
        bound *= np.exp(-rate * (within - quantile))
        assert float(state[0]) == pytest.approx(bound, rel=1e-5)
    assert len(set(seen)) > 2


def test_adaptive_clip_finds_the_median():
    aggregator = chain(adaptive_clip(1.0, quantile=0.5, learning_rate=0.4), mean("uniform"))
    values, state = updates(5), None
    for _ in range(25):
        _, state, _ = aggregate(aggregator, values, state=state)
    # The fraction within the bound jumps over 0.5 at the median; a step there is 4 %.
    assert float(state[0]) == pytest.approx(np.median([norm(u) for u in values]), rel=0.045)


def test_adaptive_clip_stays_without_clients():
    aggregator = chain(adaptive_clip(0.5), mean())
    state = aggregator.init(LIKE)
    nothing = tree.zeros_like(report(aggregator, state, updates(1)[0]))
    _, state, _ = aggregator.finish(state, nothing, SEED)
    assert float(state[0]) == 0.5


@pytest.mark.parametrize("number", [1, 2, 5, 6])
def test_median_equals_numpy(number):
    values = updates(number)
    result, _, _ = aggregate(chain(median()), values, range(1, number + 1))
    assert_close(result, [np.median(leaf, 0) for leaf in columns(values)], 1e-6)


def test_median_ignores_clients_left_out():
    aggregator, values = chain(median()), updates(4)
    reports = [report(aggregator, (), u) for u in values]
    reports.insert(1, tree.zeros_like(reports[0]))
    reports.insert(4, tree.zeros_like(reports[0]))
    total = tree.map(lambda *leaves: tf.stack(leaves), *reports)
    result, _, _ = aggregator.finish((), total, SEED)
    assert_close(result, [np.median(leaf, 0) for leaf in columns(values)], 1e-6)
    none = tree.map(lambda leaf: tf.zeros_like(leaf[:2]), total)
    assert_close(aggregator.finish((), none, SEED)[0], LIKE, 0)


def affine(factor, offset, log):
    """A stage that sends factor * u + offset, counts its rounds, and keeps them in its state."""

    def encode(shared, client_state, value, seed):
        log.append(("encode", factor, int(shared), tuple(seed.numpy())))
        sent = tree.map(lambda v: factor * v + offset, value)
        return sent, client_state + 1.0, {"factor": tf.constant(factor)}

    def decode(shared, payload, like):
        log.append(("decode", factor, int(shared)))
        return tree.map(lambda p: (p - offset) / factor, payload)

    def finish(state, total, stats, clients, seed):
        log.append(("finish", factor, tuple(seed.numpy())))
        metrics = {f"factor {factor}": stats["factor"], "clients": clients}
        return tree.map(lambda t: factor * t + offset, total), state + 1, metrics

    return Stage(
        init=lambda like: tf.constant(int(10 * factor)),
        shared=lambda state: state + 1,
        client_init=lambda like: tf.constant(0.0),
        encode=encode,
        decode=decode,
        finish=finish,
    )


def test_one_stage_down_needs_no_list():
    stage = Stage(weights=True, name="one")
    assert chain(mean(), down=stage).name == chain(mean(), down=[stage]).name


def test_chain_encodes_left_to_right_and_decodes_right_to_left():
    log = []
    aggregator = chain(affine(2.0, 0.0, log), affine(1.0, 3.0, log), mean())
    state, update = aggregator.init(LIKE), updates(1)[0]
    shared, own = aggregator.shared(state), aggregator.client_init(LIKE)
    encoded, own = aggregator.encode(shared, own, update, tf.constant(4.0), SEED)
    assert_close(encoded.payload.value, [2 * a + 3 for a in arrays(update)], 1e-6)
    assert [float(s) for s in own] == [1.0, 1.0]
    decoded = aggregator.report(shared, encoded, LIKE)
    assert_close(decoded.total, [4 * a for a in arrays(update)], 1e-5)
    total = tree.add(decoded, decoded)
    result, state, metrics = aggregator.finish(state, total, SEED)
    # finish: (2 * sum) + 3 on the sum 8 u, then the mean over a weight of 8.
    assert_close(result, [(16 * a + 3) / 8 for a in arrays(update)], 1e-5)
    assert [int(s) for s in state] == [21, 11]
    assert {k: float(v) for k, v in metrics.items()} == {
        "factor 2.0": 4.0,
        "factor 1.0": 2.0,
        "clients": 2.0,
        "clients_1": 2.0,  # both stages report by that name
    }
    order = [entry[:2] for entry in log]
    assert order == [
        ("encode", 2.0),
        ("encode", 1.0),
        ("decode", 1.0),
        ("decode", 2.0),
        ("finish", 2.0),
        ("finish", 1.0),
    ]
    assert [entry[2] for entry in log[:4]] == [21, 11, 11, 21]  # what `shared` made of the states
    assert log[0][3] != log[1][3] and log[4][2] != log[5][2]  # every stage has its own seed


def test_a_norm_that_underflows_clips_nothing():
    """And one that does not is clipped as by NumPy."""
    small, large = updates(1, scale=1e-25)[0], updates(1)[0]
    for stage, bound in ((clip(0.5), 0.5), (adaptive_clip(0.5), 0.5)):
        aggregator = chain(stage, mean())
        for value in (small, large):
            found, _, _ = aggregate(aggregator, [value])
            factor = 1.0 if value is small else bound / norm(value)
            expected = [a.astype(np.float64) * factor for a in arrays(value)]
            for a, b in zip(arrays(found), expected, strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-5)


def test_bound_is_that_of_the_stages():
    assert chain(mean()).bound is None
    assert chain(clip(2.0), mean()).bound == 2.0
    assert chain(clip(2.0), clip(0.5), clip(1.0), median()).bound == 0.5
    assert chain(clip(2.0), Stage(), mean()).bound is None
    assert chain(adaptive_clip(1.0), mean()).bound is None


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: chain(), "Expected stages and then one reducer"),
        (lambda: chain(clip(1.0)), "Expected stages and then one reducer"),
        (lambda: chain(mean(), clip(1.0)), "Expected stages and then one reducer"),
        (lambda: chain(mean(), mean()), "Expected stages and then one reducer"),
        (lambda: chain(clip, mean()), "Expected stages and then one reducer"),
        (lambda: clip(0), "`norm` must be positive"),
        (lambda: clip(-1.0), "`norm` must be positive"),
        (lambda: clip(float("inf")), "`norm` must be positive"),
        (lambda: clip(float("nan")), "`norm` must be positive"),
        (lambda: clip("1"), "`norm` must be positive"),
        (lambda: adaptive_clip(0.0), "`norm` must be positive"),
        (lambda: adaptive_clip(quantile=1.0), "`quantile` must be in"),
        (lambda: adaptive_clip(quantile=0), "`quantile` must be in"),
        (lambda: adaptive_clip(learning_rate=-1), "`learning_rate` must be positive"),
        (lambda: mean("size"), "`weighting` must be one of"),
    ],
)
def test_refuses(make, message):
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "Received: " in str(error.value)


def test_an_update_whose_norm_overflows_is_not_clipped_to_zero():
    stage = clip(1.0)
    value, _, _ = stage.encode((), (), (tf.constant([1e30, 1.0]),), random.seed(0))
    assert np.isnan(value[0].numpy()).all()


@pytest.mark.parametrize("norm", [True, 0, -1.0, float("inf"), float("nan"), "1"])
def test_wrong_clipping_norms_are_refused(norm):
    with pytest.raises(ValueError, match="`norm` must be positive"):
        clip(norm)


def test_a_numpy_norm_is_a_number():
    assert chain(clip(np.float32(2.0)), mean()).bound == 2.0


def test_bounded_weights_and_a_fixed_denominator():
    values, n = updates(3), np.array([5.0, 10.0, 400.0])
    w = np.minimum(n, 10) / 10
    expected = [np.einsum("k,k...->...", w, column) / 4 for column in columns(values)]
    aggregator = chain(mean("examples", max_weight=10, denominator=4))
    assert_close(aggregate(aggregator, values, n)[0], expected)
    assert aggregator.denominator == 4 and chain(mean()).denominator is None
    expected = [np.einsum("k,k...->...", w, column) / w.sum() for column in columns(values)]
    assert_close(aggregate(chain(mean("examples", max_weight=10)), values, n)[0], expected)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"max_weight": 0}, "`max_weight` must be positive"),
        ({"denominator": -1.0}, "`denominator` must be positive"),
        ({"weighting": "uniform", "max_weight": 3}, "max_weight=3. Leave it out"),
    ],
)
def test_mean_refuses(arguments, words):
    with pytest.raises(ValueError, match=words):
        mean(**arguments)


def test_two_stages_that_report_by_one_name_are_both_in_the_history():
    fed = compiled(aggregator=chain(clip(1e-6), clip(1e3), mean()))
    history = fed.fit(population(), rounds=1, verbose=0).history
    # The first stage clips every client, after which the second has nothing to clip.
    assert (history["clipped"], history["clipped_1"]) == ([1.0], [0.0])
