"""A training run for test_resume.py, in a process of its own so that it can be killed.

`python resume_program.py DIRECTORY KILL` prints a digest of everything the run ends with. KILL is
`none`, or `CALL:NUMBER` to send SIGKILL to itself just before the NUMBER-th call of `os.CALL`:
checkpoints are written with `os.fsync` and `os.replace`.
"""

import hashlib
import os
import signal
import sys

import keras
import numpy as np
import tensorflow as tf

import tffed

ROUNDS = 8


def main(directory, kill):
    if kill != "none":
        _die_before(*kill.split(":"))
    keras.utils.set_random_seed(1)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(240, 6)).astype(np.float32)
    y = (x[:, 0] + x[:, 1] ** 2 > 0.5).astype(np.int64)
    clients = tffed.data.partition(x, y, clients=12, scheme=tffed.data.Dirichlet(1.0), seed=1)
    model = keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(8, "relu"),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.2),
            keras.layers.Dense(2),
        ]
    )
    fed = tffed.Federated(model, tffed.scaffold(local_epochs=2, batch_size=8), seed=5)
    fed.compile(
        client_optimizer=keras.optimizers.SGD(0.05),
        server_optimizer=keras.optimizers.Adam(0.05),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        aggregator=tffed.chain(tffed.adaptive_clip(0.5), tffed.mean("uniform")),
        batch_norm="local",
    )
    history = fed.fit(
        clients,
        rounds=ROUNDS,
        sampler=tffed.data.Poisson(0.4),
        validation_data=(x[:50], y[:50]),
        callbacks=[
            keras.callbacks.EarlyStopping("val_loss", patience=6, restore_best_weights=True),
            keras.callbacks.ReduceLROnPlateau("loss", patience=1, factor=0.5),
        ],
        checkpoint_dir=directory,
        verbose=0,
    )
    print(digest(fed, history, clients))


def digest(fed, history, clients):
    """A hash of the state, the clients' states, the weights and the history but for the times."""
    leaves = [np.asarray(leaf) for leaf in tf.nest.flatten(fed.state)]
    leaves += [np.asarray(w) for w in fed.model.get_weights()]
    leaves += [leaf for cid in clients.ids for leaf in fed.store.get(cid) or ()]
    found = hashlib.sha256(b"".join(leaf.tobytes() for leaf in leaves))
    kept = {k: [float(v) for v in vs] for k, vs in history.history.items() if k != "seconds"}
    found.update(repr((history.epoch, sorted(kept.items()))).encode())
    return found.hexdigest()


def _die_before(name, number):
    real, calls = getattr(os, name), 0

    def counted(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == int(number):
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)

    setattr(os, name, counted)


if __name__ == "__main__":
    main(*sys.argv[1:])
