"""Worker processes: the same sums as in this process, and nothing left behind."""

import gc
import os
import pickle
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
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
from tffed.engines import files
from tffed.engines.embedded import Embedded
from tffed.engines.workers import _arrays, _Latest
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
    return Embedded(algorithm, lanes=2, processes=True)


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


def test_reports_that_are_collected_come_back_one_by_one(remote):
    clients = from_dict(make_clients(SIZES))
    algorithm = build(fed_avg(batch_size=4), MODEL, client=keras.optimizers.SGD(0.1),
                      parts=[median()])  # fmt: skip
    engine = Embedded(algorithm, lanes=2, processes=True)
    here = Embedded(algorithm, lanes=2, processes=False)
    assert_close(rounds(engine, clients), rounds(here, clients), TOLERANCE)


@pytest.mark.parametrize("found_out", [False, True], ids=["at work", "before"])
def test_a_dead_worker_is_told_and_replaced(remote, found_out):
    clients = from_dict(make_clients(SIZES))
    before = rounds(remote, clients)
    pool = remote._workers._pool
    os.kill(next(iter(pool._processes)), signal.SIGKILL)
    end = time.monotonic() + 60
    while found_out and pool._flags.broken is None:
        assert time.monotonic() < end
        time.sleep(0.05)
    with pytest.raises(RuntimeError, match="A worker process died.*fewer lanes"):
        rounds(remote, clients)
    assert_same_bits(rounds(remote, clients), before)


def test_other_labels_of_the_same_features_are_other_data(remote):
    remote._start_workers(1)
    workers, x = remote._workers, np.arange(4.0)
    for k in range(5):
        y = np.full(4, k)  # likely to come where the last one was
        np.testing.assert_array_equal(files.read(workers.store((x, y)))[1], y)
        del y


def test_python_code_in_the_graph_stays_in_this_process(remote):
    @keras.saving.register_keras_serializable("tests")
    def loss(y, y_pred):
        y = tf.numpy_function(lambda labels: np.asarray(labels), [y], y.dtype, stateful=False)
        y = tf.reshape(y, tf.shape(y_pred)[:1])
        return keras.losses.sparse_categorical_crossentropy(y, y_pred, from_logits=True)

    algorithm = build(fed_avg(batch_size=4), model(loss), client=keras.optimizers.SGD(0.1))
    engine = Embedded(algorithm, processes=True)
    rounds(engine, from_dict(make_clients(SIZES)), count=1)
    (program,) = engine._programs.values()
    assert not program.remote


@pytest.mark.parametrize(("filters", "expected"), [(6, False), (2000, True)])
def test_models_of_a_hundred_thousand_weights_have_workers(remote, filters, expected):
    pure = model(filters=filters)
    algorithm = build(fed_avg(), pure, client=keras.optimizers.SGD(0.1))
    engine = Embedded(algorithm)
    rounds(engine, from_dict(make_clients(SIZES[:2])), count=1, pure=pure)
    (program,) = engine._programs.values()
    assert program.remote is expected


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="sets processors as Linux does")
def test_bits_do_not_depend_on_the_number_of_processors(tmp_path):
    """In this process they do: XLA splits the products of this model by the number of threads."""
    codes = (_WIDE.format(processors=n) for n in (1, os.cpu_count()))
    digests = {program(tmp_path, code, check=True).stdout for code in codes}
    assert len(digests) == 1 and len(digests.pop().strip()) == 32


def test_files_of_a_federation_last_as_long_as_it_does(remote):
    clients = from_dict(make_clients(SIZES))
    rounds(remote, clients, count=1)
    stored = remote._workers.store(clients.examples([]).arrays)
    assert stored is remote._workers.store(clients.examples([]).arrays)
    for found, held in zip(files.read(stored), clients.examples([]).arrays, strict=True):
        np.testing.assert_array_equal(found, held)
    rounds(remote, from_dict(make_clients(SIZES, seed=1)), count=1)
    np.testing.assert_array_equal(files.read(stored)[0], clients.examples([]).arrays[0])
    assert stored in [kept for _, kept in remote._workers._stored.values()]
    del clients, held
    gc.collect()
    assert stored not in [kept for _, kept in remote._workers._stored.values()]


@pytest.mark.parametrize("named", [False, True])
def test_arrays_in_a_file_come_back_as_they_were(tmp_path, named):
    rng = np.random.default_rng(0)
    arrays = [
        rng.normal(size=(3, 5)).astype(np.float32),
        np.float64(2.5),
        rng.integers(0, 9, (7, 1, 2)).T,
        np.zeros((0, 4), np.int32),
        np.array([True, False]),
    ]
    file = files.File(tmp_path if named else None)
    stored = files.write(file.place, arrays)
    found = files.read(pickle.loads(pickle.dumps(stored)))
    del file
    assert not list(tmp_path.iterdir()) and not os.path.exists(stored.place.path)
    for a, b in zip(found, arrays, strict=True):
        assert (a.dtype, a.shape) == (np.asarray(b).dtype, np.shape(b))
        np.testing.assert_array_equal(a, b)
        assert a.ctypes.data % 64 == 0
    file = files.File(tmp_path if named else None)
    assert files.read(files.write(file.place, [])) == []


