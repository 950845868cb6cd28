"""Operations and memory of local steps against closed forms worked out by hand."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tffed import from_keras, optimizers
from tffed.analysis import step_cost

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
PRODUCTS = ("MatMul", "BatchMatMulV2", "Einsum", "Conv2D")
GRADIENTS = (*PRODUCTS, "Conv2DBackpropInput", "Conv2DBackpropFilter")


def step(model, batch, optimizer=None, dtype="float32"):
    functional = from_keras(model, LOSS)
    spec = tf.TensorSpec((None, *model.input_shape[1:]), dtype), tf.TensorSpec((None,), "int64")
    if optimizer is not None:
        optimizer = optimizers.from_keras(optimizer, functional.variables)
    return step_cost(functional, spec, batch, optimizer)


def products(flops):
    return sum(flops.by_type.get(kind, 0) for kind in GRADIENTS)


def dense(*widths, activation="relu"):
    hidden = [layers.Dense(n, activation) for n in widths[1:-1]]
    return keras.Sequential([keras.Input(widths[:1]), *hidden, layers.Dense(widths[-1])])


@pytest.mark.parametrize("widths, batch", [((784, 200, 200, 10), 20), ((7, 5), 3)])
def test_dense_layers(widths, batch):
    found = step(dense(*widths), batch)
    each = [2 * batch * i * o for i, o in zip(widths, widths[1:], strict=False)]
    assert products(found.forward) == sum(each)
    # Twice that, but for the gradient by the first layer's input, which nobody needs.
    assert products(found.backward) == 2 * sum(each) - each[0]
    assert found.exact


def test_all_of_a_small_model_by_hand():
    """Dense 7-5-3 of B examples, each term as the docstring of `op_flops` counts it."""
    b, i, h, o = 4, 7, 5, 3
    found = step(dense(i, h, o), b, keras.optimizers.SGD(0.1))
    layer = 2 * b * i * h + b * h + b * h + 2 * b * h * o + b * o  # with biases and the relu
    loss = 7 * b * o  # and a few more operations to average it
    assert layer + loss + b <= found.forward.total <= layer + loss + 4 * b + 20
    back = 2 * b * (i * h + 2 * h * o) + b * h + (b - 1) * (h + o)
    assert back <= found.backward.total <= back + b * o + 2 * b + 20
    assert found.optimizer.total == 2 * (i * h + h + h * o + o)


def test_nobody_needs_the_gradient_by_a_grouped_first_layers_input():
    """A grouped convolution's gradient is a function of its own, with two results."""
    convolutions = [layers.Conv2D(6, 3, groups=2), layers.Conv2D(9, 3, groups=3)]
    model = keras.Sequential([keras.Input((8, 8, 4)), *convolutions, layers.Flatten()])
    found = step(keras.Sequential([model, layers.Dense(2)]), 5)
    first = 2 * 5 * 6 * 6 * 6 * 9 * 4 // 2
    second = 2 * 5 * 4 * 4 * 9 * 9 * 6 // 3
    dense = 2 * 5 * 4 * 4 * 9 * 2
    assert products(found.forward) == first + second + dense
    assert products(found.backward) == first + 2 * second + 2 * dense


def mcmahan_cnn():
    same = {"padding": "same", "activation": "relu"}
    return keras.Sequential([
        keras.Input((28, 28, 1)),
        layers.Conv2D(32, 5, **same),
        layers.MaxPooling2D(),
        layers.Conv2D(64, 5, **same),
        layers.MaxPooling2D(),
        layers.Flatten(),
        layers.Dense(512, "relu"),
        layers.Dense(10),
    ])


def test_the_cnn_of_mcmahan_et_al():
    found = step(mcmahan_cnn(), 20)
    first = 2 * 20 * 28 * 28 * 32 * 25
    rest = 2 * 20 * (14 * 14 * 64 * 25 * 32 + 3136 * 512 + 512 * 10)
    assert products(found.forward) == first + rest
    assert products(found.backward) == first + 2 * rest
    others = found.forward.total - products(found.forward)
    pixels = 20 * (28 * 28 * 32 + 14 * 14 * 64)
    # A bias and a relu a pixel, a comparison for each in the pooling; little else.
    assert 3 * pixels < others < 3 * pixels + 20 * 3000
    assert found.forward.by_type["MaxPool"] == pixels
    assert found.weight_bytes == 4 * 1663370


