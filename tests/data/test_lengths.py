"""Sequences of unequal length: padded where the model at hand is found to ignore it."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tffed
from tffed import data
from tffed.data.lengths import joined, rounded
from tffed.data.spec import LeafSpec
from tffed.sequence_padding import padding_is_seen

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def build(*behind, mask=True, dtype="int32"):
    model = keras.Sequential(
        [keras.Input((None,), dtype=dtype), layers.Embedding(9, 3, mask_zero=mask), *behind]
    )
    model.compile(loss=LOSS)
    return model


def recurrent(**options):
    return build(layers.SimpleRNN(3, **options), layers.Dense(2))


def clients_of(lengths, per_step=False):
    rng = np.random.default_rng(1)
    found = {}
    for k, length in enumerate(lengths):
        x = rng.integers(1, 9, (4, length)).astype("int32")
        found[k] = x, (x % 2 if per_step else x[:, 0] % 2)
    return found


def compiled(model):
    fed = tffed.Federated(model, tffed.fed_avg(batch_size=3), seed=2)
    fed.compile(keras.optimizers.SGD(0.5), loss=LOSS, jit_compile=False)
    return fed


@pytest.fixture(scope="module")
def trained():
    """A federation over clients of two lengths, and its model before and after."""
    model = recurrent()
    before = model.get_weights()
    fed = compiled(model)
    fed.fit(clients_of((3, 5)), verbose=0)
    return fed, before, model.get_weights()


def test_each_client_gives_what_it_gives_alone_and_unpadded(trained):
    fed, before, after = trained
    alone = []
    for k, parts in clients_of((3, 5)).items():
        fed.model.set_weights(before)
        fed.state = None
        fed.fit(data.from_dict({k: parts}), verbose=0)
        alone.append(fed.model.get_weights())
    for got, *each in zip(after, *alone, strict=True):
        np.testing.assert_allclose(got, np.mean(each, axis=0), atol=1e-6)
    assert max(np.abs(a - b).max() for a, b in zip(before, after, strict=True)) > 1e-2


def test_clients_read_on_demand_train_alike(trained):
    fed, before, after = trained
    held = clients_of((3, 5))

    def batches(k):
        return tf.data.Dataset.from_tensor_slices(held[k]).padded_batch(3)

    for read in (held.__getitem__, batches):
        fed.model.set_weights(before)
        fed.state = None
        fed.fit(data.from_function(range(2), read), verbose=0)
        for got, want in zip(fed.model.get_weights(), after, strict=True):
            np.testing.assert_allclose(got, want, atol=1e-6)
    evaluated = fed.evaluate(data.from_dict(held))
    for k, parts in held.items():
        assert evaluated.metrics["loss"][k] == pytest.approx(
            fed.model.evaluate(*parts, verbose=0), abs=1e-5
        )


def seen(model, lengths=(3, 4), **options):
    functional = tffed.from_keras(model, LOSS)
    clients = data.from_dict(clients_of(lengths[:1], **options))
    opened = tuple(
        LeafSpec(tuple(None for _ in leaf.shape), leaf.dtype) for leaf in clients.leaf_specs()
    )
    return padding_is_seen(functional, clients, opened)


def test_what_ignores_padding_is_told_from_what_sees_it():
    steps = layers.SimpleRNN(3, return_sequences=True)
    assert seen(build(steps, layers.Dropout(0.5), layers.Dense(2)), per_step=True) is None
    assert seen(build(layers.GlobalAveragePooling1D(), layers.Dense(2))) is None
    for model in (
        build(layers.SimpleRNN(3), layers.Dense(2), mask=False),
        build(layers.GlobalAveragePooling1D(), layers.Dense(2), mask=False),
        # Its bias is zero at first, which hides the padding.
        build(layers.Conv1D(8, 1, activation="relu"), layers.GlobalMaxPooling1D(), layers.Dense(2),
              mask=False),
    ):
        assert "padding changes" in seen(model)
    unmasked = build(layers.SimpleRNN(3, return_sequences=True), layers.Dense(2), mask=False)
    assert "padding changes" in seen(unmasked, per_step=True)


class Counting(layers.Layer):
    """Counts its calls in a weight of its own, and has a weight that it does not use."""

    def build(self, shape):
        self.calls = self.add_weight(shape=(), initializer="zeros", dtype="int32", trainable=False)
        self.idle = self.add_weight(shape=(2,), initializer="ones")

    def call(self, x, training=False):
        if training:
            self.calls.assign_add(1)
        return x


def test_models_with_counters_and_idle_weights_are_tried_too():
    pooled = layers.GlobalAveragePooling1D()
    assert seen(build(pooled, layers.Dense(2), Counting())) is None
    pooled = layers.GlobalAveragePooling1D()
    assert "padding changes" in seen(build(pooled, layers.Dense(2), Counting(), mask=False))


@pytest.mark.parametrize("noise", [layers.GaussianNoise(0.1), layers.Dropout(0.2)])
def test_a_maximum_over_positive_values_does_not_hide_the_padding(noise):
    rng = np.random.default_rng(3)
    clients = {k: (rng.uniform(1, 2, (4, n, 2)), np.arange(4) % 2) for k, n in enumerate((3, 5))}
    negative = {k + 2: (-x, y) for k, (x, y) in clients.items()}
    model = keras.Sequential(
        [keras.Input((None, 2)), noise, layers.GlobalMaxPooling1D(), layers.Dense(2)]
    )
    with pytest.raises(ValueError, match="several lengths, and padding changes"):
        compiled(model).fit(clients | negative, verbose=0)



def test_a_table_of_positions_may_end_soon_after_the_longest():
    class Places(layers.Layer):
        def __init__(self):
            super().__init__()
            self.supports_masking = True
            self.table = layers.Embedding(4, 3)

        def call(self, x):
            return x + self.table(keras.ops.arange(keras.ops.shape(x)[1]))

    class Mean(layers.Layer):
        def compute_mask(self, x, mask=None):
            return None

        def call(self, x, mask=None):
            mask = keras.ops.cast(mask, x.dtype)[..., None]
            return keras.ops.sum(x * mask, 1) / keras.ops.sum(mask, 1)

    assert seen(build(Places(), layers.GlobalAveragePooling1D(), layers.Dense(2))) is None
    assert seen(build(Places(), Mean(), layers.Dense(2))) is None
    tight = build(Places(), Mean(), layers.Dense(2))  # takes a NaN times 0
    assert "longer sequences make a NaN" in seen(tight, lengths=(4, 4))


def test_refusals_say_what_changes_or_who_differs():
    fed = compiled(build(layers.GlobalAveragePooling1D(), layers.Dense(2), mask=False))
    with pytest.raises(ValueError, match="padding changes the gradient of.*mask_zero=True"):
        fed.fit(clients_of((3, 4)), verbose=0)
    held = clients_of((3, 4))
    clients = data.from_function(range(2), held.__getitem__)
    with pytest.raises(ValueError, match=r"x of client 1 to have shape \(3,\).*shape \(4,\)"):
        fed.fit(clients, verbose=0)
    ragged = tf.ragged.constant([[1, 2], [3]], dtype=tf.int32)
    with pytest.raises(ValueError, match="Received: several lengths, and padding changes"):
        fed.fit({0: (ragged, np.zeros(2, int))}, verbose=0)


def test_ragged_and_sparse_values_become_arrays():
    ragged = tf.ragged.constant([[1, 2], [3, 4]])
    dense = np.array([[0, 2.0], [3, 0]], "f4")
    scipy_sparse = pytest.importorskip("scipy.sparse").csr_matrix(dense)
    y = np.zeros(2, int)
    got = data.from_dict({0: ((ragged, tf.sparse.from_dense(dense), scipy_sparse), y)})[0][0]
    np.testing.assert_array_equal(got[0], [[1, 2], [3, 4]])
    np.testing.assert_array_equal(got[1], dense)
    np.testing.assert_array_equal(got[2], dense)


def test_a_federation_in_memory_is_padded_to_its_longest_and_once():
    clients = data.from_dict(clients_of((3, 11, 4)))
    spec = tuple(LeafSpec((None,) * len(s.shape), s.dtype) for s in clients.leaf_specs())
    whole = clients.padded(spec)
    assert whole.resident and whole is clients.padded(spec)
    assert whole[0][0].shape == (4, 11) and clients[0][0].shape == (4, 3)
    np.testing.assert_array_equal(whole[2][0][:, :4], clients.subset([2])[2][0])
    assert not whole[2][0][:, 4:].any()
    part = clients.subset([2, 0]).padded(spec)
    assert part.ids == (2, 0) and part[2][0].shape == (4, 4)
    read = data.from_function(range(3), clients_of((3, 11, 4)).__getitem__).view(spec=spec)
    assert read.examples([0, 1]).arrays[0].shape == (8, 12)


def test_lengths_come_in_few_sizes():
    sizes = [rounded(n) for n in range(1, 1000)]
    assert all(n <= size < max(9, 1.26 * n) for n, size in enumerate(sizes, 1))
    assert len(set(sizes)) < 40 and sizes == sorted(sizes)
    one, other = np.ones((1, 9, 2)), np.ones((2, 3, 2))
    assert joined([one, other], (None, 2)).shape == (3, 10, 2)
    np.testing.assert_array_equal(joined([one, other])[2, :, 0], [1] * 3 + [0] * 6)