_WIDE = """
import os
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:{processors}])
import hashlib, keras, numpy as np, tffed

if __name__ == "__main__":
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(240, 784)).astype(np.float32), rng.integers(0, 10, 240)
    clients = tffed.data.partition(x, y, clients=4, scheme=tffed.data.IID(), seed=0)
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(200, "relu"), keras.layers.Dense(10, "softmax")]
    fed = tffed.Federated(keras.Sequential([keras.Input((784,)), *layers]),
                          tffed.fed_avg(batch_size=20), seed=1)
    fed.compile(keras.optimizers.SGD(0.1), loss="sparse_categorical_crossentropy", processes=True)
    fed.fit(clients, rounds=2, verbose=0)
    bits = b"".join(w.tobytes() for w in fed.model.get_weights())
    print(hashlib.md5(bits).hexdigest())
"""


_PROGRAM = """
import os, signal, sys
import numpy as np
from tffed.engines import files, workers

if __name__ == "__main__":
    if sys.argv[1] == "named":
        files.folder = files.Folder
    workers = workers.at_least(2)
    for future in [workers._pool.submit(os.getpid) for _ in range(2)]:
        future.result()
    arrays = [np.arange(1000.0)]
    stored = workers.store(arrays)
    (found,) = workers._pool.submit(files.read, stored).result()
    assert found.sum() == arrays[0].sum()
    print(*workers._pool._processes, flush=True)
    os.kill(os.getpid() if sys.argv[2] == "alone" else 0, signal.Signals[sys.argv[3]])
    signal.pause()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="files have names elsewhere")
@pytest.mark.parametrize("end", [("alone", "SIGKILL"), ("group", "SIGTERM"), ("group", "SIGKILL")])
def test_a_program_that_is_killed_leaves_no_worker_and_no_data(tmp_path, end):
    (tmp_path / "temporary").mkdir()
    done = program(tmp_path, _PROGRAM, "nameless", *end, TMPDIR=str(tmp_path / "temporary"))
    assert done.returncode == -signal.Signals[end[1]]
    _end_of_workers(done)
    assert not [p for p in (tmp_path / "temporary").rglob("*") if p.is_file()]


def test_named_files_go_with_a_program_that_is_killed_or_before_the_next(tmp_path, monkeypatch):
    (tmp_path / "temporary").mkdir()
    done = program(tmp_path, _PROGRAM, "named", "group", "SIGKILL",
                   TMPDIR=str(tmp_path / "temporary"))  # fmt: skip
    _end_of_workers(done)
    (left,) = (tmp_path / "temporary").glob("tffed-*")
    assert len(list(left.iterdir())) == 2  # data and the lock that nobody holds
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    first = files.Folder()
    assert not left.exists()
    second = files.Folder()
    assert Path(first.name).exists()  # another's, who is alive
    for folder in (first, second):
        folder.remove()
    assert not list((tmp_path / "temporary").glob("tffed-*"))


def _end_of_workers(done):
    numbers = done.stdout.split()
    assert len(numbers) == 2
    end = time.monotonic() + 60
    while any(alive(int(n)) for n in numbers):
        assert time.monotonic() < end, "workers outlive their program"
        time.sleep(0.2)


def test_clients_noise_of_many_lanes_reaches_the_workers(remote):
    """Each chunk has a broadcast of its own then, while another's is being read."""
    remote._start_workers(1)
    workers = remote._workers
    latest = _Latest(lambda leaves: workers._write(_arrays(leaves)))
    with ThreadPoolExecutor(4) as lanes:

        def read(k):
            kept, stored = latest([tf.fill([1000], float(k))])
            time.sleep(0.001)
            return float(files.read(stored)[0][-1]) == k and kept is not None

        assert all(lanes.map(read, range(200)))


def test_the_same_tensors_are_sent_once(remote):
    written = []
    latest = _Latest(lambda leaves: written.append(leaves) or (None, len(written)))
    weights = tf.ones(3)
    assert [latest([weights]), latest((weights,)), latest([tf.ones(3)])] == [
        (None, 1), (None, 1), (None, 2)
    ]  # fmt: skip


def test_a_forked_process_does_not_end_the_workers(remote):
    workers = remote._workers
    before = set(workers._pool._processes)
    child = os.fork()
    if not child:
        workers.end()
        os._exit(0)
    os.waitpid(child, 0)
    assert workers._pool.submit(os.getpid).result() in before


def program(folder, code, *arguments, check=False, **environment):
    """Runs a program of its own."""
    (folder / "program.py").write_text(code)
    return subprocess.run(
        [sys.executable, folder / "program.py", *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        stdout=subprocess.PIPE,
        text=True,
        timeout=180,
        check=check,
        start_new_session=True,
    )


def alive(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True
