"""Our recurrent loops against Keras's own layers and a NumPy reference."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.helpers import assert_close, assert_same_bits
from tffed.model import from_keras
from tffed.recurrent import own_loops

L = keras.layers
X = np.random.default_rng(3).normal(size=(4, 6, 3)).astype(np.float32)
KINDS = (L.LSTM, L.GRU, L.SimpleRNN)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def network(layer, states=0):
    """A model of one layer, its weights drawn at random; with initial states if wanted."""
    x, *initial = [keras.Input(X.shape[1:]), *(keras.Input((5,)) for _ in range(states))]
    model = keras.Model([x, *initial], layer(x, initial_state=initial or None))
    for k, variable in enumerate(model.trainable_variables):
        variable.assign(0.7 * tf.random.stateless_normal(variable.shape, (8, k)))
    return model


def value_and_gradients(model, inputs, own):
    """The outputs and the gradients by weights and inputs; in ours, the loops of this package."""
    inputs = [tf.convert_to_tensor(x) for x in inputs]
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        if own:
            with own_loops(model):
                outputs = tf.nest.flatten(model(inputs if len(inputs) > 1 else inputs[0]))
        else:
            outputs = tf.nest.flatten(model(inputs if len(inputs) > 1 else inputs[0]))
        total = tf.add_n([tf.reduce_sum(tf.sin(3.0 * y)) for y in outputs])
    return outputs, tape.gradient(total, [*model.trainable_variables, *inputs])


def compiled(model, inputs):
    return tf.function(lambda: value_and_gradients(model, inputs, True), autograph=False)()


def loops(model):
    """How many layers would run a loop of ours."""
    with own_loops(model):
        return sum("inner_loop" in vars(layer) for layer in model._flatten_layers())


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"return_sequences": True, "go_backwards": True},
        {"return_sequences": True, "return_state": True, "use_bias": False},
        {"return_state": True, "unroll": True},
    ],
    ids=["last", "backwards", "states", "unrolled"],
)
@pytest.mark.parametrize("kind", KINDS)
def test_outputs_and_all_gradients_are_those_of_keras(kind, arguments):
    model = network(kind(5, **arguments))
    assert loops(model) == 1
    assert_close(compiled(model, [X]), value_and_gradients(model, [X], False))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_by_the_initial_states(kind):
    count = 2 if kind is L.LSTM else 1
    model = network(kind(5, return_sequences=True), count)
    inputs = [X, *np.random.default_rng(1).normal(size=(count, 4, 5)).astype(np.float32)]
    assert loops(model) == 1
    assert_close(compiled(model, inputs), value_and_gradients(model, inputs, False))


def test_sequences_and_batches_of_unknown_length():
    keras.utils.set_random_seed(2)
    layers = [L.LSTM(5, return_sequences=True), L.Bidirectional(L.GRU(4)), L.Dense(2)]
    model = keras.Sequential([keras.Input((None, 3)), *layers])
    assert loops(model) == 3

    @tf.function(input_signature=[tf.TensorSpec([None, None, 3])], autograph=False)
    def found(x):
        return value_and_gradients(model, [x], True)

    for x in (X, X[:1, :2]):
        assert_close(found(x), value_and_gradients(model, [x], False))


def test_the_lstm_of_a_numpy_reference():
    model = network(L.LSTM(5))
    kernel, recurrent, bias = (v.numpy() for v in model.trainable_variables)
    h = c = np.zeros((4, 5))
    for t in range(6):
        i, f, g, o = np.split(X[:, t] @ kernel + h @ recurrent + bias, 4, axis=1)
        i, f, o = (1 / (1 + np.exp(-z)) for z in (i, f, o))
        c = f * c + i * np.tanh(g)
        h = o * np.tanh(c)
    assert_close(value_and_gradients(model, [X], True)[0], [h])


class Own(L.LSTM):
    """A subclass may compute anything."""


@pytest.mark.parametrize(
    "layer",
    [
        L.LSTM(5, activation="relu"),
        L.LSTM(5, recurrent_activation="hard_sigmoid"),
        L.LSTM(5, dropout=0.1),
        L.GRU(5, recurrent_dropout=0.1),
        L.GRU(5, reset_after=False),
        L.SimpleRNN(5, activation="relu"),
        L.LSTM(5, dtype="mixed_bfloat16"),
        L.LSTM(5, dtype="float64"),
        Own(5),
        L.RNN(L.LSTMCell(5)),
    ],
    ids=lambda layer: layer.name,
)
def test_all_other_layers_keep_the_loop_of_keras(layer):
    assert loops(network(layer)) == 0


def test_a_masked_call_and_a_stateful_layer_keep_the_loop_of_keras():
    tokens = np.array([[1, 2, 0, 0], [3, 0, 1, 2]])
    model = keras.Sequential([keras.Input((4,)), L.Embedding(4, 3, mask_zero=True), L.LSTM(5)])
    assert loops(model) == 1
    with own_loops(model):
        found = model(tokens)
    assert_same_bits(found, model(tokens))
    stateful = keras.Sequential([keras.Input((6, 3), batch_size=4), L.LSTM(5, stateful=True)])
    assert loops(stateful) == 0


def test_afterwards_the_model_is_as_it_was(tmp_path):
    model = keras.Sequential([keras.Input(X.shape[1:]), L.LSTM(5), L.Dense(3)])
    before = model.get_config()
    pure = from_keras(model, LOSS)
    grads, _, _ = pure.grad(pure.init(), (tf.constant(X), tf.zeros(4)), tf.constant([0, 1]))
    lstm = model.layers[0]
    assert len(grads) == 5 and "inner_loop" not in vars(lstm)
    with pytest.raises(ZeroDivisionError), own_loops(model):
        raise ZeroDivisionError
    assert lstm.inner_loop.__func__ is L.LSTM.inner_loop and model.get_config() == before
    model.compile("sgd", LOSS)
    model.fit(X, np.zeros(4), verbose=0)
    model.save(tmp_path / "model.keras")
    assert_same_bits(keras.saving.load_model(tmp_path / "model.keras")(X), model(X))


def test_a_models_gradient_is_that_of_keras():
    keras.utils.set_random_seed(1)
    layers = [L.LSTM(5, return_sequences=True), L.LSTM(4), L.Dense(3)]
    model = keras.Sequential([keras.Input(X.shape[1:]), *layers])
    y, pure = tf.constant([0, 2, 1, 1]), from_keras(model, LOSS)
    found = tf.function(pure.grad)(pure.init(), (tf.constant(X), y), tf.constant([0, 1]))[0]
    with tf.GradientTape() as tape:
        loss = LOSS(y, model(X))
    assert_close(found, tape.gradient(loss, model.trainable_variables))