@pytest.mark.parametrize("kind, gates", [("LSTM", 4), ("GRU", 3), ("SimpleRNN", 1)])
def test_recurrent_layers(kind, gates):
    batch, time, words, width, units = 3, 11, 13, 6, 5
    model = keras.Sequential([
        keras.Input((time,), dtype="int32"),
        layers.Embedding(words, width),
        getattr(layers, kind)(units),
        layers.Dense(2),
    ])
    found = step(model, batch, dtype="int32")
    cell = 2 * batch * time * (width + units) * gates * units
    head = 2 * batch * units * 2
    assert products(found.forward) == cell + head
    assert products(found.backward) == 2 * (cell + head)
    assert found.exact


def test_a_loop_that_keras_runs_counts_the_same():
    """With recurrent dropout the layer goes through Keras's loop, and TensorFlow's gradient."""
    batch, time, width, units = 3, 11, 6, 5
    model = keras.Sequential([
        keras.Input((time, width)), layers.LSTM(units, recurrent_dropout=0.1), layers.Dense(2)
    ])
    found = step(model, batch)
    cell, head = 2 * batch * time * (width + units) * 4 * units, 2 * batch * units * 2
    projection = 2 * batch * time * width * 4 * units
    assert products(found.forward) == cell + head
    # TensorFlow may or may not leave out the gradient by the input.
    assert products(found.backward) in (2 * (cell + head), 2 * (cell + head) - projection)
    assert found.exact


def test_attention():
    batch, length, width, heads, size = 2, 7, 8, 3, 5
    x = keras.Input((length,), dtype="int32")
    y = layers.Embedding(11, width)(x)
    y = layers.MultiHeadAttention(heads, size)(y, y)
    model = keras.Model(x, layers.Dense(4)(layers.GlobalAveragePooling1D()(y)))
    found = step(model, batch, dtype="int32")
    projections = 4 * 2 * batch * length * width * heads * size
    attended = 2 * 2 * batch * heads * length * length * size
    head = 2 * batch * width * 4
    assert products(found.forward) == projections + attended + head
    assert products(found.backward) == 2 * (projections + attended + head)


@pytest.mark.parametrize("optimizer, slots, each", [
    (keras.optimizers.SGD(0.1), 0, 2),
    (keras.optimizers.SGD(0.1, momentum=0.9), 1, 4),
    (keras.optimizers.Adam(), 2, 12),
    (keras.optimizers.RMSprop(), 1, 9),
])
def test_optimizers(optimizer, slots, each):
    parameters = 7 * 5 + 5
    found = step(dense(7, 5), 3, optimizer)
    assert found.slot_bytes == slots * 4 * parameters == slots * found.gradient_bytes
    # A few scalars beside what is done to each parameter.
    assert each * parameters <= found.optimizer.total <= each * parameters + 20


def test_frozen_layers_take_no_gradient():
    model = dense(7, 5, 3)
    model.layers[0].trainable = False
    found = step(model, 4)
    assert products(found.backward) == 2 * 4 * 5 * 3
    assert found.gradient_bytes == 4 * (5 * 3 + 3)


def test_activations_of_dense_layers():
    """Each relu's output is read again, and the gradient of the loss by the logits is kept."""
    found = step(dense(784, 200, 200, 10), 20)
    kept = 4 * 20 * (200 + 200 + 10)
    assert kept <= found.activation_bytes <= kept + 16
    assert found.batch_bytes == 20 * (4 * 784 + 8)


def test_activations_of_the_cnn():
    found = step(mcmahan_cnn(), 20)
    convolved, pooled = 28 * 28 * 32 + 14 * 14 * 64, 14 * 14 * 32 + 7 * 7 * 64
    kept = 4 * 20 * (convolved + pooled + 512 + 10)
    assert kept <= found.activation_bytes <= kept + 64


def test_activations_of_a_loop_grow_with_its_length():
    def kept(time):
        model = keras.Sequential([
            keras.Input((time, 6)), layers.LSTM(5, recurrent_dropout=0.1), layers.Dense(2)
        ])
        return step(model, 3).activation_bytes

    gates = 4 * 3 * 4 * 5
    # TensorFlow keeps some twenty more values a trip, each of about a quarter of the gates' size.
    assert 10 * gates <= kept(20) - kept(10) <= 10 * 8 * gates


def test_operations_are_a_line_in_the_batch():
    for model in (mcmahan_cnn(), dense(7, 5, 3)):
        a, b, c = (step(model, size, keras.optimizers.Adam()).flops for size in (4, 8, 13))
        np.testing.assert_allclose(c, b + (b - a) / 4 * 5, rtol=1e-12)
