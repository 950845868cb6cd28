"""A run's directory: one user at a time, nobody else's eyes, and nothing of it lost unnoticed."""

import contextlib
import functools
import os
import signal
import socket
import sqlite3
import stat
import threading
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import tffed
from tests.processes import start
from tffed.lock import Lock, LockedError

RNG = np.random.default_rng(0)
DATA = {k: (RNG.normal(size=(6, 3)).astype("f4"), RNG.normal(size=(6, 1))) for k in range(5)}
HOLD = """
import os, sys, time
from tffed.lock import Lock
lock = Lock(sys.argv[1])
if os.fork() == 0:
    print("ready", flush=True)
    time.sleep(5)
    os._exit(0)
time.sleep(60)
"""


def run(directory, rounds=3, *, payloads=False, callbacks=(), sampler=None, **arguments):
    """A run with states of clients; the `Federated`."""
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    fed = tffed.Federated(model, tffed.scaffold(batch_size=2), seed=4)
    fed.compile(keras.optimizers.SGD(0.1), loss="mse", payloads=payloads, jit_compile=False)
    sampler = sampler or tffed.data.Uniform(3)
    arguments |= {"callbacks": list(callbacks), "sampler": sampler, "verbose": 0}
    with contextlib.suppress(Stopped):
        fed.fit(DATA, rounds, checkpoint_dir=directory, **arguments)
    return fed


def bits(fed):
    """The bits of a run's weights and of all clients' states."""
    states = {cid: [a.tobytes() for a in fed.store.get(cid)] for cid in fed.store}
    return [w.tobytes() for w in fed.model.get_weights()], states


@functools.cache
def whole(rounds, payloads=False):
    """The bits of a run that nothing happens to."""
    return bits(run(None, rounds, payloads=payloads))


class Stopped(Exception):
    """A run that was interrupted."""


class At(keras.callbacks.Callback):
    """Does something after a round."""

    def __init__(self, epoch, what):
        super().__init__()
        self.epoch, self.what = epoch, what

    def on_epoch_end(self, epoch, logs=None):
        if epoch == self.epoch:
            self.what()


def stop():
    raise Stopped


@pytest.mark.parametrize("payloads", [False, True])
@pytest.mark.parametrize("freq", [1, 3])
def test_clients_of_an_interrupted_round_do_not_take_it_twice(tmp_path, payloads, freq):
    expected = whole(5, payloads)
    run(tmp_path, 5, payloads=payloads, callbacks=[At(3, stop)], checkpoint_freq=freq)
    assert bits(run(tmp_path, 5, payloads=payloads, checkpoint_freq=freq)) == expected


def test_a_directory_in_use_is_refused_and_left_alone(tmp_path):
    expected = whole(5)
    refused, before = [], {}

    def second():
        before.update({p: p.read_bytes() for p in tmp_path.iterdir()})
        (tmp_path / "round-000009.ckpt.1.unfinished").touch()
        thread = threading.Thread(target=lambda: refused.append(error_of(tmp_path)))
        thread.start()
        thread.join()
        refused.append(error_of(tmp_path))
        assert before == {p: p.read_bytes() for p in before}
        assert (tmp_path / "round-000009.ckpt.1.unfinished").exists()

    found = run(tmp_path, 5, callbacks=[At(2, second)], checkpoint_freq=4)
    assert bits(found) == expected
    who = f"process {os.getpid()} on {socket.gethostname()} (this process)"
    for error in refused:
        assert who in str(error) and "Wait until that run ends" in str(error)
    assert bits(run(tmp_path, 5, checkpoint_freq=4)) == expected  # and then it is free


def error_of(directory):
    try:
        run(directory, 5)
    except tffed.CheckpointError as error:
        return error


def test_a_fit_that_fails_leaves_the_directory_to_the_next(tmp_path):
    with pytest.raises(ZeroDivisionError):
        run(tmp_path, callbacks=[At(1, lambda: 1 / 0)])
    with pytest.raises(tffed.CheckpointError, match="sampler"):
        run(tmp_path, sampler=tffed.data.Uniform(2))
    assert bits(run(tmp_path)) == whole(3)


def test_a_killed_process_leaves_no_lock_and_a_forked_one_holds_none(tmp_path):
    with start(HOLD, tmp_path) as process:
        assert process.stdout.readline() == "ready\n"
        with pytest.raises(LockedError, match=f"process {process.pid} on {socket.gethostname()}$"):
            Lock(tmp_path)
        process.send_signal(signal.SIGKILL)
    lock = Lock(tmp_path)
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(writer)
        os.read(reader, 1)  # until the parent closes it
        os._exit(0)
    lock.close()
    Lock(tmp_path).close()
    os.close(writer)
    os.waitpid(child, 0)
    os.close(reader)


