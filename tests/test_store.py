"""The client store: by client and round, all of a round or none of it, whatever happens."""

import random
import sqlite3
import threading

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.processes import kill_during
from tffed.store import ClientStore, ClientStoreError

# Writes rounds for ever: the arrays of all clients follow from the round. Says what it has written.
PUT_FOR_EVER = """
import sys
import numpy as np
from tffed.store import ClientStore

with ClientStore(sys.argv[1]) as store:
    number = int(store.get(0)[0][0]) if 0 in store else 0
    print("ready", flush=True)
    while True:
        number += 1
        store.put_all(number, {i: [np.full(20_000 + i, number, np.int64)] for i in range(8)})
        store.prune(number - 2)
        print(number, flush=True)
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "clients.sqlite"


@pytest.fixture(params=["memory", "file"])
def store(request, path):
    with ClientStore() if request.param == "memory" else ClientStore(path) as store:
        yield store


def number(value):
    return [np.array(value, np.int64)]


def numbers(store):
    """`{id: number}` of a store whose states are made by `number`."""
    return {i: int(store.get(i)[0]) for i in store}


def test_states_come_back_exactly(store):
    state = [
        np.array([[1, np.nan]], ml_dtypes.bfloat16),
        np.array(True),
        np.zeros((0, 3), np.float16),
        np.arange(4, dtype=np.uint8)[::2],
    ]
    store.put_all(1, {"a": state, "empty": []})
    found = store.get("a")
    assert isinstance(found, tuple) and store.get("empty") == ()
    for a, b in zip(found, state, strict=True):
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())


def test_clients_are_told_apart(store):
    ids = [1, "1", -1, 2**70, "", "i1", "é\0", "s"]
    assert store.get(1) is None and 1 not in store and len(store) == 0
    store.put_all(0, {i: number(k) for k, i in enumerate(ids)})
    assert numbers(store) == {i: k for k, i in enumerate(ids)}
    assert len(store) == len(ids) and all(i in store for i in ids)
    assert store.get(np.int64(1)) == store.get(1) and "2" not in store
    assert list(store) == list(store)


def test_an_empty_store_is_not_put_aside(store):
    assert (store or None) is store


def test_the_newest_state_counts_and_can_be_replaced(store):
    store.put_all(1, {"a": number(1), "b": number(1)})
    store.put_all(3, {"a": number(3)})
    store.put_all(3, {"a": number(33)})
    assert numbers(store) == {"a": 33, "b": 1}


def test_rollback_and_prune(store):
    for r in range(1, 7):
        store.put_all(r, {i: number(r) for i in range(r % 3 + 1)})
    assert numbers(store) == {0: 6, 1: 5, 2: 5}
    store.prune(4)
    assert numbers(store) == {0: 6, 1: 5, 2: 5}
    store.rollback(4)
    assert numbers(store) == {0: 4, 1: 4, 2: 2}
    store.rollback(-1)
    assert len(store) == 0


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_going_back_to_a_kept_round_gives_its_states(data):
    cohorts = data.draw(st.lists(st.sets(st.integers(0, 3)), min_size=1, max_size=6))
    with ClientStore() as store:
        history = [{}]
        for r, cohort in enumerate(cohorts, 1):
            store.put_all(r, {i: number(r) for i in cohort})
            history.append({**history[-1], **dict.fromkeys(cohort, r)})
        pruned = data.draw(st.integers(0, len(cohorts)))
        store.prune(pruned)
        for r in reversed(range(pruned, len(cohorts) + 1)):
            store.rollback(r)
            assert numbers(store) == history[r]


def test_pruned_states_take_no_room(path):
    with ClientStore(path) as store:
        for r in range(20):
            store.put_all(r, {0: [np.zeros(10_000)]})
            store.prune(r)
    assert 80_000 < path.stat().st_size < 4 * 80_000


def test_going_back_needs_a_rollback(store):
    store.put_all(5, {"a": number(5)})
    with pytest.raises(ClientStoreError, match=r"Received: round_number=4\. Give each run a"):
        store.put_all(4, {"b": number(4)})
    store.rollback(4)
    store.put_all(4, {"b": number(4)})
    assert numbers(store) == {"b": 4}


def test_a_failed_round_writes_nothing(store):
    store.put_all(1, {"a": number(1)})
    for bad in ({"b": number(2), "c": [np.array("text")]}, {"b": number(2), 1.5: number(2)}):
        with pytest.raises(ValueError, match="Received: "):
            store.put_all(2, bad)
    store._connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 1000)
    with pytest.raises(ClientStoreError, match="too large"):
        store.put_all(2, {"b": number(2), "c": [np.zeros(1000)]})
    assert numbers(store) == {"a": 1}


@pytest.mark.parametrize("client_id", [True, 1.0, None, (1,), b"a"])
def test_other_ids_are_refused(store, client_id):
    with pytest.raises(ValueError, match="Expected a client id that is an int or a str. Received"):
        store.get(client_id)


def test_a_file_is_opened_again(path):
    with ClientStore(path) as store:
        store.put_all(1, {"a": number(1), 1: number(2)})
    with ClientStore(str(path)) as store:
        assert numbers(store) == {"a": 1, 1: 2}
        store.close()
        with pytest.raises(ClientStoreError, match="is closed"):
            store.get("a")
    assert [p.name for p in path.parent.iterdir()] == ["clients.sqlite"]


def test_threads_share_a_store(store):
    barrier, failures = threading.Barrier(6), []

    def work(worker):
        try:
            barrier.wait()
            for k in range(15):
                store.put_all(1, {repr((worker, k)): number(worker * 100 + k)})
                assert store.get(repr((worker, k)))[0] == worker * 100 + k
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(w,)) for w in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert numbers(store) == {repr((w, k)): w * 100 + k for w in range(6) for k in range(15)}


def test_what_is_no_store_is_refused_and_left(path):
    path.parent.mkdir()
    path.write_bytes(b"These are a user's notes. " * 50)
    with pytest.raises(ClientStoreError, match="damaged or something else"):
        ClientStore(path)
    assert path.read_bytes() == b"These are a user's notes. " * 50
    path.unlink()
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE cats (name)")
    other.close()
    with pytest.raises(ClientStoreError, match="Received: the database .*application_id=0"):
        ClientStore(path)
    with pytest.raises(ClientStoreError, match="cannot be made"):
        ClientStore(path / "below" / "clients.sqlite")


def test_damage_is_reported(path):
    with ClientStore(path) as store:
        store.put_all(1, {i: [np.full(3000, i, np.int32)] for i in range(50)})
    content = path.read_bytes()
    for damaged in (content[:40_000], content[:20_000] + b"\xff" * 60_000 + content[80_000:]):
        path.write_bytes(damaged)
        with pytest.raises(ClientStoreError, match="clients.sqlite"), ClientStore(path) as store:
            for i in range(50):
                np.testing.assert_array_equal(store.get(i)[0], np.full(3000, i))
        assert path.read_bytes() == damaged


def test_every_flipped_bit_of_a_state_is_found(path):
    with ClientStore(path) as store:
        store.put_all(1, {"a": [np.arange(4, dtype=np.float32)]})
    content = path.read_bytes()
    start = content.index(b"TFA1")
    for bit in range(8 * start, 8 * (start + 38)):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with ClientStore(path) as store, pytest.raises(ClientStoreError, match="of client 'a'"):
            store.get("a")


def test_a_store_in_use_by_another_process_is_reported(path):
    with ClientStore(path) as store, ClientStore(path) as other:
        other._connection.execute("PRAGMA busy_timeout = 10")
        with store._transaction():
            with pytest.raises(ClientStoreError, match="no other run uses it"):
                other.put_all(1, {"a": number(1)})
        other.put_all(1, {"a": number(1)})
        assert numbers(store) == {"a": 1}


def test_killed_at_random_moments(path):
    draw, newest, interrupted = random.Random(2), 0, 0
    journal = path.with_name("clients.sqlite-journal")
    for kill in range(18):
        written = kill_during(
            PUT_FOR_EVER,
            path,
            lines=draw.randrange(3),
            seconds=draw.uniform(0, 0.04),
            seen=journal.exists if kill % 2 else None,
        )
        least = max(written, default=newest)
        interrupted += journal.exists()
        with ClientStore(path) as store:
            if not len(store):
                assert least == 0
                continue
            states = {i: store.get(i)[0] for i in store}
            newest = int(states[0][0])
            assert newest in (least, least + 1)
            assert sorted(states) == list(range(8))
            for i, state in states.items():
                np.testing.assert_array_equal(state, np.full(20_000 + i, newest))
            assert store._connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert interrupted, "no kill met a transaction"
