"""The embedded engine: the same bits for any lanes, one trace, and the two wires."""

import threading
import time

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.helpers import (
    CLASSES,
    FEATURES,
    SEED,
    assert_close,
    assert_same_bits,
    build,
    differs,
    make_clients,
    run,
    softmax_regression,
)
from tffed import random, tree
from tffed.aggregation import adaptive_clip, mean, median
from tffed.algorithm import server_seed
from tffed.algorithms import fed_avg, fed_sgd, scaffold
from tffed.data import from_dict, from_function
from tffed.engines.cohort import chunks
from tffed.engines.embedded import Embedded
from tffed.local import LocalData
from tffed.model import from_keras
from tffed.serialize import pack, unpack
from tffed.store import ClientStore

L = keras.layers
SGD = keras.optimizers.SGD
SIZES = [1, 30, 4, 17, 2, 9, 6, 11, 25, 3, 8, 5]
COHORTS = [range(12), [3, 11, 0, 7, 1], range(11, -1, -1)]
RECIPES = {
    "fed_avg": (lambda: fed_avg(2, batch_size=4), lambda: [adaptive_clip(0.5), mean()]),
    "scaffold": (lambda: scaffold(batch_size=4), lambda: [mean("uniform")]),
    "median": (lambda: fed_avg(batch_size=4), lambda: [adaptive_clip(0.5), median()]),
}


def network(batch_norm="average"):
    """A model with statistics and with dropout."""
    layers = [L.Dense(6), L.BatchNormalization(), L.ReLU(), L.Dropout(0.3), L.Dense(CLASSES)]
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return from_keras(
        keras.Sequential([keras.Input((FEATURES,)), *layers]),
        loss,
        ["accuracy"],
        batch_norm=batch_norm,
    )


def make(name, model):
    recipe, parts = RECIPES[name]
    return build(recipe(), model, client=SGD(0.2), parts=parts())


@pytest.mark.parametrize("name", RECIPES)
def test_same_bits_for_any_number_of_lanes(name):
    model, data = network("local" if name == "median" else "average"), make_clients(SIZES)
    algorithm = make(name, model)
    results, states = [], []
    for lanes in (1, 2, 3):
        store = ClientStore()
        state, history = run(algorithm, model, data, COHORTS, lanes=lanes, store=store)
        results.append((state, history))
        states.append([store.get(i) for i in store])
    for state, history in results[1:]:
        assert_same_bits(state, results[0][0])
        assert history == results[0][1]
    assert all(len(s) == (0 if name == "fed_avg" else 12) for s in states)
    if states[0]:
        for other in states[1:]:
            assert_same_bits(other, states[0])
    assert differs(results[0][0].weights.trainable, model.init().trainable, 0.01)


def test_another_seed_gives_another_run():
    model, clients = network(), from_dict(make_clients(SIZES))
    engine = Embedded(make("fed_avg", model), lanes=2)
    state = engine.algorithm.init(model.init(), 12)
    results = [
        engine.run_round(state, clients, range(12), seed=random.seed(s), store=ClientStore())[0]
        for s in (1, 2, 1)
    ]
    assert_same_bits(results[0], results[2])
    assert differs(results[0].weights.trainable, results[1].weights.trainable, 1e-3)


def counted(algorithm):
    """The algorithm, and a list that grows whenever its client function is traced."""
    calls = []

    def client(*arguments):
        calls.append(1)
        return algorithm.client(*arguments)

    return algorithm._replace(client=client), calls


@pytest.mark.parametrize("resident", [True, False])
def test_one_trace_whatever_the_sizes(resident):
    model, data = softmax_regression(), make_clients([*SIZES, 200, 64])
    algorithm, calls = counted(build(fed_avg(2, batch_size=8), model, client=SGD(0.2)))
    clients = from_dict(data) if resident else from_function(range(14), data.__getitem__)
    run(algorithm, model, clients, [[0], [0, 1], range(14), [12], [5, 13, 2], []])
    assert len(calls) == 1