def test_where_nothing_can_be_locked_a_warning_says_so(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("tffed.lock.fcntl.flock", flock)
    with pytest.warns(UserWarning, match="no other process uses it"):
        Lock(tmp_path).close()


@pytest.mark.parametrize("umask", [0, 0o022, 0o377])
def test_files_are_for_their_owner_alone(tmp_path, umask):
    directory, modes = tmp_path / "run", set()

    def look():
        modes.update(stat.S_IMODE(p.stat().st_mode) for p in directory.iterdir())
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700

    before = os.umask(umask)
    try:
        run(directory, callbacks=[At(k, look) for k in range(3)])
        look()
    finally:
        os.umask(before)
    assert modes == {0o600}
    names = {p.name for p in directory.iterdir()}
    assert names == {"round-000002.ckpt", "round-000003.ckpt", "clients.sqlite", "lock"}


def test_the_files_of_sqlite_have_the_rights_of_the_database(tmp_path):
    with tffed.store.ClientStore(tmp_path / "a.sqlite") as store:
        with store._transaction() as connection:
            connection.execute("INSERT INTO states VALUES ('i1', 1, x'00')")
            found = {p.name: stat.S_IMODE(p.stat().st_mode) for p in tmp_path.iterdir()}
    assert found == {"a.sqlite": 0o600, "a.sqlite-journal": 0o600}


def test_a_directory_that_is_there_keeps_its_rights_but_its_files_lose_theirs(tmp_path):
    directory = tmp_path / "run"
    directory.mkdir()
    directory.chmod(0o755)
    run(directory, 2)
    for path in directory.iterdir():
        path.chmod(0o644)
    run(directory, 2)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o755
    assert {stat.S_IMODE(p.stat().st_mode) for p in directory.iterdir()} == {0o600}


def delete(path):
    path.unlink()


def empty(path):
    path.write_bytes(b"")


def lose_a_row(path):
    _execute(path, "DELETE FROM states WHERE client = (SELECT min(client) FROM states)")


def replace_a_row(path):
    _execute(path, "UPDATE states SET data = (SELECT max(data) FROM states)")


def add_a_row(path):
    _execute(path, "INSERT INTO states SELECT 'i99', 1, data FROM states LIMIT 1")


def _execute(path, command):
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(command)


@pytest.mark.parametrize("damage", [delete, empty, lose_a_row, replace_a_row, add_a_row])
def test_states_of_clients_that_are_gone_or_others_are_refused(tmp_path, damage):
    run(tmp_path, 3)
    kept = {p: p.read_bytes() for p in tmp_path.glob("*.ckpt")}
    damage(tmp_path / "clients.sqlite")
    with pytest.raises(tffed.CheckpointError, match="states of clients in .*Put the file of this"):
        run(tmp_path, 5)
    assert kept == {p: p.read_bytes() for p in tmp_path.glob("*.ckpt")}


def test_the_older_checkpoint_has_its_own_states(tmp_path):
    run(tmp_path, 4)
    max(tmp_path.glob("*.ckpt")).unlink()
    assert bits(run(tmp_path, 5)) == whole(5)


def test_what_is_written_costs_the_cohort_and_not_the_population(tmp_path):
    """The digest is kept up, and equals one that is counted anew from all rows."""
    with tffed.store.ClientStore(tmp_path / "a.sqlite") as store:
        counted, rng = [], np.random.default_rng(1)
        count = store._counted
        store._counted = lambda number: counted.append(number) or count(number)
        for number in range(1, 9):
            states = {int(k): [rng.normal(size=2)] for k in rng.integers(0, 12, 5)}
            store.put_all(number, states)
            assert store.tally()["clients"] == len(store)
            store.prune(number - 1)
        assert len(counted) == 1
        assert store.tally() == store.tally(8)
        seen = store.tally()
        store.put_all(9, {0: [np.zeros(2)], 50: [np.ones(2)]})
        assert store.tally() != seen and store.tally(8) == seen
        store.rollback(8)
        assert store.tally() == seen


def test_a_fit_without_a_directory_writes_to_none(tmp_path):
    fed = run(tmp_path, 2)
    before = {p: p.read_bytes() for p in tmp_path.iterdir()}
    fed.fit(DATA, 2, sampler=tffed.data.Uniform(3), verbose=0)
    assert before == {p: p.read_bytes() for p in tmp_path.iterdir()}
    assert bits(fed) == whole(4)


def test_a_callback_may_change_the_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    run("relative", 4, callbacks=[At(0, lambda: os.chdir("elsewhere"))])
    assert not list((tmp_path / "elsewhere").iterdir())
    assert (tmp_path / "relative" / "round-000004.ckpt").exists()


def test_fewer_rounds_than_are_done_are_told(tmp_path):
    fed = run(tmp_path, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(tmp_path, 4)
    with pytest.warns(UserWarning, match="is at round 4, and rounds=2 asks for fewer: nothing"):
        again = run(tmp_path, 2)
    assert bits(again) == bits(fed)


def test_a_run_that_was_done_has_the_state_it_ended_with(tmp_path):
    """Its rates too, where a callback has set them after the last round."""

    def ended():
        plateau = keras.callbacks.ReduceLROnPlateau("loss", patience=1, min_delta=9.0)
        fed = run(tmp_path, 3, callbacks=[plateau])
        return [np.asarray(leaf).tobytes() for leaf in tf.nest.flatten(fed.state)]

    assert ended() == ended()


def test_no_name_of_a_directory_is_not_the_present_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="Expected the name of a directory"):
        run("")
    assert not list(tmp_path.iterdir())
