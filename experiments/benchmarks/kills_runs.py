"""The runs that `kills` interrupts: small, and between them all that a run writes down."""

import hashlib
import json

import keras
import numpy as np
import tensorflow as tf

import tffed
from tffed import privacy

ROUNDS = 12


def _scaffold():
    return tffed.scaffold(batch_size=4)


def _fed_avg():
    return tffed.fed_avg(batch_size=4)


def _feedback():
    return tffed.chain(tffed.error_feedback(tffed.top_k(0.2), tffed.quantize(8)), tffed.mean())


def _noised(stage):
    return lambda: tffed.chain(stage(), tffed.mean("uniform", denominator=3))


_CYCLIC = {"sampler": tffed.data.Cyclic(3)}
# By kind: the algorithm, what `compile` is given and what `fit` is.
KINDS = {
    "scaffold": (_scaffold, dict, {}),
    "scaffold, payloads": (_scaffold, lambda: {"payloads": True}, {}),
    "scaffold, checkpoint_freq=10": (_scaffold, dict, {"checkpoint_freq": 10}),
    "error feedback": (_fed_avg, lambda: {"aggregator": _feedback()}, {}),
    "gaussian": (
        _fed_avg,
        lambda: {"aggregator": _noised(lambda: privacy.gaussian(0.5, 1.0))()},
        {"sampler": tffed.data.Poisson(0.3)},
    ),
    "tree_gaussian": (
        _fed_avg,
        lambda: {"aggregator": _noised(lambda: privacy.tree_gaussian(0.5, 1.0, period=4))()},
        _CYCLIC,
    ),
    "local_gaussian, checkpoint_freq=10": (
        _fed_avg,
        lambda: {"aggregator": _noised(lambda: privacy.local_gaussian(0.5, 1.0))()},
        {"checkpoint_freq": 10},
    ),
    "dp_sgd": (_scaffold, lambda: {"privacy": privacy.dp_sgd(0.5, 1.0)}, {}),
    "worker processes": (_scaffold, lambda: {"processes": True, "lanes": 2}, {}),
    "callbacks": (_scaffold, dict, {"callbacks": True, "checkpoint_freq": 3}),
}


def make(kind):
    """`(federated, clients, arguments of fit)` of a kind of run."""
    algorithm, settings, arguments = KINDS[kind]
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    fed = tffed.Federated(model, algorithm(), seed=5)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    settings = {"jit_compile": False, **settings()}
    fed.compile(keras.optimizers.SGD(0.1), keras.optimizers.SGD(1.0), loss=loss, **settings)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(120, 4)).astype(np.float32)
    y = x[:, :3].argmax(1)
    clients = {k: (x[10 * k : 10 * k + 10], y[10 * k : 10 * k + 10]) for k in range(12)}
    arguments = dict(arguments)
    if arguments.pop("callbacks", False):
        arguments |= {
            "validation_data": (x[:30], y[:30]),
            "callbacks": [
                keras.callbacks.EarlyStopping("val_loss", patience=3, min_delta=0.02),
                keras.callbacks.ReduceLROnPlateau("loss", patience=1, factor=0.5, min_delta=0.1),
            ],
        }
    if "sampler" not in arguments:
        arguments["clients_per_round"] = 4
    return fed, clients, arguments


def digests(fed, clients):
    """Of each thing that a run ends with, a digest of its bits."""
    ledger = fed.ledger.to_json()
    ledger.pop("run")  # drawn by chance
    history = {k: np.asarray(v) for k, v in fed.history.history.items() if k != "seconds"}
    return {
        "state": _digest(tf.nest.flatten(fed.state)),
        "weights": _digest(fed.model.get_weights()),
        "history": _digest([np.asarray(fed.history.epoch), *(history[k] for k in sorted(history))]),
        "store": _digest(a for cid in clients for a in (cid, *(fed.store.get(cid) or ()))),
        "ledger": hashlib.sha256(json.dumps(ledger).encode()).hexdigest(),
    }


def _digest(arrays):
    found = hashlib.sha256()
    for array in map(np.asarray, arrays):
        found.update(f"{array.dtype} {array.shape}".encode() + array.tobytes())
    return found.hexdigest()
