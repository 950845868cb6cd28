"""Small models of many kinds of layers, and their clipped gradients by hand and as shipped."""

import keras
import numpy as np
import tensorflow as tf

from tffed import random
from tffed.model import from_keras
from tffed.privacy import tf_privacy

L = keras.layers
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
CLIP, EXAMPLES, CLASSES = 0.3, 6, 3
SEED = random.seed(5)


def sequential(*layers):
    return keras.Sequential([*layers, L.Flatten(), L.Dense(CLASSES)])


class Subclassed(keras.Model):
    """A model in Python code, over images of 3 by 4."""

    def __init__(self):
        super().__init__()
        self.first, self.second = L.Dense(8, activation="relu"), L.Dense(CLASSES)
        self(np.zeros((1, 3, 4), np.float32))

    def call(self, x):
        return self.second(self.first(keras.ops.reshape(x, (-1, 12))))


class TimeFirst(Subclassed):
    """One whose layers see time where others see examples."""

    def call(self, x):
        x = self.first(keras.ops.transpose(x, (1, 0, 2)))
        return self.second(keras.ops.mean(x, 0))


class Tied(Subclassed):
    """One that uses a layer's kernel past the layer."""

    def call(self, x):
        x = self.first(x)
        return self.second(keras.ops.matmul(x, keras.ops.transpose(self.first.kernel))[:, 0])

    def __init__(self):
        keras.Model.__init__(self)
        self.first, self.second = L.Dense(8), L.Dense(CLASSES)
        self(np.zeros((1, 3, 4), np.float32))


def attention():
    inputs = keras.Input((5, 8))
    x = L.LayerNormalization()(L.MultiHeadAttention(2, 4)(inputs, inputs) + inputs)
    return keras.Model(inputs, L.Dense(CLASSES)(L.GlobalAveragePooling1D()(x)))


def shared():
    inputs, layer = keras.Input((6,)), L.Dense(6, activation="tanh")
    return keras.Model(inputs, L.Dense(CLASSES)(layer(layer(inputs))))


# name: (model, shape of an example; words if it is a vector of them, method that "auto" takes)
MODELS = {
    "dense": (lambda: sequential(keras.Input((6,)), L.Dense(8, "tanh")), (6,), "ghost"),
    "dense of sequences": (
        lambda: sequential(keras.Input((5, 4)), L.Dense(20, "relu"), L.Dense(9, use_bias=False)),
        (5, 4),
        "ghost",
    ),
    "einsum": (
        lambda: sequential(
            *(keras.Input((5, 4)), L.EinsumDense("...x,yx->...y", 7, bias_axes="y")),
            L.EinsumDense("abx,bxy->ay", 6),
        ),
        (5, 4),
        "ghost",
    ),
    "conv": (
        lambda: sequential(
            *(keras.Input((9, 9, 1)), L.Conv2D(8, 3, activation="relu", padding="same")),
            *(L.MaxPooling2D(), L.Conv2D(4, 3, strides=2)),
        ),
        (9, 9, 1),
        "ghost",
    ),
    "conv 1d": (
        lambda: sequential(
            keras.Input((9, 3)), L.Conv1D(8, 3, padding="causal"), L.Conv1D(2, 3, dilation_rate=2)
        ),
        (9, 3),
        "ghost",
    ),
    "group norm": (
        lambda: sequential(
            *(keras.Input((7, 7, 3)), L.DepthwiseConv2D(3, depth_multiplier=2), L.Conv2D(4, 1)),
            L.GroupNormalization(2),
        ),
        (7, 7, 3),
        "ghost",
    ),
    "layer norm": (
        lambda: sequential(
            keras.Input((5, 4)), L.Dense(6), L.LayerNormalization(), L.RMSNormalization()
        ),
        (5, 4),
        "ghost",
    ),
    "embedding": (
        lambda: sequential(keras.Input((5,), dtype="int32"), L.Embedding(9, 4)),
        "words",
        "ghost",
    ),
    "lstm": (
        lambda: sequential(keras.Input((5,), dtype="int32"), L.Embedding(9, 4), L.LSTM(6)),
        "words",
        "ghost",
    ),
    "gru": (
        lambda: sequential(
            keras.Input((5, 4)), L.SimpleRNN(12, return_sequences=True), L.Bidirectional(L.GRU(5))
        ),
        (5, 4),
        "ghost",
    ),
    "attention": (attention, (5, 8), "ghost"),
    "subclassed": (Subclassed, (3, 4), "vectorized"),
    "shared": (shared, (6,), "vectorized"),
    "tied": (Tied, (3, 4), "vectorized"),
    "time first": (TimeFirst, (3, 4), "vectorized"),
    "masked": (
        lambda: sequential(
            keras.Input((5,), dtype="int32"), L.Embedding(9, 4, mask_zero=True), L.LSTM(6)
        ),
        "words",
        "map",
    ),
}


