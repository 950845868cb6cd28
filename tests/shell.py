"""What the tests of the Keras shell share: separable data, its clients, a compiled run."""

import keras
import numpy as np

import tffed

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def blobs(count, seed=0):
    """Two classes that a linear model separates."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, count)
    x = rng.normal(size=(count, 4)) + 2.0 * y[:, None]
    return x.astype(np.float32), y


def population(clients=6, seed=0):
    return tffed.data.partition(
        *blobs(120, seed), clients=clients, scheme=tffed.data.Dirichlet(1.0), seed=1
    )


def classifier(batch_norm=False):
    keras.utils.set_random_seed(2)
    middle = [keras.layers.BatchNormalization(momentum=0.8)] if batch_norm else []
    return keras.Sequential([keras.Input((4,)), *middle, keras.layers.Dense(2)])


def compiled(recipe=None, model=None, **arguments):
    fed = tffed.Federated(model or classifier(), recipe or tffed.fed_avg(batch_size=8), seed=3)
    arguments = {"client_optimizer": keras.optimizers.SGD(0.1), "loss": LOSS} | arguments
    fed.compile(metrics=["accuracy"], **arguments)
    return fed


def weights(fed):
    return fed.model.get_weights()
