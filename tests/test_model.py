"""The pure form of Keras models: gradients, seeds, precision, frozen layers, refusals."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.helpers import assert_close, assert_same_bits, differs
from tffed import random
from tffed.model import from_keras

L = keras.layers
ROWS = 7
SPARSE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def labels(classes=3, rows=ROWS):
    return np.random.default_rng(5).integers(0, classes, rows)


def mlp(**kwargs):
    hidden = L.Dense(8, activation="tanh", **kwargs)
    return keras.Sequential([keras.Input((5,)), hidden, L.Dense(3, dtype="float32")])


def cnn(dropout=0.0):
    return keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            L.Conv2D(4, 3),
            L.BatchNormalization(momentum=0.7),
            L.ReLU(),
            L.MaxPooling2D(),
            L.Flatten(),
            L.Dropout(dropout),
            L.Dense(3),
        ]
    )


def recurrent(layer):
    return keras.Sequential([keras.Input((4, 2)), layer(5), L.Dense(3)])


def embedding():
    layers = [L.Embedding(6, 4), L.GlobalAveragePooling1D(), L.Dense(3)]
    return keras.Sequential([keras.Input((5,), dtype="int32"), *layers])


def two_inputs(nest):
    a, b = keras.Input((3,), name="a"), keras.Input((2,), name="b")
    out = L.Dense(3)(L.Concatenate()([L.Dense(4, activation="relu")(a), b]))
    return keras.Model({"a": a, "b": b} if nest is dict else [a, b], out)


def two_outputs():
    x = keras.Input((5,))
    hidden = L.Dense(6, activation="tanh")(x)
    outputs = {"kind": L.Dense(3, name="kind")(hidden), "size": L.Dense(1, name="size")(hidden)}
    return keras.Model(x, outputs)


class Subclassed(keras.Model):
    """A residual block, called with `training`."""

    def __init__(self):
        super().__init__()
        self.first = L.Dense(5, activation="relu")
        self.norm = L.BatchNormalization()
        self.last = L.Dense(3)

    def call(self, x, training=None):
        return self.last(x + self.norm(self.first(x), training=training))


def subclassed():
    model = Subclassed()
    model(np.zeros((1, 5), np.float32))
    return model


TWO_LOSSES = {
    "loss": {"kind": SPARSE, "size": "mse"},
    "loss_weights": {"kind": 0.3, "size": 2.0},
}
TWO_TARGETS = {"kind": labels(), "size": numbers(ROWS, 1, seed=2)}
PAIR = (numbers(ROWS, 3), numbers(ROWS, 2, seed=1))
REGULARIZED = {"kernel_regularizer": keras.regularizers.L2(0.3)}
# name -> (model, batch, arguments of compile)
CASES = {
    "mlp": (mlp, (numbers(ROWS, 5), labels()), {}),
    "cnn": (cnn, (numbers(ROWS, 6, 6, 1), labels()), {}),
    "lstm": (lambda: recurrent(L.LSTM), (numbers(ROWS, 4, 2), labels()), {}),
    "gru": (lambda: recurrent(L.GRU), (numbers(ROWS, 4, 2), labels()), {}),
    "embedding": (embedding, (labels(6, ROWS * 5).reshape(ROWS, 5), labels()), {}),
    "dict": (lambda: two_inputs(dict), ({"a": PAIR[0], "b": PAIR[1]}, labels()), {}),
    "list": (lambda: two_inputs(list), (list(PAIR), labels()), {}),
    "outputs": (two_outputs, (numbers(ROWS, 5), TWO_TARGETS), TWO_LOSSES),
    "subclassed": (subclassed, (numbers(ROWS, 5), labels()), {}),
    "regression": (mlp, (numbers(ROWS, 5), numbers(ROWS, 3, seed=1)), {"loss": "mse"}),
    "regularizer": (lambda: mlp(**REGULARIZED), (numbers(ROWS, 5), labels()), {}),
    "weights": (mlp, (numbers(ROWS, 5), labels(), np.linspace(0, 2, ROWS, dtype="f4")), {}),
}


def tensors(batch):
    return tf.nest.map_structure(tf.convert_to_tensor, batch)


def pure(model, **kwargs):
    """The pure form, its gradient compiled as in a round, and its weights."""
    functional = from_keras(model, **({"loss": SPARSE} | kwargs))
    return functional, tf.function(functional.grad, autograph=False), functional.init()


def keras_gradient(model, batch):
    """The loss and its gradients by a tape over the Keras model's own variables."""
    x, y, weight = (*batch, None)[:3]
    with tf.GradientTape() as tape:
        loss = model.compute_loss(x, y, model(x, training=True), weight, training=True)
    grads = tape.gradient(loss, model.trainable_variables)
    return loss, [tf.convert_to_tensor(g) for g in grads]