def over_bytes(nest):
    """A nest of tensors as it comes out at the other end of a wire."""
    sent = pack([leaf.numpy() for leaf in tf.nest.flatten(nest)])
    assert isinstance(sent, bytes)
    return tf.nest.pack_sequence_as(nest, [tf.constant(leaf) for leaf in unpack(sent)])


def round_by_wire(algorithm, client, state, data, ids, states):
    """A round in which all that leaves a machine is bytes, and chunks arrive out of order."""
    bc = over_bytes(algorithm.broadcast(state))
    parts = [[ids[p] for p in part] for part in chunks(len(ids), [SIZES[i] for i in ids])]
    sums = {}
    for number in np.random.default_rng(3).permutation(len(parts)):
        reports = []
        for i in parts[number]:
            own = states.get(i, algorithm.client_init(bc))
            key = tf.constant(random.client_key(i))
            seed = random.client_seed(random.seed(SEED), bc.round, key)
            arrays = tuple(tf.constant(part) for part in data[i])
            rows = tf.range(SIZES[i])
            message, own = client(bc, own, LocalData(arrays, rows), seed)
            states[i] = over_bytes(own) if tf.nest.flatten(own) else own
            reports.append(algorithm.report(bc, over_bytes(message)))
        if algorithm.collect:
            total = tree.map(lambda *leaves: tf.stack(leaves), *reports)
        else:
            total = tree.zeros_like(reports[0])
            for report in reports:
                total = tree.add(total, report)
        sums[number] = over_bytes(total)
    in_order = [sums[number] for number in range(len(parts))]
    if algorithm.collect:
        total = tree.map(lambda *leaves: tf.concat(leaves, 0), *in_order)
    else:
        total = tree.zeros_like(in_order[0])
        for one in in_order:
            total = tree.add(total, one)
    return algorithm.finish(state, over_bytes(total), server_seed(random.seed(SEED), state.round))


@pytest.mark.parametrize("name", RECIPES)
def test_messages_through_bytes_and_chunks_out_of_order_give_the_same_bits(name):
    model, data = network("local" if name == "scaffold" else "average"), make_clients(SIZES)
    algorithm = make(name, model)
    store = ClientStore()
    expected, history = run(algorithm, model, data, COHORTS, store=store)
    state, states, metrics = algorithm.init(model.init(), len(SIZES)), {}, []
    client = tf.function(algorithm.client, autograph=False, reduce_retracing=True)
    finish = tf.function(algorithm.finish, autograph=False)
    compiled = algorithm._replace(finish=finish)
    for ids in COHORTS:
        state, found = round_by_wire(compiled, client, state, data, list(ids), states)
        metrics.append({key: float(value) for key, value in found.items()})
    assert_same_bits(state, expected)
    assert metrics == history
    for i in store:
        assert_same_bits(tf.nest.flatten(states[i]), store.get(i))
    assert len(store) == (12 if name == "scaffold" else 0)


def test_bytes_up_and_down_are_those_of_the_message_and_the_broadcast():
    model, clients = softmax_regression(), from_dict(make_clients(SIZES))
    engine = Embedded(build(fed_sgd(), model), lanes=1)
    state = engine.algorithm.init(model.init(), 12)
    engine.run_round(state, clients, [1], seed=random.seed(1), store=ClientStore())
    weights = 4 * (FEATURES + 1) * CLASSES
    sums = 4 * len(model.zeros(tuple(tf.constant(part) for part in clients[1])))
    header = 30
    assert engine.bytes_up == header + weights + 4 + 4 + sums  # the aggregator's weight, n_k
    assert engine.bytes_down == header + weights + 4 + 4  # the round, the learning rate


