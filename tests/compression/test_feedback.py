"""What is sent later: error feedback and lazy updates."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.compression.stages import LIKE, SEED, decoded, flat, normal, whole
from tests.shell import compiled, population
from tffed import (
    Stage,
    adaptive_clip,
    chain,
    clip,
    fed_avg,
    majority,
    mean,
    median,
    random,
    tree,
)
from tffed.compression import (
    cast,
    drive,
    eden,
    error_feedback,
    lazy,
    power_sgd,
    quantize,
    random_k,
    rotate,
    sign,
    ternary,
    threshold,
    top_k,
)
from tffed.privacy import gaussian
from tffed.wire import Gate, Gated


class Client:
    """One client's way through a stage, round by round."""

    def __init__(self, *stages, like=LIKE):
        self.stage, self.like = whole(stages), tree.spec(like)
        self.state = self.stage.client_init(self.like)
        self.server = self.stage.init(like)

        self.step = tf.function(self._step, autograph=False)

    def _step(self, server, state, update, seed):
        shared = self.stage.shared(server)
        payload, state, stats = self.stage.encode(shared, state, update, seed)
        return self.stage.decode(shared, payload, self.like), state, stats

    def send(self, update, seed=SEED):
        found, self.state, self.stats = self.step(self.server, self.state, update, seed)
        return found

    def finish(self, clients=1.0):
        _, self.server, metrics = self.stage.finish(
            self.server, (), self.stats, tf.constant(clients), SEED
        )
        return {name: float(value) for name, value in metrics.items()}


@settings(max_examples=8, deadline=None)
@given(
    st.sampled_from(
        [
            (top_k(3),),
            (top_k(0.2, per_tensor=True),),
            (random_k(10, unbiased=False),),
            (threshold(0.5),),
            (power_sgd(2, min_size=1), top_k(12)),
        ]
    ),
    st.integers(0, 1000),
)
def test_all_that_was_sent_is_all_that_was_put_in_less_the_last_residual(stages, seed):
    client, put, sent = Client(error_feedback(*stages)), 0.0, 0.0
    for k in range(6):
        update = normal(seed + k)
        put += flat(update)
        sent += flat(client.send(update, random.seed(k)))
    residual, _ = client.state[0]
    np.testing.assert_allclose(sent, put - flat(residual), atol=2e-5)
    assert np.abs(flat(residual)).max() > 0.01


def test_decay_shrinks_the_residual():
    client, residual = Client(error_feedback(top_k(2), decay=0.5)), 0.0
    for k in range(4):
        target = flat(normal(k)) + 0.5 * residual
        sent = np.where(np.isin(np.arange(50), np.argsort(-np.abs(target))[:2]), target, 0)
        np.testing.assert_allclose(flat(client.send(normal(k))), sent, atol=1e-6)
        residual = target - sent


def quadratic_descent(stage, steps=400, rate=0.02):
    """The last distance from the optimum, clients' gradients going through the stage.

    Two clients whose gradients differ far more than what they have in common.
    """
    like = (tf.zeros(3),)
    clients = [Client(stage, like=like) for _ in range(2)]
    offsets = [np.array([10.0, 1.0, -1.0]), np.array([-10.0, 1.0, -1.0])]
    w = np.zeros(3)
    for _ in range(steps):
        gradients = [w - offset for offset in offsets]
        sent = [
            flat(c.send((tf.constant(g, tf.float32),)))
            for c, g in zip(clients, gradients, strict=True)
        ]
        w = w - rate * np.mean(sent, axis=0)
    return np.linalg.norm(w - np.mean(offsets, axis=0))


def test_feedback_converges_where_top_k_alone_stalls():
    # The largest entries, ±10, cancel; alone they are all that is ever sent.
    assert quadratic_descent(top_k(1)) == pytest.approx(2**0.5, rel=1e-6)
    assert quadratic_descent(error_feedback(top_k(1))) < 0.3


COARSE = [
    *(ternary(), ternary(2.5), random_k(0.1), random_k(0.4), quantize(1)),
    *(quantize(2, scale="max"), quantize(7, scale="l2"), quantize(4, scale="l2", block=256)),
    *(whole((rotate(4096), quantize(1, block=4096))), whole((top_k(0.9), quantize(7, scale="l2")))),
]
FINE = [
    *(quantize(3), quantize(3, scale="max"), quantize(2, scale="max", stochastic=False)),
    *(quantize(8, scale="l2"), quantize(4, scale="l2", block=128), quantize(8)),
    *(random_k(0.6, unbiased=False), random_k(0.1, unbiased=False), sign(), eden(1), drive()),
    cast("bfloat16"),
    *(top_k(0.01), whole((top_k(0.05), quantize(8))), power_sgd(2, min_size=1), threshold(1.0)),
    whole((rotate(256), quantize(2, block=256))),
]