@pytest.mark.parametrize("name", CASES)
def test_gradient_equals_keras(name):
    make, batch, arguments = CASES[name]
    model, batch = make(), tensors(batch)
    functional, grad, weights = pure(model, **arguments)
    grads, _, sums = grad(weights, batch, random.seed(1))
    before = [v.numpy() for v in model.trainable_variables]
    loss, expected = keras_gradient(model, batch)
    assert_close(grads, expected, 1e-6)
    assert max(np.abs(g).max() for g in grads) > 1e-2
    assert_close(functional.report(sums)["loss"], loss, 1e-6)
    assert float(sums[1]) == ROWS
    assert_same_bits(weights.trainable, before)
    assert [v.path for v in functional.variables] == [v.path for v in model.trainable_variables]


def test_embedding_gradients_are_dense_unless_asked_for():
    make, batch, _ = CASES["embedding"]
    functional, _, weights = pure(make())
    grads, _, _ = functional.grad(weights, tensors(batch), random.seed(1))
    assert all(isinstance(g, tf.Tensor) for g in grads)
    assert [g.shape for g in grads] == [w.shape for w in weights.trainable]
    sparse, _, _ = functional.grad(weights, tensors(batch), random.seed(1), sparse=True)
    assert [isinstance(g, tf.IndexedSlices) for g in sparse] == [True, False, False]
    assert_close([tf.convert_to_tensor(g) for g in sparse], grads, 1e-7)


def test_dropout_follows_the_seed():
    model, batch = cnn(dropout=0.5), tensors(CASES["cnn"][1])
    functional, grad, weights = pure(model)
    first, again, other = (grad(weights, batch, random.seed(s))[0] for s in (1, 1, 2))
    assert_same_bits(first, again)
    assert differs(first, other)
    still = functional.evaluate(weights, batch)
    expected = SPARSE(batch[1], model(batch[0], training=False))
    assert_close(functional.report(still)["loss"], expected, 1e-6)


def test_several_dropouts_draw_apart():
    layers = [L.Dropout(0.5), L.Dense(40, use_bias=False, kernel_initializer="identity")]
    x = keras.Input((40,))
    out = L.Concatenate()([L.Dropout(0.5)(x), keras.Sequential(layers)(x)])
    model = keras.Model(x, out)
    _, grad, weights = pure(model, loss="mse", metrics=[dropped_together])
    ones = tf.ones((50, 40))
    _, _, sums = grad(weights, (ones, tf.zeros((50, 80))), random.seed(3))
    total, count = [s for s in sums[2:]][-2:]
    # Each element is dropped with probability 1/2: both with 1/4, or 1/2 if the masks are one.
    assert float(total / count) == pytest.approx(0.25, abs=0.06)


