"""Clipped gradients of every kind of layer against loops by hand and tensorflow-privacy."""

import logging

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.helpers import needs_tf_privacy
from tests.privacy import example_models as examples
from tests.privacy.example_models import CLIP, EXAMPLES, MODELS, SEED, error, flat
from tffed import random, tree
from tffed.model import from_keras
from tffed.privacy import per_example
from tffed.privacy.example_level import dp_sgd, private_gradients

pytestmark = needs_tf_privacy
L = keras.layers


def clipped(name, method="auto", microbatches=None, parts=None):
    """The clipped gradients of a model without noise, in a graph of any batch size."""
    model, pure, weights, batch = parts or examples.build(name)
    level = dp_sgd(CLIP, 0.0, microbatches=microbatches, method=method)
    private = private_gradients(pure, model, level)
    like = tree.map(lambda leaf: tf.TensorSpec([None, *leaf.shape[1:]], leaf.dtype), batch)
    run = tf.function(lambda *batch: private.grad(weights, batch, SEED), autograph=False)
    grads, _, sums = run.get_concrete_function(*like)(*batch)
    return flat(grads), sums


def chosen(caplog):
    """The method that the last choice logged."""
    messages = [r.getMessage() for r in caplog.records if r.name == per_example.__name__]
    return messages[-1].split()[-1]


@pytest.mark.parametrize("name", MODELS)
def test_clipped_gradients_are_those_of_a_loop_and_of_tensorflow_privacy(name, caplog):
    caplog.set_level(logging.INFO, per_example.__name__)
    parts = model, pure, weights, batch = examples.build(name)
    each = examples.gradients(pure, weights, batch)
    norms = [np.linalg.norm(np.concatenate([g.ravel() for g in grads])) for grads in each]
    expected = examples.clipped_by_hand(each, CLIP)
    found, sums = clipped(name, parts=parts)
    assert chosen(caplog) == MODELS[name][2]
    assert max(norms) > CLIP
    assert error(found, expected) < 1e-6
    # A clip half as large is not within these tolerances.
    assert error(examples.clipped_by_hand(each, CLIP / 2), expected) > 0.1
    for actual, plain in zip(sums, pure.grad(weights, batch, SEED)[2], strict=True):
        np.testing.assert_allclose(actual, plain, rtol=1e-6)
    if name != "attention":  # whose jacobian oneDNN gets wrong
        assert error(examples.as_shipped(model, weights, batch, CLIP), expected) < 1e-6


@pytest.mark.parametrize("name", ["conv", "embedding", "lstm", "attention"])
def test_every_method_gives_the_same_and_microbatches_too(name):
    parts = model, pure, weights, batch = examples.build(name)
    each = examples.gradients(pure, weights, batch)
    expected = examples.clipped_by_hand(each, CLIP, width=2)
    if name not in ("attention", "lstm"):
        assert error(examples.as_shipped(model, weights, batch, CLIP, 3), expected) < 1e-6
    methods = {"attention": ["ghost"], "lstm": ["ghost", "map"]}
    for method in methods.get(name, ["ghost", "vectorized", "map"]):
        assert error(clipped(name, method, 3, parts)[0], expected) < 1e-6
        single = clipped(name, method, None, parts)[0]
        assert error(single, examples.clipped_by_hand(each, CLIP)) < 1e-6
    # Six examples in four microbatches: three of two.
    assert error(clipped(name, "auto", 4, parts)[0], expected) < 1e-6


@pytest.mark.parametrize(
    ("name", "method", "why"),
    [
        ("shared", "ghost", "not used once"),
        ("tied", "ghost", "Tied is no layer of Keras's"),
        ("time first", "ghost", "TimeFirst is no layer of Keras's"),
        ("masked", "ghost", "masks"),
        ("attention", "vectorized", "products go wrong"),
        ("masked", "vectorized", "loops"),
    ],
)
def test_a_method_that_would_be_wrong_is_refused(name, method, why):
    with pytest.raises(ValueError, match=f"Received: method='{method}'.*{why}.*Use method='auto'"):
        clipped(name, method)