@pytest.mark.parametrize(
    ("stage", "expected"), [(s, True) for s in COARSE] + [(s, False) for s in FINE],
    ids=lambda value: getattr(value, "name", value),
)
def test_stages_whose_errors_are_as_large_as_the_value_say_so(stage, expected):
    update = normal(1, like=(tf.zeros((100, 199)), tf.zeros(100)))
    error = np.mean(
        [np.square(flat(decoded(stage, update, random.seed(k))) - flat(update)).sum()
         for k in range(3)]
    ) / np.square(flat(update)).sum()
    assert whole(stage).expands(tree.spec(update)) is expected
    assert error > 0.75 if expected else error < 1.0


LONG = (tf.zeros(2000),)


def residual_norm(stage, rounds):
    """That of a client whose feedback is the stage's, checked or not."""
    client = Client(error_feedback(stage._replace(expands=lambda like: False)), like=LONG)
    for k in range(rounds):
        client.send(normal(k, like=LONG), random.seed(k))
    return np.linalg.norm(flat(client.state[0][0]))


def test_residuals_of_coarse_stages_would_grow_without_end():
    with pytest.raises(ValueError, match="add up without end. Received: ternary.*2,000 entries"):
        Client(error_feedback(ternary()), like=LONG)
    for stage in (quantize(4, scale="l2"), random_k(0.1)):
        assert residual_norm(stage, 40) > 50 * residual_norm(stage, 5)
    for stage in (quantize(6, scale="l2"), quantize(2)):
        assert residual_norm(stage, 40) < 2 * residual_norm(stage, 5)


def test_coarse_stages_are_refused_before_training():
    with pytest.raises(ValueError, match="add up without end"):
        small(chain(error_feedback(random_k(0.5)), mean()))
    with pytest.raises(ValueError, match="add up without end.*quantize with more bits"):
        small(chain(error_feedback(quantize(1, block=8)), mean()))


def test_feedback_keeps_what_its_stages_are():
    inner = Stage(name="inner", weights=True, ends=True)
    assert error_feedback(inner).ends
    assert error_feedback(top_k(3)).name == "error_feedback(top_k(3))"
    assert error_feedback(top_k(3), decay=0.5).name == "error_feedback(top_k(3), decay=0.5)"
    assert error_feedback(top_k(3)).passes(LIKE).shape == [3]
    assert chain(clip(1.0), error_feedback(top_k(3)), mean()).bound is None
    client = Client(error_feedback(threshold(1.0)))
    client.send(normal(0))
    assert client.finish()["kept"] == pytest.approx((np.abs(flat(normal(0))) >= 1).mean())


def small(aggregator, checkpoint=None, rounds=4, **options):
    fed = compiled(fed_avg(batch_size=8), aggregator=aggregator, **options)
    fed.fit(population(), rounds=rounds, verbose=0, clients_per_round=4, checkpoint_dir=checkpoint)
    return fed


def test_residuals_go_on_from_a_checkpoint_with_the_same_bits(tmp_path):
    make = lambda: chain(error_feedback(top_k(3)), mean())  # noqa: E731
    expected = small(make(), rounds=3)
    small(make(), tmp_path, rounds=1)
    resumed = small(make(), tmp_path, rounds=3)
    for a, b in zip(expected.model.get_weights(), resumed.model.get_weights(), strict=True):
        assert a.tobytes() == b.tobytes()
    some = False
    for k in population().ids:
        ours, theirs = expected.store.get(k), resumed.store.get(k)
        assert [a.tobytes() for a in ours or ()] == [a.tobytes() for a in theirs or ()]
        some |= any(np.abs(a).max() > 0 for a in ours or () if a.size)
    assert some


@pytest.mark.parametrize(
    "parts",
    [
        (random_k(5),),
        # Two classes have gradients of opposite signs: an even number leaves no tie to rounding.
        (error_feedback(top_k(4)),),
        (error_feedback(power_sgd(1, min_size=1)),),
        (lazy(1.2), threshold(0.01)),
    ],
    ids=lambda parts: parts[-1].name,
)
def test_rounds_are_the_same_with_and_without_xla(parts):
    graph, xla = (small(chain(*parts, mean()), rounds=3, jit_compile=jit) for jit in (False, True))
    for a, b in zip(graph.model.get_weights(), xla.model.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    assert graph.history.history["loss"][-1] < graph.history.history["loss"][0]


# Lazy updates.


def test_lazy_sends_the_sum_once_it_is_large_enough():
    client = Client(lazy(1.5))
    update = normal(0)
    norm = np.linalg.norm(flat(update))
    np.testing.assert_array_equal(flat(client.send(update)), flat(update))  # nothing is known yet
    assert client.finish() == {"skipped": 0.0}
    assert float(client.server[0]) == pytest.approx(norm, rel=1e-6)
    assert not flat(client.send(update)).any()  # 1 < 1.5
    assert client.finish() == {"skipped": 1.0}
    np.testing.assert_allclose(flat(client.send(update)), 2 * flat(update), rtol=1e-6)  # 2 >= 1.5
    assert not flat(client.state).any()


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 1000), st.floats(0.5, 3.0))
def test_lazy_loses_nothing_and_follows_the_rule(seed, factor):
    client, held, usual, put, sent = Client(lazy(factor)), 0.0, 0.0, 0.0, 0.0
    for k in range(8):
        update = normal(seed + k)
        held = held + flat(update)
        skipped = np.linalg.norm(held) < factor * usual
        found = flat(client.send(update))
        np.testing.assert_allclose(found, 0 * held if skipped else held, atol=1e-5)
        usual = np.linalg.norm(flat(update))
        held = held if skipped else 0 * held
        assert client.finish() == {"skipped": float(skipped)}
        put, sent = put + flat(update), sent + found
    np.testing.assert_allclose(sent, put - flat(client.state), atol=1e-4)