def dropped_together(y_true, y_pred):
    first, second = tf.split(y_pred, 2, axis=-1)
    return tf.reduce_mean(tf.cast((first == 0) & (second == 0), tf.float32), -1)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_is_close_to_float32(policy):
    batch = tensors(CASES["mlp"][1])
    exact, half = mlp(), mlp(dtype=policy)
    half.set_weights(exact.get_weights())
    _, grad, weights = pure(half)
    grads, _, sums = grad(weights, batch, random.seed(1))
    loss, expected = keras_gradient_of(exact, batch)
    assert all(g.dtype == tf.float32 and np.isfinite(g).all() for g in grads)
    for actual, wanted in zip(grads, expected, strict=True):
        assert 0 < np.linalg.norm(actual - wanted) < 0.02 * np.linalg.norm(wanted)
    assert float(sums[0] / sums[1]) == pytest.approx(float(loss), rel=0.01)


def keras_gradient_of(model, batch):
    model.compile(loss=SPARSE)
    return keras_gradient(model, batch)


def test_small_float16_gradients_do_not_vanish():
    x, y = tensors((numbers(ROWS, 5), numbers(ROWS, 3, seed=1)))
    policy = keras.dtype_policies.DTypePolicy("mixed_float16")
    model = keras.Sequential([keras.Input((5,)), L.Dense(3, dtype=policy)])
    model.dtype_policy = policy
    # Backpropagated errors of about 1e-8, below float16's least number 6e-8.
    functional, grad, weights = pure(model, loss="mse", loss_weights=1e-7)
    grads, _, _ = grad(weights, (x, y), random.seed(1))
    error = 2e-7 * (model(x).numpy().astype(np.float32) - y) / y.numpy().size
    assert_norm_close(grads[0], x.numpy().T @ error, 0.05)


def assert_norm_close(actual, expected, share):
    assert np.linalg.norm(actual - expected) < share * np.linalg.norm(expected)


def test_frozen_layers_have_no_weights():
    model = cnn()
    model.layers[0].trainable = False
    model.layers[1].trainable = False
    before = [v.numpy() for layer in model.layers[:2] for v in layer.variables]
    functional, grad, weights = pure(model)
    assert [w.shape for w in weights.trainable] == [v.shape for v in model.layers[-1].variables]
    assert weights.non_trainable == ()
    grads, after, _ = grad(weights, tensors(CASES["cnn"][1]), random.seed(1))
    assert len(grads) == 2 and after.non_trainable == ()
    functional.assign(weights._replace(trainable=tuple(w + 1 for w in weights.trainable)))
    assert_same_bits([v.value for layer in model.layers[:2] for v in layer.variables], before)
    assert_close(model.layers[-1].bias, weights.trainable[1] + 1, 0)


def test_assign_then_init_gives_the_weights_back():
    functional, _, weights = pure(cnn())
    changed = tf.nest.map_structure(lambda w: w + 1.5, weights)
    functional.assign(changed)
    assert_same_bits(functional.init(), changed)


def unbuilt():
    return keras.Sequential([L.Dense(2)])


def all_frozen():
    model = mlp()
    model.trainable = False
    return model


@pytest.mark.parametrize(
    "make, arguments, message",
    [
        (unbuilt, {}, "Expected a built model"),
        (Subclassed, {}, "Expected a built model"),
        (lambda: L.Dense(2), {}, "Expected a keras.Model"),
        (lambda: "resnet", {}, "Expected a keras.Model"),
        (all_frozen, {}, "all its layers are frozen"),
        (mlp, {"loss": None}, "Expected a loss"),
        (mlp, {"loss": keras.losses.MeanSquaredError(reduction="sum")}, "must average"),
        (mlp, {"loss": keras.losses.MeanSquaredError(reduction="none")}, "must average"),
        (
            two_outputs,
            {"loss": {"kind": SPARSE, "size": keras.losses.Huber(reduction="sum")}},
            "must average",
        ),
        (mlp, {"batch_norm": "global"}, "`batch_norm` must be one of"),
    ],
)
def test_refuses(make, arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        from_keras(make(), **({"loss": SPARSE} | arguments))
    assert "Received: " in str(error.value)


def test_refuses_another_backend(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(RuntimeError, match="TensorFlow backend. Received: .*'jax'"):
        from_keras(mlp(), SPARSE)
