"""Error feedback as it runs: residuals that stay bounded over rounds, and those that do not."""

import numpy as np
import pytest
import tensorflow as tf

from tffed import random, tree
from tffed.aggregation.stage import sequence
from tffed.compression import (
    drive,
    eden,
    error_feedback,
    power_sgd,
    quantize,
    random_k,
    rotate,
    sign,
    ternary,
)

ROUNDS = 180


def updates(shape):
    """By kind, `[rounds, *shape]`."""
    rng, size = np.random.default_rng(0), (ROUNDS, *shape)
    normal = rng.normal(size=size)
    return {
        "normal": normal,
        "sparse": rng.standard_t(3, size) * (rng.random(size) < 0.05),
        "constant": np.broadcast_to(rng.normal(size=shape), size),
        "equal": np.ones(size),
    }


def residuals(stages, shape, kinds=None):
    """By kind, the norms of the residual after each round, in norms of the largest update.

    The stages are not asked whether they expand: this is what they would do.
    """
    unasked = [s._replace(expands=lambda like: False, mixes=0) for s in stages]
    stage, like = sequence(error_feedback(*unasked)), (tf.TensorSpec(shape, tf.float32),)

    @tf.function(autograph=False)
    def run(given):
        shared = stage.shared(stage.init(given[:1]))

        def body(t, state, norms):
            seed = random.fold_in(random.seed(3), t)
            _, state, _ = stage.encode(shared, state, (given[t],), seed)
            return t + 1, state, norms.write(t, tf.norm(tree.leaves(state)[0]))

        start = 0, stage.client_init(like), tf.TensorArray(tf.float32, ROUNDS)
        return tf.while_loop(lambda t, *_: t < ROUNDS, body, start)[2].stack()

    found = {}
    for kind, given in updates(shape).items():
        if kinds is None or kind in kinds:
            norms = run(tf.constant(given, tf.float32)).numpy()
            found[kind] = norms / np.linalg.norm(given.reshape(ROUNDS, -1), axis=1).max()
    return found


def expands(stages, shape):
    return sequence(*stages).expands((tf.TensorSpec(shape, tf.float32),))


def named(value):
    return ", ".join(getattr(part, "name", str(part)) for part in value)


# Each as large as it may be, or as few bits.
ACCEPTED = [
    ((quantize(1),), (2,)),
    ((quantize(2),), (300,)),
    ((ternary(),), (63,)),
    ((ternary(2.5),), (63,)),
    ((quantize(3, scale="l2"),), (35,)),
    ((rotate(1024), quantize(2, block=1024)), (1024,)),
    ((rotate(32), ternary()), (32,)),
    ((power_sgd(1, min_size=1), quantize(3)), (300, 40)),
    ((power_sgd(2, min_size=1), quantize(4, block=4096)), (30, 20)),
    ((power_sgd(2, min_size=1), eden(2)), (30, 20)),
    ((power_sgd(2, min_size=1), sign()), (30, 20)),
    ((random_k(0.1, unbiased=False), quantize(2)), (300,)),
    ((drive(),), (4,)),
]


@pytest.mark.parametrize(("stages", "shape"), ACCEPTED, ids=named)
def test_residuals_of_what_is_accepted_stay_bounded(stages, shape):
    """No longer than 60 updates, and no longer in the last third of the rounds than before."""
    assert not expands(stages, shape)
    for kind, norms in residuals(stages, shape).items():
        middle, last = norms[ROUNDS // 3 : 2 * ROUNDS // 3].max(), norms[2 * ROUNDS // 3 :].max()
        assert last < 60, (kind, middle, last)
        # The steps of few entries are coarse, and their largest residuals are rare.
        assert last < 1.5 * middle + 1.5, (kind, middle, last)


REFUSED = [
    ((quantize(1),), (10,)),
    ((quantize(1, block=12),), (60,)),
    ((quantize(4, scale="l2"),), (300,)),
    ((random_k(0.4),), (50,)),
    ((random_k(0.6), quantize(2)), (50,)),
    ((rotate(256), quantize(2, scale="max", block=256)), (1024,)),
    ((power_sgd(1, min_size=1), quantize(3, scale="l2")), (300, 40)),
]


@pytest.mark.parametrize(("stages", "shape"), REFUSED, ids=named)
def test_residuals_of_what_is_refused_do_grow(stages, shape):
    assert expands(stages, shape)
    (norms,) = residuals(stages, shape, ["normal"]).values()
    with np.errstate(over="ignore", invalid="ignore"):
        assert not norms[-1] < 5 * norms[20]  # or an overflow


@pytest.mark.parametrize(
    ("stages", "shape"),
    [
        ((quantize(1),), (3,)),
        ((quantize(1, block=15),), (4095,)),
        ((quantize(1, block=2), quantize(1)), (3,)),
        ((ternary(),), (64,)),
        ((quantize(3, scale="l2", stochastic=False),), (36,)),
        ((rotate(4096), quantize(2, block=4096)), (4096,)),
        ((power_sgd(2, min_size=1), drive()), (30, 20)),
        ((random_k(0.9),), (50,)),
    ],
    ids=named,
)
def test_what_lies_beyond_is_refused(stages, shape):
    assert any(expands([s], shape) for s in stages) or expands(stages, shape)


def test_a_block_is_no_longer_than_all_entries():
    assert not expands([quantize(1, block=15)], (2,))


def test_equal_entries_are_not_clipped_to_nothing():
    """Their standard deviation is 0, and so is that of a scalar."""
    for value in (np.full(7, 0.25), np.float64(-3.0)):
        stage, like = sequence(ternary(2.5)), (tf.constant(value, tf.float32),)
        payload, _, _ = stage.encode(((),), ((),), like, random.seed(1))
        np.testing.assert_array_equal(stage.decode(((),), payload, tree.spec(like))[0], value)