def test_lazy_clients_give_what_resident_ones_give():
    model, data = network(), make_clients(SIZES)
    algorithm = make("fed_avg", model)
    expected, history = run(algorithm, model, data, COHORTS)
    as_dataset = tf.data.Dataset.from_tensor_slices
    halved = from_dict({i: (x / 2, y) for i, (x, y) in data.items()})
    for clients in (
        from_function(range(12), data.__getitem__),
        from_dict({i: as_dataset(pair).batch(7) for i, pair in data.items()}),
        halved.map(lambda x, y: (x * 2, y)),
    ):
        assert not clients.resident
        state, found = run(algorithm, model, clients, COHORTS)
        assert_close(state, expected, 1e-5)
        for mine, its in zip(found, history, strict=True):
            assert mine == pytest.approx(its, rel=1e-4)


def test_an_engine_goes_from_one_federation_to_another():
    model = softmax_regression()
    data, other = (from_dict(make_clients(SIZES, seed=seed)) for seed in (0, 9))
    algorithm = build(fed_avg(batch_size=4), model, client=SGD(0.2))

    def first_round(engine, clients):
        state, seed = algorithm.init(model.init(), 12), random.seed(SEED)
        return engine.run_round(state, clients, [1, 2], seed=seed, store=ClientStore())[0]

    engine = Embedded(algorithm, lanes=2)
    states = [first_round(engine, clients) for clients in (data, other, data)]
    assert_same_bits(states[2], states[0])
    assert_same_bits(states[1], first_round(Embedded(algorithm, lanes=2), other))
    assert differs(states[0].weights.trainable, states[1].weights.trainable, 1e-3)


@pytest.mark.parametrize("name", RECIPES)
def test_an_empty_cohort_changes_nothing_but_the_round(name):
    model, clients = softmax_regression(), from_dict(make_clients(SIZES))
    engine, store = Embedded(make(name, model), lanes=2), ClientStore()
    state = engine.algorithm.init(model.init(), 12)
    states = []
    for ids in ([1, 2], []):
        state, metrics = engine.run_round(state, clients, ids, seed=random.seed(1), store=store)
        states.append((state.weights, state.aggregator, state.extra))
    assert_same_bits(*states)
    assert int(state.round) == 2
    assert [float(metrics[key]) for key in ("clients", "examples", "dropped")] == [0, 0, 0]
    assert np.isnan(metrics["loss"])


def test_clients_are_read_one_at_a_time():
    model, data = softmax_regression(), make_clients([5] * 24)
    reading, most = [], []

    def read(i):
        reading.append(i)
        most.append(len(reading))
        value = tuple(np.array(part) for part in data[i])
        tf.constant(0).numpy()
        reading.remove(i)
        return value

    clients = from_function(range(24), read)
    run(build(fed_avg(), model, client=SGD(0.2)), model, clients, [range(24)] * 3, lanes=4)
    assert max(most) == 1 and len(most) >= 72


def test_the_next_cohort_is_read_while_this_one_trains():
    model, data, read = softmax_regression(), make_clients(SIZES), []
    algorithm = build(fed_avg(batch_size=4), model, client=SGD(0.2))
    spec = from_dict(data).spec

    def rounds(cohorts, *, ahead):
        clients = from_function(range(12), lambda i: read.append(i) or data[i], spec=spec)
        engine, state = Embedded(algorithm, lanes=1), algorithm.init(model.init(), 12)
        seed, store = random.seed(SEED), ClientStore()
        for ids, then in zip(cohorts, [*cohorts[1:], []], strict=True):
            read.clear()
            state, _ = engine.run_round(
                state, clients, ids, seed=seed, store=store, then=then if ahead else ()
            )
            engine._reader._thread.ask(int).result()  # all that was asked for has been read
            yield state, list(read)

    cohorts = [[0, 1, 2], [3, 4], [5, 3]]
    found = list(rounds(cohorts, ahead=True))
    assert [ids for _, ids in found] == [[0, 1, 2, 3, 4], [5, 3], []]
    expected = list(rounds(cohorts, ahead=False))
    assert [ids for _, ids in expected] == cohorts
    for (state, _), (other, _) in zip(found, expected, strict=True):
        assert_same_bits(state, other)