def test_the_usual_norm_is_the_mean_over_clients_and_stays_without_any():
    stage = lazy(2.0)
    stats = {"norm": tf.constant(6.0), "skipped": tf.constant(1.0)}
    _, state, metrics = stage.finish(tf.constant(9.0), (), stats, tf.constant(4.0), SEED)
    assert float(state) == 1.5 and float(metrics["skipped"]) == 0.25
    nothing = tree.zeros_like(stats)
    _, state, _ = stage.finish(tf.constant(9.0), (), nothing, tf.constant(0.0), SEED)
    assert float(state) == 9.0


def test_what_follows_a_lazy_stage_is_gated_and_decodes_to_zeros():
    client = Client(lazy(5.0), top_k(4))
    client.send(normal(0))
    client.server = (tf.constant(1e9), ())
    shared = client.stage.shared(client.server)
    payload, _, _ = client.stage.encode(shared, client.state, normal(1), SEED)
    assert int(payload.side[0]["sent"]) == 0
    nothing = tree.zeros_like(payload)  # what the server unpacks of a closed gate
    assert not flat(client.stage.decode(shared, nothing, client.like)).any()
    from tffed.aggregation.stage import codecs

    found = codecs(client.stage, payload)
    assert isinstance(found.side[0]["sent"], Gate)
    assert all(isinstance(c, Gated) for c in [found.value, *found.side[1].values()])


def test_a_nan_is_sent_so_that_the_client_is_left_out():
    update = (*normal(0)[:3], tf.constant([np.nan, 0.0]))
    for stage in (lazy(1.0), error_feedback(top_k(1)), error_feedback(threshold(1.0))):
        client = Client(stage)
        client.send(normal(1))
        client.server = (tf.constant(1e9),) if stage.leaks else client.server
        assert np.isnan(flat(client.send(update))).any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: error_feedback(), "Expected the stages"),
        (lambda: error_feedback(mean()), "Expected the stages"),
        (lambda: error_feedback(lazy(1.0)), "send it twice"),
        (lambda: error_feedback(error_feedback(top_k(1))), "send it twice"),
        (lambda: error_feedback(gaussian(1.0, 1.0)), "take the noise off"),
        (lambda: error_feedback(top_k(1), decay=1.5), "decay"),
        (lambda: error_feedback(top_k(1), decay=0), "decay"),
        (lambda: error_feedback(threshold(1.0), top_k(1)), "Put it before"),
        (lambda: chain(top_k(5), error_feedback(top_k(2)), mean()), "top_k.5. before it"),
        (lambda: chain(lazy(1.0), error_feedback(top_k(2)), mean()), "lazy.1.0. before it"),
        (lambda: chain(top_k(2), lazy(1.0), mean()), "top_k.2. before it"),
        (lambda: chain(mean(), down=[top_k(2)]), "can encode weights"),
        (lambda: chain(mean(), down=error_feedback(eden(1))), "weights themselves travel.*eden"),
        (lambda: chain(mean(), down=[lazy(1.0)]), "weights themselves travel.*lazy"),
        (lambda: chain(mean(), down=[power_sgd(2)]), "can encode weights.*power_sgd"),
        (lambda: error_feedback(clip(1.0), top_k(2)), "add up without end.*Put it before"),
        (lambda: error_feedback(adaptive_clip(), top_k(2)), "add up without end.*Put it before"),
        (lambda: chain(error_feedback(sign()), majority()), "sent adds up.*before majority"),
        (lambda: chain(lazy(2.0), sign(None), majority()), "sent adds up.*lazy.*before majority"),
        (lambda: lazy(0.0), "`threshold` must be positive"),
    ],
)
def test_what_cannot_work_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_lazy_tells_clients_of_others_so_not_beside_noise():
    with pytest.raises(ValueError, match="learn of clients without any"):
        chain(lazy(1.0), gaussian(1.0, 1.0), mean("uniform"))


def test_feedback_before_a_reducer_that_collects():
    fed = small(chain(error_feedback(top_k(3)), median()), rounds=2)
    assert np.isfinite(fed.history.history["loss"]).all()
