"""A run that is killed, at any moment, ends with the bits of one that was not."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

import tffed

PROGRAM = Path(__file__).with_name("resume_program.py")
ROOT = PROGRAM.parent.parent


def run(directory, kill="none"):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    return subprocess.run(
        [sys.executable, PROGRAM, directory, kill],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def finished(directory):
    done = run(directory)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


def test_killed_at_many_points_ends_with_the_same_bits(tmp_path):
    reference = finished(tmp_path / "whole")
    # The first call of each kind is in round 1: before anything is written, in the middle of a
    # checkpoint (written, not yet renamed), between its rename and the directory's fsync, …
    for kill in ("replace:1", "fsync:1", "fsync:4", "replace:2", "fsync:5"):
        killed = run(tmp_path / "killed", kill)
        assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    assert finished(tmp_path / "killed") == reference
    # Once finished, running it again changes nothing.
    assert finished(tmp_path / "killed") == reference


def small_run(directory, seed=0, algorithm=None, rounds=2):
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    x = np.arange(36, dtype=np.float32).reshape(12, 3) / 36
    clients = tffed.data.from_dict({i: (x[4 * i : 4 * i + 4], x[:4, :1]) for i in range(3)})
    fed = tffed.Federated(model, algorithm or tffed.fed_avg(batch_size=2), seed=seed)
    fed.compile(client_optimizer=keras.optimizers.SGD(0.1), loss="mse")
    history = fed.fit(clients, rounds=rounds, checkpoint_dir=directory, verbose=0)
    return fed, history


def test_going_on_with_more_rounds_equals_one_run(tmp_path):
    small_run(tmp_path / "a", rounds=2)
    fed, history = small_run(tmp_path / "a", rounds=5)
    whole, expected = small_run(tmp_path / "b", rounds=5)
    for a, b in zip(fed.model.get_weights(), whole.model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert history.epoch == expected.epoch == [0, 1, 2, 3, 4]
    assert history.history["loss"] == expected.history["loss"]


def test_a_foreign_checkpoint_is_refused_and_kept(tmp_path):
    small_run(tmp_path)
    files = {p: p.read_bytes() for p in tmp_path.glob("*.ckpt")}
    with pytest.raises(tffed.CheckpointError, match="seed"):
        small_run(tmp_path, seed=1)
    with pytest.raises(tffed.CheckpointError, match="algorithm"):
        small_run(tmp_path, algorithm=tffed.fed_prox(0.1, batch_size=2))
    assert files == {p: p.read_bytes() for p in tmp_path.glob("*.ckpt")}


def test_a_damaged_checkpoint_is_named_and_the_one_before_still_serves(tmp_path):
    small_run(tmp_path, rounds=3)
    older, newest = sorted(tmp_path.glob("*.ckpt"))
    whole = newest.read_bytes()
    newest.write_bytes(whole[:-20])
    with pytest.raises(tffed.CheckpointError, match=newest.name):
        small_run(tmp_path, rounds=3)
    assert newest.read_bytes() == whole[:-20]
    newest.unlink()
    fed, _ = small_run(tmp_path, rounds=3)
    expected, _ = small_run(tmp_path.parent / "other", rounds=3)
    for a, b in zip(fed.model.get_weights(), expected.model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_clients_states_move_into_the_directory_of_a_later_fit(tmp_path):
    def two_fits(first, second):
        keras.utils.set_random_seed(1)
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
        x = np.arange(36, dtype=np.float32).reshape(12, 3) / 36
        data = {i: (x[4 * i : 4 * i + 4], x[:4, :1] * i) for i in range(3)}
        fed = tffed.Federated(model, tffed.scaffold(batch_size=2))
        fed.compile(client_optimizer=keras.optimizers.SGD(0.1), loss="mse")
        fed.fit(data, rounds=2, checkpoint_dir=first, verbose=0)
        fed.fit(data, rounds=4, initial_round=2, checkpoint_dir=second, verbose=0)
        return fed.model.get_weights()

    expected = two_fits(None, None)
    for first, second in ((None, tmp_path / "a"), (tmp_path / "b", tmp_path / "c")):
        for a, b in zip(two_fits(first, second), expected, strict=True):
            np.testing.assert_array_equal(a, b)
    # In one and the same directory the second fit goes on from the first's last checkpoint.
    for a, b in zip(two_fits(tmp_path / "d", tmp_path / "d"), expected, strict=True):
        np.testing.assert_array_equal(a, b)
