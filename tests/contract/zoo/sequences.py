"""Recurrent layers, attention, embeddings and masks."""

import keras
from keras import layers as L
from keras import ops

from tests.contract.case import case, chain, clients, padded, real, share, whole
from tests.contract.witness import Trial

STEPS = (5, 3)


def regression(*layers):
    return Trial(chain(STEPS, *layers, L.Dense(1)), clients(real(*STEPS), real(1)))


def of_ids(*layers, data=None, **options):
    """A model of ids 1 to 8 that are padded with zeros."""
    model = chain((5,), L.Embedding(9, 4, **options), *layers, L.Dense(1), dtype="int32")
    return Trial(model, data or clients(padded(9, 5), real(1)))


@case
def lstm():
    return regression(L.LSTM(4))


@case
def lstm_variants():
    return regression(
        L.LSTM(4, return_sequences=True, use_bias=False, activation="relu"),
        L.LSTM(3, go_backwards=True, return_sequences=True, unit_forget_bias=False),
        L.LSTM(3, unroll=True),
    )


@case
def gru():
    return regression(L.GRU(4, return_sequences=True), L.GRU(3, reset_after=False))


@case
def simple_rnn_regularized():
    l2 = keras.regularizers.L2(0.05)
    return regression(L.SimpleRNN(4, recurrent_regularizer=l2, activity_regularizer=l2))


@case
def lstm_with_an_activity_regularizer_and_constraints():
    l2 = keras.regularizers.L2(0.05)
    return regression(L.LSTM(4, activity_regularizer=l2, recurrent_constraint="unit_norm"))


@case
def bidirectional():
    layer = L.Bidirectional(L.GRU(3, return_sequences=True), merge_mode="sum")
    return regression(layer, L.Bidirectional(L.LSTM(2)))


class Cell(L.Layer):
    """The user's own recurrent cell."""

    def __init__(self, units):
        super().__init__()
        self.state_size = self.units = units

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], self.units))
        self.recurrent = self.add_weight(shape=(self.units, self.units), initializer="orthogonal")

    def call(self, x, states):
        state = ops.tanh(x @ self.kernel + states[0] @ self.recurrent)
        return state, [state]


@case
def recurrent_cell_of_the_user():
    return regression(L.RNN(Cell(3), return_sequences=True), L.RNN([Cell(2), L.GRUCell(3)]))


@case
def stacked_cells():
    return regression(L.RNN(L.StackedRNNCells([L.LSTMCell(3), L.LSTMCell(2)])))


@case
def convolutional_lstm_1d():
    model = chain((3, 4, 2), L.ConvLSTM1D(2, 3), L.Flatten(), L.Dense(1))
    return Trial(model, clients(real(3, 4, 2), real(1)))


@case
def convolutional_lstm_2d():
    norm = L.BatchNormalization()
    model = chain((3, 4, 4, 1), L.ConvLSTM2D(2, 3), norm, L.Flatten(), L.Dense(1))
    return Trial(model, clients(real(3, 4, 4, 1), real(1)))


@case
def encoder_and_decoder():
    source, target = keras.Input((5, 3), name="source"), keras.Input((4, 2), name="target")
    _, *state = L.LSTM(3, return_state=True)(source)
    decoded = L.LSTM(3, return_sequences=True)(target, initial_state=state)
    model = keras.Model([source, target], L.Dense(2)(decoded))
    return Trial(model, clients((real(5, 3), real(4, 2)), real(4, 2)))


@case
def time_distributed():
    inner = chain((3,), L.Dense(4, "tanh"), L.Dense(2))
    return regression(L.TimeDistributed(inner), L.TimeDistributed(L.Dense(2)), L.Flatten())


@case
def time_distributed_batch_normalisation():
    return regression(L.TimeDistributed(L.BatchNormalization()), L.Flatten())


# Masks.


@case
def mask_zero_lstm():
    return of_ids(L.LSTM(4), mask_zero=True)


@case
def mask_zero_gru_bidirectional():
    return of_ids(L.Bidirectional(L.GRU(3)), mask_zero=True)


@case
def mask_zero_average():
    return of_ids(L.GlobalAveragePooling1D(), mask_zero=True)


