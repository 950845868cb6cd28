"""Small runs with noise, as the tests of claims make them: ten clients, a Dense(3) of zeros."""

import keras
import numpy as np

import tffed

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
UNIFORM = tffed.mean("uniform")
DELTA = 1e-5


def net():
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, kernel_initializer="zeros")])


def pop(clients=10, examples=10, seed=0):
    """Clients of normal examples; `examples` may be a list, one number a client."""
    rng = np.random.default_rng(seed)
    sizes = examples if isinstance(examples, list) else [examples] * clients
    return {
        f"c{k:02d}": (rng.normal(size=(n, 4)).astype("f4"), rng.integers(0, 3, n))
        for k, n in enumerate(sizes)
    }


def make(*stages, recipe=None, model=None, seed=0, client=0.1, **arguments):
    """A compiled `Federated` that averages what these stages make of updates."""
    fed = tffed.Federated(model or net(), recipe or tffed.fed_avg(batch_size=5), seed=seed)
    compile_again(fed, *stages, client=client, **arguments)
    return fed


def compile_again(fed, *stages, client=0.1, **arguments):
    optimizer = None if client is None else keras.optimizers.SGD(client)
    settings = {"loss": LOSS, "jit_compile": False} | arguments
    fed.compile(optimizer, aggregator=tffed.chain(*(stages or [UNIFORM])), **settings)


def flat(model):
    return np.concatenate([w.ravel() for w in model.get_weights()]).astype(np.float64)