@pytest.mark.parametrize(
    ("name", "microbatches"), [("dense", None), ("dense", 2), ("lstm", None), ("shared", 2)]
)
def test_masked_rows_do_not_count_with_xla(name, microbatches):
    model, pure, weights, batch = examples.build(name)
    level = dp_sgd(CLIP, 0.0, microbatches=microbatches)
    private = private_gradients(pure, model, level)
    mask = tf.constant([1.0] * 4 + [0.0] * 2)

    @tf.function(autograph=False, jit_compile=True)
    def run(weights, batch):
        return private.grad(weights, batch, SEED, mask, True)

    # What is masked may be anything.
    ruined = batch
    if batch[0].dtype.is_floating:
        ruined = tf.concat([batch[0][:4], batch[0][4:] * np.inf], 0), batch[1]
    grads, _, sums = run(weights, ruined)
    whole = tree.map(lambda leaf: leaf[:4], batch)
    each = examples.gradients(pure, weights, whole)
    width = 1 if microbatches is None else 2
    assert error(flat(grads), examples.clipped_by_hand(each, CLIP, width)) < 1e-6
    if ruined is batch:
        for actual, plain in zip(sums, pure.grad(weights, whole, SEED)[2], strict=True):
            np.testing.assert_allclose(actual, plain, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "microbatches"),
    [("dense", None), ("dense", 3), ("conv", None), ("embedding", 3), ("lstm", 3), ("shared", 3)],
)
def test_what_is_not_finite_counts_as_zero(name, microbatches):
    model, pure, weights, (x, y) = examples.build(name)
    if x.dtype.is_floating:
        x = x.numpy()
        x[1].flat[0], x[4].flat[0] = np.inf, 1e30
        batch = tf.constant(x), y
        # Behind a saturated tanh 1e30 has no gradient, but no finite ghost norm either.
        left_out = {1} if name == "shared" else {1, 4}
    else:
        batch, left_out = (x, y, tf.constant([1, np.inf, 1, 1, 1e30, 1], tf.float32)), {1, 4}
    each = examples.gradients(pure, weights, batch)
    for k in left_out:
        each[k] = [np.zeros_like(g) for g in each[k]]
    private = private_gradients(pure, model, dp_sgd(CLIP, 0.0, microbatches=microbatches))
    run = tf.function(lambda *batch: private.grad(weights, batch, SEED)[0], autograph=False)
    found = flat(run(*batch))
    width = 1 if microbatches is None else 2
    assert np.isfinite(found).all()
    assert error(found, examples.clipped_by_hand(each, CLIP, width)) < 1e-6


def test_weights_and_classes_are_part_of_an_examples_loss():
    make = MODELS["dense"][0]
    model = make()
    pure = from_keras(model, examples.LOSS, class_weight={0: 0.2, 1: 1.0, 2: 5.0})
    *_, (x, y) = examples.build("dense")
    batch = x, y, tf.constant(np.linspace(0.1, 4, EXAMPLES), tf.float32)
    each = examples.gradients(pure, pure.init(), batch)
    weighed = examples.clipped_by_hand(each, CLIP)
    twin = from_keras(make(), examples.LOSS)
    bare = examples.gradients(twin, pure.init(), (x, y))
    assert error(examples.clipped_by_hand(bare, CLIP), weighed) > 0.01
    for method in ("ghost", "vectorized", "map"):
        private = private_gradients(pure, model, dp_sgd(CLIP, 0.0, method=method))
        assert error(flat(private.grad(pure.init(), batch, SEED)[0]), weighed) < 1e-6


@pytest.mark.parametrize("method", ["ghost", "vectorized", "map"])
def test_dropout_follows_the_seed_and_differs_between_examples(method):
    layers = [keras.Input((4,)), L.Dense(64, "tanh"), L.Dropout(0.5), L.Dense(3)]
    model = keras.Sequential(layers)
    pure = from_keras(model, examples.LOSS)
    weights = pure.init()
    private = private_gradients(pure, model, dp_sgd(1e6, 0.0, method=method))
    same = tf.ones((2, 4)), tf.zeros((2,), tf.int32)

    @tf.function(autograph=False)
    def run(seed):
        return private.grad(weights, same, seed)[0]

    first, again, other = (flat(run(random.seed(k))) for k in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert error(other, first) > 0.01
    # The bias of the first layer has a gradient where a unit is kept: in one example of two at
    # half the units, in none at a quarter. All alike it would be half.
    dropped = (np.asarray(run(random.seed(1))[1]) == 0).mean()
    assert 0.05 < dropped < 0.45


def test_a_loss_of_the_users_is_taken_by_single_examples(caplog):
    def contrast(y, logits):  # of the batch as a whole
        return tf.square(logits - tf.reduce_mean(logits, 0)) + tf.square(logits[:, :1])

    caplog.set_level(logging.INFO, per_example.__name__)
    model, _, weights, batch = examples.build("dense")
    pure = from_keras(model, contrast)
    parts = model, pure, weights, batch
    expected = examples.clipped_by_hand(examples.gradients(pure, weights, batch), CLIP)
    assert error(clipped("dense", parts=parts)[0], expected) < 1e-6
    assert chosen(caplog) == "vectorized"
