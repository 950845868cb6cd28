"""Training that is interrupted, and where it cannot run at all."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import tffed
from tffed.engines import reading
from tffed.engines.reading import Reader

ROOT = Path(__file__).parents[2]
_HANGS = """
import signal, sys, time
import keras, numpy as np, tffed

signal.signal(signal.SIGINT, signal.default_int_handler)  # programs in the background ignore it

def read(cid):
    if cid == 2 and len(sys.argv) < 3:
        print("ready", flush=True)
        time.sleep(300)
    return np.ones((4, 3), "f4"), np.ones((4, 1), "f4")

model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
fed = tffed.Federated(model, tffed.fed_avg(batch_size=4))
fed.compile(keras.optimizers.SGD(0.1), loss="mse", jit_compile=False, lanes=2)
clients = tffed.data.from_function(range(6), read)
try:
    fed.fit(clients, rounds=1, verbose=0)
except KeyboardInterrupt:
    print("interrupted", flush=True)
    sys.argv.append("now it reads")
    fed.fit(clients, rounds=1, verbose=0)
    print(len(fed.history.epoch), flush=True)
"""


def test_one_interrupt_ends_a_fit_whose_reader_hangs():
    with subprocess.Popen(
        [sys.executable, "-c", _HANGS, "once"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60)[0] == "interrupted\n1\n"
    assert process.returncode == 0


def test_what_waits_for_a_reader_that_hangs_is_let_go(monkeypatch):
    monkeypatch.setattr(reading, "_PATIENCE", 0.1)
    hang, threads = threading.Event(), []

    def prepare(clients, part):
        threads.append(threading.get_ident())
        if part == [0]:
            hang.wait()
        return part

    reader = Reader(prepare)
    asked = [reader.read(None, [k]) for k in range(3)]
    while not threads:
        time.sleep(0.01)
    reader.abandon()
    for future in asked:
        with pytest.raises(reading.CancelledError):
            future.result(timeout=5)
    assert reader.read(None, [1]).result(timeout=5) == [1]
    reader.abandon()  # nothing hangs: the thread stays
    assert reader.read(None, [2]).result(timeout=5) == [2]
    hang.set()
    assert len(threads) == 3 and threads[0] != threads[1] == threads[2]


def test_the_thread_of_a_reader_ends_with_it():
    reader = Reader(lambda clients, part: threading.current_thread())
    thread = reader.read(None, []).result()
    del reader
    thread.join(5)
    assert not thread.is_alive()


def federated():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    fed = tffed.Federated(model, tffed.fed_avg(batch_size=4))
    fed.compile(keras.optimizers.SGD(0.1), loss="mse", jit_compile=False)
    return fed


CLIENTS = {0: (np.ones((4, 3), "f4"), np.ones((4, 1), "f4"))}


def test_a_forked_process_is_refused_instead_of_hanging():
    fed = federated()
    fed.fit(CLIENTS, verbose=0)
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        for act in (lambda: fed.fit(CLIENTS), lambda: fed.evaluate(CLIENTS), federated):
            try:
                act()
            except RuntimeError as error:
                os.write(writer, b"%d" % ("get_context('spawn')" in str(error)))
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as told:
        assert told.read() == b"111"
    os.waitpid(child, 0)


def test_a_call_inside_a_graph_is_refused():
    fed = federated()

    @tf.function
    def inside():
        fed.fit(CLIENTS, verbose=0)

    with pytest.raises(RuntimeError, match="a call inside a tf.function"):
        inside()
