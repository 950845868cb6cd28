"""Worker processes: the same sums as in this process, and nothing left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.helpers import assert_close, assert_same_bits, build, make_clients
from tffed import random
from tffed.aggregation import median
from tffed.algorithms import fed_avg, scaffold
from tffed.data import from_dict, from_function
from tffed.engines.embedded import Embedded
from tffed.model import from_keras
from tffed.store import ClientStore

SIZES = (5, 12, 3, 9, 1, 7)
TOLERANCE = 1e-4  # BatchNorm magnifies rounding
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
ROOT = Path(__file__).parents[2]


def model(loss=LOSS, filters=6):
    """Convolutional, so that its lanes have no XLA."""
    keras.utils.set_random_seed(3)
    layers = keras.layers
    return from_keras(
        keras.Sequential([
            keras.Input((4,)),
            layers.Reshape((4, 1)),
            layers.Conv1D(filters, 2, activation="relu"),
            layers.BatchNormalization(),
            layers.Flatten(),
            layers.Dense(16),
            layers.Dense(3),
        ]),
        loss,
        metrics=["accuracy"],
    )


def rounds(engine, clients, count=2, pure=None):
    """The state, metrics and clients' states after so many rounds of all clients."""
    store, history = ClientStore(), []
    state = engine.algorithm.init((pure or MODEL).init(), len(clients))
    for _ in range(count):
        state, metrics = engine.run_round(
            state, clients, list(clients.ids), seed=random.seed(1), store=store
        )
        history.append(metrics)
    return state, history, [store.get(cid) or [] for cid in clients.ids]


MODEL = model()


@pytest.fixture(scope="module")
def remote():
    """An engine whose workers several tests use."""
    algorithm = build(scaffold(batch_size=4), MODEL, client=keras.optimizers.SGD(0.1))
    engine = Embedded(algorithm, lanes=2, processes=True)
    yield engine
    engine._workers._pool.shutdown(kill_workers=True)


def test_workers_compute_what_this_process_computes(remote):
    clients = from_dict(make_clients(SIZES))
    found = rounds(remote, clients)
    (program,) = remote._programs.values()
    assert program.remote
    here = Embedded(remote.algorithm, lanes=2, processes=False)
    expected = rounds(here, clients)
    assert_close(found, expected, TOLERANCE)
    assert (remote.bytes_up, remote.bytes_down) == (here.bytes_up, here.bytes_down)


def test_bits_depend_neither_on_the_number_of_workers_nor_on_how_data_is_held(remote):
    data = make_clients(SIZES)
    first = rounds(remote, from_dict(data))
    lazy = from_function(range(len(SIZES)), data.__getitem__)
    assert_same_bits(rounds(remote, from_dict(data)), first)
    alone = Embedded(remote.algorithm, lanes=1, processes=True)
    assert_same_bits(rounds(alone, from_dict(data)), first)
    # Here the sums may be added in another order: the sizes are not asked for beforehand.
    assert_close(rounds(alone, lazy), first, TOLERANCE)
    alone._workers._pool.shutdown(kill_workers=True)


def test_reports_that_are_collected_come_back_one_by_one(remote):
    clients = from_dict(make_clients(SIZES))
    algorithm = build(fed_avg(batch_size=4), MODEL, client=keras.optimizers.SGD(0.1),
                      parts=[median()])  # fmt: skip
    engine = Embedded(algorithm, lanes=2, processes=True)
    engine._workers = remote._workers
    here = Embedded(algorithm, lanes=2, processes=False)
    assert_close(rounds(engine, clients), rounds(here, clients), TOLERANCE)


def test_a_dead_worker_is_told_and_replaced(remote):
    clients = from_dict(make_clients(SIZES))
    before = rounds(remote, clients)
    os.kill(next(iter(remote._workers._pool._processes)), signal.SIGKILL)
    with pytest.raises(RuntimeError, match="A worker process died.*fewer lanes"):
        rounds(remote, clients)
    assert_same_bits(rounds(remote, clients), before)


def test_python_code_in_the_graph_stays_in_this_process(remote):
    @keras.saving.register_keras_serializable("tests")
    def loss(y, y_pred):
        y = tf.numpy_function(lambda labels: np.asarray(labels), [y], y.dtype, stateful=False)
        y = tf.reshape(y, tf.shape(y_pred)[:1])
        return keras.losses.sparse_categorical_crossentropy(y, y_pred, from_logits=True)

    algorithm = build(fed_avg(batch_size=4), model(loss), client=keras.optimizers.SGD(0.1))
    engine = Embedded(algorithm, processes=True)
    engine._workers = remote._workers
    rounds(engine, from_dict(make_clients(SIZES)), count=1)
    (program,) = engine._programs.values()
    assert not program.remote


@pytest.mark.parametrize(("filters", "expected"), [(6, False), (2000, True)])
def test_models_of_a_hundred_thousand_weights_have_workers(remote, filters, expected):
    pure = model(filters=filters)
    algorithm = build(fed_avg(), pure, client=keras.optimizers.SGD(0.1))
    engine = Embedded(algorithm)
    engine._workers = remote._workers
    rounds(engine, from_dict(make_clients(SIZES[:2])), count=1, pure=pure)
    (program,) = engine._programs.values()
    assert program.remote is expected


_PROGRAM = """
import os, signal, sys
from tffed.engines import worker
from tffed.engines.workers import Workers

if __name__ == "__main__":
    workers = Workers(2)
    for future in [workers._pool.submit(os.getpid) for _ in range(2)]:
        future.result()
    print(*workers._pool._processes, workers._folder.name, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_workers_end_with_a_program_that_is_killed(tmp_path):
    (tmp_path / "program.py").write_text(_PROGRAM)
    done = subprocess.run(
        [sys.executable, tmp_path / "program.py"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    *numbers, folder = done.stdout.split()
    end = time.monotonic() + 60
    while any(alive(int(n)) for n in numbers) or Path(folder).exists():
        assert time.monotonic() < end, "workers outlive their program"
        time.sleep(0.2)


def alive(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True