def test_an_error_of_a_reader_reaches_the_caller():
    model, data = softmax_regression(), make_clients(SIZES)

    def read(i):
        if i == 7:
            raise OSError("disk of client 7")
        return data[i]

    clients = from_function(range(12), read)
    algorithm = build(fed_avg(), model, client=SGD(0.2))
    store = ClientStore()
    with pytest.raises(OSError, match="disk of client 7"):
        run(algorithm, model, clients, [range(12)], store=store)
    assert len(store) == 0


def test_a_round_that_fails_leaves_no_chunk_behind():
    """Its chunks that run end before it does, and those that wait never begin."""
    model, clients = softmax_regression(), from_dict(make_clients(SIZES))
    engine = Embedded(make("fed_avg", model), lanes=2, jit_compile=False, processes=False)
    state, chunk, begun, ended = engine.algorithm.init(model.init(), 12), engine._run_chunk, [], []
    other = threading.Event()

    def run_chunk(part, *arguments):
        begun.append(part)
        if len(begun) == 1:
            other.wait(60)  # so that both lanes have one
            raise RuntimeError("this chunk fails")
        other.set()
        time.sleep(1.0)
        ended.append(part)
        return chunk(part, *arguments)

    engine._run_chunk = run_chunk
    arguments = {"seed": random.seed(1), "store": ClientStore()}
    with pytest.raises(RuntimeError, match="this chunk fails"):
        engine.run_round(state, clients, list(clients.ids), **arguments)
    seen = len(begun)
    assert len(ended) == seen - 1
    assert seen < len(engine._parts(clients, list(clients.ids)))
    time.sleep(1.2)
    assert len(begun) == seen
    engine._run_chunk = chunk
    _, metrics = engine.run_round(state, clients, list(clients.ids), **arguments)
    assert metrics["clients"] == 12


@pytest.mark.parametrize("resident", [True, False])
def test_check_sees_all_data_before_it_is_trained_on(resident):
    model, data = softmax_regression(), make_clients(SIZES)
    data[4][1][1] = CLASSES
    seen = []

    def check(arrays):
        seen.append(len(arrays[1]))
        if arrays[1].max() >= CLASSES:
            raise ValueError("labels")

    clients = from_dict(data) if resident else from_function(range(12), data.__getitem__)
    algorithm = build(fed_avg(), model, client=SGD(0.2))
    engine = Embedded(algorithm, lanes=1, check=check)
    state = algorithm.init(model.init(), 12)
    with pytest.raises(ValueError, match="labels"):
        engine.run_round(state, clients, range(12), seed=random.seed(1), store=ClientStore())
    assert set(seen) == {sum(SIZES)} if resident else max(seen) < sum(SIZES)


@pytest.mark.parametrize("lanes", [0, -1, 1.5, "2"])
def test_refuses_lanes(lanes):
    model = softmax_regression()
    with pytest.raises(ValueError, match="`lanes` must be a positive integer. Received: lanes="):
        Embedded(build(fed_sgd(), model), lanes=lanes)


def test_one_engine_serves_populations_of_other_kinds():
    model = softmax_regression()
    algorithm = build(fed_avg(batch_size=4), model, client=keras.optimizers.SGD(0.1))
    engine, state = Embedded(algorithm), algorithm.init(model.init(), 3)
    plain = make_clients([5, 9, 4])
    weighted = {i: (x, y, np.full(len(y), 1.0, np.float32)) for i, (x, y) in plain.items()}
    results = [
        engine.run_round(
            state, from_dict(data), [0, 1, 2], seed=random.seed(SEED), store=ClientStore()
        )[0]
        for data in (plain, weighted, plain)
    ]
    for other in results[1:]:
        assert_close(other.weights, results[0].weights)
