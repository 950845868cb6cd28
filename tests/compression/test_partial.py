"""Chosen layers, frozen layers and adapters: what travels, and what the model becomes."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tffed
from tests.helpers import assert_close, assert_same_bits, differs, make_clients
from tffed.aggregation import chain, mean
from tffed.algorithms import fed_avg
from tffed.compression import error_feedback, lora, power_sgd, rotate, send_only, top_k
from tffed.data import from_dict
from tffed.model_call import state_of

L = keras.layers
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
SIZES = (9, 5)


def mlp(frozen=()):
    keras.utils.set_random_seed(3)
    layers = [L.Dense(8, "relu", name="first"), L.Dense(6, "tanh", name="middle"), L.Dense(3)]
    model = keras.Sequential([keras.Input((4,)), *layers])
    for name in frozen:
        model.get_layer(name).trainable = False
    return model


def fit(model, parts=(), jit=False, rounds=1, server=None):
    fed = tffed.Federated(model, fed_avg(2, batch_size=4), seed=3)
    fed.compile(
        client_optimizer=keras.optimizers.SGD(0.2),
        server_optimizer=server,
        loss=LOSS,
        aggregator=chain(*parts, mean()),
        jit_compile=jit,
        processes=False,
    )
    history = fed.fit(from_dict(make_clients(SIZES)), rounds=rounds, verbose=0).history
    return history["bytes_up"][-1] / len(SIZES), history["bytes_down"][-1] / len(SIZES)


def test_only_chosen_layers_are_sent_though_all_are_trained():
    whole, part, start = mlp(), mlp(), mlp().get_weights()
    (up, down), (less_up, less_down) = fit(whole), fit(part, [send_only(part, ["middle"])])
    expected, found = whole.get_weights(), part.get_weights()
    assert_close(found[2:4], expected[2:4], 1e-6)  # as if all had been sent
    assert differs(found[2:4], start[2:4], 0.01)
    assert_same_bits(found[:2] + found[4:], start[:2] + start[4:])
    assert up - less_up == 4 * (whole.count_params() - (8 * 6 + 6)) and down == less_down


def test_layers_that_are_not_sent_stay_whatever_the_servers_optimizer_does():
    def server():
        return keras.optimizers.AdamW(0.1, weight_decay=0.1)

    whole, part, start = mlp(), mlp(), mlp().get_weights()
    fit(whole, server=server())
    fit(part, [send_only(part, ["middle"])], server=server())
    assert_close(part.get_weights()[2:4], whole.get_weights()[2:4], 1e-6)
    assert differs(whole.get_weights()[:2], start[:2], 0.01)
    fit(part, [send_only(part, ["middle"])], server=server(), rounds=2)
    found = part.get_weights()
    assert_same_bits(found[:2] + found[4:], start[:2] + start[4:])


def test_frozen_layers_travel_neither_up_nor_down():
    whole, part = mlp(), mlp(["first"])
    (up, down), (less_up, less_down) = fit(whole), fit(part)
    assert up - less_up == down - less_down == 4 * (4 * 8 + 8)
    assert_same_bits(part.get_weights()[:2], mlp().get_weights()[:2])


def test_only_adapters_travel_and_the_saved_model_has_them(tmp_path):
    plain, model = mlp(), lora(mlp(), 2, ["first", "middle"])
    kernels = [model.get_layer(n)._kernel.numpy() for n in ("first", "middle")]
    adapters = 2 * (4 + 8) + 2 * (8 + 6)
    assert sum(v.shape.num_elements() for v in model.trainable_variables) == adapters
    assert state_of(model).statistics == []
    (up, down), (less_up, less_down) = fit(plain), fit(model, jit=True, rounds=3)
    assert up - less_up == down - less_down == 4 * (plain.count_params() - adapters)
    for name, kernel in zip(("first", "middle"), kernels, strict=True):
        layer = model.get_layer(name)
        assert_same_bits(layer._kernel.numpy(), kernel)
        low = layer.lora_kernel_a.numpy() @ layer.lora_kernel_b.numpy()
        assert np.abs(low).max() > 1e-3
        assert_close(layer.kernel, kernel + low, 1e-5)
    x = np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32)
    model.save(tmp_path / "adapted.keras")
    loaded = keras.models.load_model(tmp_path / "adapted.keras")
    assert_close(loaded.predict(x, verbose=0), model.predict(x, verbose=0), 1e-5)


def test_a_local_step_on_adapters_equals_keras():
    model, witness = lora(mlp(), 2), lora(mlp(), 2)
    # Of one matrix in each adapter: the other is zero at first, and random from layer to layer.
    for variable, other in zip(model.variables, witness.variables, strict=True):
        value = 0.1 * np.random.default_rng(1).normal(size=variable.shape)
        variable.assign(variable + value)
        other.assign(variable)
    x, y = make_clients((6,))[0]
    fed = tffed.Federated(model, fed_avg(3), seed=3)
    fed.compile(client_optimizer=keras.optimizers.SGD(0.2), loss=LOSS, jit_compile=False)
    fed.fit({0: (x, y)}, verbose=0)
    witness.compile(optimizer=keras.optimizers.SGD(0.2), loss=LOSS)
    for _ in range(3):
        witness.train_on_batch(x, y)
    assert_close(model.get_weights(), witness.get_weights(), 2e-5)
    assert len(model.trainable_variables) == 6


def test_adapters_in_layers_of_layers_and_all_else_frozen():
    keras.utils.set_random_seed(1)
    inputs = keras.Input((3,), dtype="int32")
    x = L.Embedding(7, 4)(inputs)
    x = L.LayerNormalization()(L.MultiHeadAttention(2, 2)(x, x))
    model = lora(keras.Model(inputs, L.Dense(3)(L.Flatten()(x))), 1)
    assert all("lora" in v.name for v in model.trainable_variables)
    assert len(model.trainable_variables) == 2 * 6 and state_of(model).statistics == []


def of(model):
    return send_only(model, ["middle"])


def started(*stages):
    """What a client of the model keeps before the first round."""
    like = tuple(tf.TensorSpec(v.shape) for v in mlp().trainable_variables)
    return chain(*stages, mean()).client_init(like)


def test_error_feedback_and_power_sgd_may_follow():
    (residual, _), shapes = started(of(mlp()), error_feedback(top_k(2)))[1], [(8, 6), (6,)]
    assert [tuple(r.shape) for r in residual] == shapes
    (start,) = started(of(mlp()), power_sgd(1, min_size=1))[1]
    assert start.shape == (6, 1)


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (lambda: send_only(mlp(), ["nowhere"]), "'nowhere'. It has"),
        (lambda: send_only(mlp(), [L.Dense(3)]), "layers of the model"),
        (lambda: send_only(mlp(["first"]), ["first"]), "layers with trainable weights"),
        (
            lambda: send_only(mlp(), ["first"]).passes((tf.TensorSpec([2]),)),
            "Put send_only first in the chain",
        ),
        (lambda: started(rotate(8), of(mlp())), "Put send_only first in the chain"),
        (lambda: started(power_sgd(1, min_size=1), of(mlp())), "Put send_only first in the chain"),
        (lambda: started(power_sgd(1), of(mlp())), "Put send_only first in the chain"),
        (lambda: error_feedback(of(mlp()), top_k(2)), "never sends.*Put it before"),
        (lambda: lora(mlp(), 0), "`rank` must be a positive integer"),
        (lambda: lora(lora(mlp(), 2), 2, ["first"]), "have none. Received: layer 'first'"),
        (lambda: lora(keras.Sequential([keras.Input((2,)), L.ReLU()]), 2), "with none"),
        (lambda: lora(keras.Sequential([L.Dense(2)]), 2), "Expected a built model"),
    ],
)
def test_refuses(attempt, message):
    with pytest.raises(ValueError, match=message) as error:
        attempt()
    assert "Received: " in str(error.value)