@case
def mask_zero_of_a_sequence_loss():
    data = clients(padded(9, 5), whole(9, 5), share(5))
    model = chain(
        (5,),
        L.Embedding(9, 4, mask_zero=True),
        L.GRU(4, return_sequences=True),
        L.Dense(9),
        dtype="int32",
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    compiled = {"metrics": ["accuracy"], "weighted_metrics": ["accuracy"]}
    return Trial(model, data, loss, compiled=compiled)


@case
def masking_of_a_sequence_loss_without_weights():
    model = chain((5, 3), L.Masking(), L.SimpleRNN(4, return_sequences=True), L.Dense(2))

    def features(rng, n):
        x = real(5, 3)(rng, n)
        x[::2, 3:] = 0
        x[1::3, 1:] = 0
        return x

    return Trial(model, clients(features, real(5, 2)))


@case
def mask_zero_attention():
    ids = keras.Input((5,), dtype="int32")
    x = L.Embedding(9, 4, mask_zero=True)(ids)
    x = L.LayerNormalization()(x + L.MultiHeadAttention(2, 2)(x, x, use_causal_mask=True))
    model = keras.Model(ids, L.Dense(1)(L.GlobalAveragePooling1D()(x)))
    return Trial(model, clients(padded(9, 5), real(1)))


@case
def mask_given_as_an_input():
    x, mask = keras.Input((5, 3), name="x"), keras.Input((5,), dtype="bool", name="mask")
    model = keras.Model({"x": x, "mask": mask}, L.Dense(1)(L.LSTM(3)(x, mask=mask)))

    def ends(rng, n):
        return padded(2, 5)(rng, n).astype(bool)

    return Trial(model, clients({"x": real(5, 3), "mask": ends}, real(1)))


# Attention and embeddings.


@case
def attention_heads():
    x = keras.Input((5, 4))
    y = L.MultiHeadAttention(2, 3)(x, x)
    y = L.GroupQueryAttention(2, 2, 1)(y, x)
    return Trial(keras.Model(x, L.Dense(1)(L.Flatten()(y))), clients(real(5, 4), real(1)))


@case
def attention_of_the_older_kinds():
    x = keras.Input((5, 4))
    y = L.Attention(use_scale=True)([L.Dense(3)(x), L.Dense(3)(x)])
    y = L.AdditiveAttention()([y, L.Dense(3)(x)])
    y = L.Attention(score_mode="concat")([y, y])
    return Trial(keras.Model(x, L.Dense(1)(L.Flatten()(y))), clients(real(5, 4), real(1)))


@case
def einsum_and_dot():
    x = keras.Input((5, 4))
    y = L.EinsumDense("abc,cd->abd", output_shape=(5, 3), bias_axes="d")(x)
    y = L.Dot(axes=(2, 2))([y, L.Dense(3)(x)])
    return Trial(keras.Model(x, L.Dense(1)(L.Flatten()(y))), clients(real(5, 4), real(1)))


@case
def embedding_with_plain_sgd():
    return of_ids(L.GlobalAveragePooling1D())


@case
def embedding_with_regularizers():
    l2 = keras.regularizers.L2(0.05)
    options = {"embeddings_regularizer": l2, "activity_regularizer": l2}
    return of_ids(L.GlobalMaxPooling1D(), **options)


@case
def tied_embeddings():
    ids = keras.Input((5,), dtype="int32")
    embed = L.Embedding(9, 4)
    hidden = L.GRU(4, return_sequences=True)(embed(ids))
    model = keras.Model(ids, L.Lambda(lambda h: h @ ops.transpose(embed.embeddings))(hidden))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return Trial(model, clients(whole(9, 5), whole(9, 5)), loss, tolerance=5e-6)


@case
def reversible_embedding():
    ids = keras.Input((5,), dtype="int32")
    embed = L.ReversibleEmbedding(9, 4)
    model = keras.Model(ids, embed(L.Dense(4)(embed(ids)), reverse=True))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return Trial(model, clients(whole(9, 5), whole(9, 5)), loss)


@case
def sequences_of_any_length():
    model = chain((None,), L.Embedding(9, 4), L.LSTM(3), L.Dense(1), dtype="int32")
    return Trial(model, clients(whole(9, 5), real(1)))