def build(name):
    """`(Keras model, functional model, weights, batch)`; the gradients have different norms."""
    make, shape, _ = MODELS[name]
    rng, model = np.random.default_rng(3), make()
    if shape == "words":
        x = rng.integers(0, 4, (EXAMPLES, 5)).astype(np.int32)
    else:
        scales = np.geomspace(0.05, 2, EXAMPLES).reshape([-1] + [1] * len(shape))
        x = (scales * rng.normal(size=(EXAMPLES, *shape))).astype(np.float32)
    y = rng.integers(0, CLASSES, EXAMPLES).astype(np.int32)
    pure = from_keras(model, LOSS, ["accuracy"])
    return model, pure, pure.init(), (tf.constant(x), tf.constant(y))


def gradients(pure, weights, batch, seed=SEED):
    """The gradients of each example, float64, by themselves: batches of one."""
    count = len(batch[0])
    rows = (tuple(leaf[k : k + 1] for leaf in batch) for k in range(count))
    found = [pure.grad(weights, row, seed)[0] for row in rows]
    return [[g.numpy().astype(np.float64) for g in grads] for grads in found]


def clipped_by_hand(per_example, clip, width=1):
    """The mean over groups of `width` examples of their mean gradients, clipped."""
    groups = [per_example[k : k + width] for k in range(0, len(per_example), width)]
    total = 0
    for group in groups:
        mean = [np.mean(column, 0) for column in zip(*group, strict=True)]
        norm = np.sqrt(sum((g**2).sum() for g in mean))
        vector = np.concatenate([g.ravel() for g in mean])
        total = total + vector * min(1.0, clip / max(norm, 1e-30))
    return total / len(groups)


def as_shipped(model, weights, batch, clip, microbatches=None):
    """tensorflow-privacy's own gradients: its jacobian, its query, without noise."""
    module = tf_privacy.load("optimizers.dp_optimizer_keras")
    query = tf_privacy.load("dp_query.gaussian_query").GaussianSumQuery(clip, 0.0)
    base = type("SGD", (keras.optimizers.SGD,), {"_name": property(lambda self: self.name)})
    optimizer = module.make_keras_generic_optimizer_class(base)(query, microbatches)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction=None)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(weights.trainable)
        mapping = [*zip(model.trainable_variables, weights.trainable, strict=True)]
        with keras.StatelessScope(mapping):
            losses = loss(batch[1], model(batch[0], training=True))
    pairs = optimizer._compute_gradients(losses, list(weights.trainable), tape=tape)
    return flat([gradient for gradient, _ in pairs])


def flat(grads):
    """Gradients as one vector of float64."""
    return np.concatenate([np.asarray(tf.convert_to_tensor(g), np.float64).ravel() for g in grads])


def error(actual, expected):
    """The relative distance of two vectors."""
    return np.linalg.norm(actual - expected) / np.linalg.norm(expected)
