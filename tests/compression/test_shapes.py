"""Tensors of every rank through every stage, and a scalar weight through whole rounds."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tffed
from tests.helpers import arrays, assert_close, differs, needs_tf_privacy
from tests.shell import LOSS, population
from tffed import random, tree
from tffed.aggregation import adaptive_clip, chain, clip, majority, mean, median
from tffed.compression import (
    cast,
    drive,
    eden,
    error_feedback,
    federated_dropout,
    lazy,
    power_sgd,
    prune,
    quantize,
    random_k,
    rotate,
    send_only,
    sign,
    ternary,
    threshold,
    top_k,
)
from tffed.privacy import adaptive_gaussian, gaussian, local_gaussian, weight_noise
from tffed.wire import Format

SHAPES = ((), (1,), (0,), (1, 1), (3,), (2, 3, 4))
SEED = random.seed(4)

STAGES = [
    *((clip(0.5),), (adaptive_clip(),), (lazy(1.0),), (cast("float16"),), (threshold(0.3),)),
    *((quantize(8),), (quantize(4, block=4),), (quantize(1),), (quantize(6, scale="l2"),)),
    *((quantize(3, scale="max", stochastic=False),), (ternary(),), (ternary(2.5),)),
    *((sign(),), (sign(None),), (drive(),), (eden(3, "min_error", 8),)),
    *((rotate(8),), (rotate(4), quantize(4, block=4)), (top_k(1), quantize(2))),
    *((top_k(0.5),), (top_k(0.5, per_tensor=True),), (random_k(0.5),)),
    *((power_sgd(1, min_size=1),), (power_sgd(1, min_size=1), quantize(8))),
    *((error_feedback(top_k(0.5), quantize(8)),), (error_feedback(quantize(8)),)),
    *((error_feedback(rotate(8), quantize(8)),), (lazy(1.0), quantize(8))),
]
PRIVATE = [
    (lambda: gaussian(1.0, 0.1),),
    (lambda: adaptive_gaussian(1.0, 0.5, expected_clients=10),),
    (lambda: local_gaussian(1.0, 0.1),),
    (lambda: gaussian(1.0, 0.1), lambda: quantize(8)),
    (lambda: clip(1.0), lambda: weight_noise(0.1)),
]


def update(shapes):
    rng = np.random.default_rng(3)
    return tuple(tf.constant(rng.normal(size=shape), tf.float32) for shape in shapes)


def travelled(stages, value, reducer):
    """`(report, result)`, through the bytes of the real format too."""
    aggregator = chain(*stages, reducer)
    state, like = aggregator.init(value), tree.spec(value)
    shared, own = aggregator.shared(state), aggregator.client_init(like)
    seed = random.secret() if aggregator.mechanisms else SEED
    sent, own = aggregator.encode(shared, own, value, tf.constant(1.0), seed)
    sent, own = aggregator.encode(shared, own, value, tf.constant(1.0), seed)  # with a state
    assert bool(tree.all_finite((sent, own)))  # else the client is left out
    wire = Format("test", tree.spec(sent), aggregator.codecs(sent))
    data = wire.pack(tree.map(lambda x: x.numpy(), sent), 0)
    assert wire.length(tree.map(np.asarray, wire.measure(sent))) == len(data)
    report = aggregator.report(shared, sent, like)
    received = aggregator.report(shared, wire.unpack(data, 0), like)
    assert_close(received.total, report.total, 0)
    total = tree.map(lambda x: x[None], report) if aggregator.collect else report
    result, _, _ = aggregator.finish(state, total, random.secret())
    result = aggregator.release(state, result, random.secret())
    return report.total, result


def named(stages):
    return ", ".join(stage.name for stage in stages)


@pytest.mark.parametrize("stages", STAGES, ids=named)
def test_shapes_stay(stages):
    adds = any(stage.residual for stage in stages)
    reducers = (mean(), median()) if adds else (mean(), majority())
    for shapes, reducer in [*((SHAPES, r) for r in reducers), (((), ()), mean()), (((),), mean())]:
        for found in travelled(stages, update(shapes), reducer):
            assert [a.shape for a in arrays(found)] == list(shapes)


@needs_tf_privacy
@pytest.mark.parametrize("make", PRIVATE, ids=range(len(PRIVATE)))
def test_shapes_stay_beside_noise(make):
    for found in travelled([f() for f in make], update(SHAPES), mean("uniform")):
        assert [a.shape for a in arrays(found)] == list(SHAPES)


def test_a_scalar_is_a_tensor_of_one_entry():
    """Decoded as the same number in shape (1,) is, by NumPy's formulas for one entry."""
    scalar = (tf.constant(-0.75),)
    for stage in (quantize(8), quantize(1), ternary(), sign(), drive(), top_k(1), rotate(2)):
        found, _ = travelled([stage], scalar, mean())
        np.testing.assert_allclose(found[0], -0.75, rtol=1e-6)
        assert found[0].shape == ()


class Times(keras.layers.Layer):
    """Times a scalar weight."""

    def build(self, shape):
        self.factor = self.add_weight(shape=(), initializer="ones")

    def call(self, x):
        return x * self.factor


def scaled():
    keras.utils.set_random_seed(2)
    layers = [Times(name="times"), keras.layers.Dense(5, "tanh"), keras.layers.Dense(2)]
    return keras.Sequential([keras.Input((4,)), *layers])


PARTS = [
    *([quantize(8)], [ternary()], [quantize(4, block=16)], [drive()], [sign()]),
    *([error_feedback(top_k(0.3), quantize(8))], [power_sgd(1, min_size=1)]),
]
OF_MODEL = [
    lambda model: [prune(0.5, 0, 0), quantize(8)],
    lambda model: [federated_dropout(model, 0.6), quantize(8)],
    lambda model: [send_only(model, ["times"]), quantize(8)],
]


@pytest.mark.parametrize("parts", [*PARTS, *OF_MODEL], ids=range(len(PARTS) + len(OF_MODEL)))
def test_a_scalar_weight_is_trained(parts):
    model = scaled()
    parts = parts(model) if callable(parts) else parts
    fed = tffed.Federated(model, tffed.fed_avg(batch_size=8), seed=3)
    sgd, aggregator = keras.optimizers.SGD(0.1), chain(*parts, mean(), down=[quantize(8)])
    fed.compile(sgd, loss=LOSS, aggregator=aggregator, jit_compile=False, processes=False)
    history = fed.fit(population(), rounds=2, verbose=0).history
    factor = model.get_layer("times").factor
    assert factor.shape == () and history["dropped"] == [0.0, 0.0]
    assert differs([factor], [np.float32(1.0)], 1e-4)
