"""Data that are out of the ordinary, trained on: beside the same without it, and beside Keras."""

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from keras import layers

import tffed
from tffed import data

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def compiled(model):
    fed = tffed.Federated(model, tffed.fed_avg())
    fed.compile(keras.optimizers.SGD(0.5), loss=LOSS, jit_compile=False)
    return fed


@pytest.mark.parametrize("lazy", [False, True])
def test_a_client_without_examples_takes_no_step_and_the_round_goes_on(lazy):
    rng = np.random.default_rng(0)
    held = {k: (rng.normal(size=(n, 2)), rng.integers(0, 2, n)) for k, n in enumerate((3, 0, 5))}
    model = keras.Sequential([keras.Input((2,)), layers.Dense(2)])
    before, fed = model.get_weights(), compiled(model)
    ends, bytes_up = [], []
    for ids in ([0, 1, 2], [0, 2]):
        clients = {k: held[k] for k in ids}
        if lazy:
            clients = data.from_function(ids, held.__getitem__)
        model.set_weights(before)
        fed.state = None
        history = fed.fit(clients, rounds=1, verbose=0).history
        assert history["examples"] == [8] and history["empty"] == [len(ids) - 2]
        bytes_up.append(history["bytes_up"][0])
        ends.append(model.get_weights())
    for with_it, without in zip(*ends, strict=True):
        np.testing.assert_allclose(with_it, without, atol=1e-7)
    assert bytes_up[0] / 3 == bytes_up[1] / 2  # it was asked, and answers
    with pytest.raises(ValueError, match="one client with examples.*all without"):
        fed.fit(data.from_function([1], held.__getitem__), verbose=0)


def test_a_model_that_looks_strings_up_learns_as_in_keras():
    def build():
        lookup = layers.StringLookup(vocabulary=["red", "fish", "blue"])
        model = keras.Sequential(
            [keras.Input((2,), dtype="string"), lookup, layers.Embedding(4, 3), layers.Flatten(),
             layers.Dense(2)]
        )
        model.compile(keras.optimizers.SGD(0.5), LOSS)
        return model

    words = np.array([["red", "fish"], ["blue", "fish"], ["green", "red"]])
    y = np.array([0, 1, 1])
    ours, theirs = build(), build()
    theirs.set_weights(ours.get_weights())
    fed = compiled(ours)
    fed.fit({"a": (words, y)}, verbose=0)
    theirs.train_on_batch(tf.constant(words), y)
    for a, b in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    want = theirs.evaluate(tf.constant(words), y, verbose=0)
    assert fed.evaluate(words, y)["loss"] == pytest.approx(want, abs=1e-5)


def test_predictions_find_the_columns_of_tables_by_name():
    table = pd.DataFrame({"age": [3.0, 4.0], "income": [1.0, 7.0]})
    model = keras.Sequential([layers.Input((2,)), layers.Dense(1)])
    fed = tffed.Federated(model, tffed.fed_avg(batch_size=2))
    fed.compile(keras.optimizers.SGD(0.1), loss="mse", jit_compile=False)
    fed.fit({"a": (table, np.ones((2, 1)))}, verbose=0)
    expected = table.to_numpy() @ model.get_weights()[0] + model.get_weights()[1]
    for given in (table, table[["income", "age"]], table.to_numpy()):
        np.testing.assert_allclose(fed.predict(given, verbose=0), expected, rtol=1e-5)
    with pytest.raises(ValueError, match="what to predict for.*'Age'"):
        fed.predict(table.rename(columns={"age": "Age"}))
