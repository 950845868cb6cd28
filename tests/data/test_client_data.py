"""Populations of clients: reading, identity of resident arrays, cost, and refusals."""

import pickle
import subprocess
import sys
import time
import tracemalloc

import numpy as np
import pytest

from tffed import data


def arrays(size, width=3, seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(size, width)).astype(dtype), rng.integers(0, 5, size)


def assert_same(got, want):
    assert len(got) == len(want)
    for g, w in zip(got, want, strict=True):
        np.testing.assert_array_equal(g, w)


def gathered(examples):
    """The arrays of each client, cut out of `Examples` as an engine does."""
    cuts = np.split(examples.rows, np.cumsum(examples.sizes)[:-1])
    return [tuple(part[rows] for part in examples.arrays) for rows in cuts]


@pytest.fixture
def federation():
    return {"anna": arrays(4, seed=1), "ben": arrays(1, seed=2), "cleo": arrays(7, seed=3)}


@pytest.fixture(params=["dict", "function", "mapped"])
def population(request, federation):
    if request.param == "dict":
        return data.from_dict(federation)
    if request.param == "function":
        return data.from_function(federation, federation.__getitem__)
    return data.from_dict(federation).map(lambda x, y: (x, y))


def test_every_kind_of_population_reads_the_same(population, federation):
    assert list(population) == list(population.ids) == ["anna", "ben", "cleo"]
    assert len(population) == 3 and "ben" in population and "dan" not in population
    for client_id, want in federation.items():
        assert_same(population[client_id], want)
    examples = population.examples(["cleo", "anna"])
    assert examples.rows.dtype == np.int32 and examples.sizes.dtype == np.int64
    np.testing.assert_array_equal(examples.sizes, [7, 4])
    for got, want in zip(gathered(examples), ("cleo", "anna"), strict=True):
        assert_same(got, federation[want])
    np.testing.assert_array_equal(population.sizes(), [4, 1, 7])
    np.testing.assert_array_equal(population.sizes(["ben"]), [1])


def test_an_empty_cohort_has_arrays_of_the_right_shape(population):
    examples = population.examples([])
    assert examples.rows.shape == examples.sizes.shape == (0,)
    assert examples.rows.dtype == np.int32 and examples.sizes.dtype == np.int64
    assert examples.arrays[0].shape[1:] == (3,)


def test_subset_keeps_order_and_data(population, federation):
    part = population.subset(["cleo", "ben"])
    assert list(part) == ["cleo", "ben"] and "anna" not in part
    assert_same(part["ben"], federation["ben"])
    np.testing.assert_array_equal(part.sizes(), [7, 1])
    with pytest.raises(KeyError, match="'anna'"):
        part["anna"]


def test_spec_is_in_tensorflow_terms(population):
    import tensorflow as tf

    assert population.spec == (
        tf.TensorSpec((None, 3), tf.float32), tf.TensorSpec((None,), tf.int64)
    )


def test_unknown_ids_are_named(population):
    for ask in (population.__getitem__, lambda i: population.examples([i]),
                lambda i: population.sizes([i]), lambda i: population.subset([i])):
        with pytest.raises(KeyError, match="one of the 3 clients.*Received: id='dan'"):
            ask("dan")


def test_resident_arrays_are_one_object(federation):
    clients = data.from_dict(federation)
    assert clients.resident and not clients.map(lambda x, y: (x, y)).resident
    first, second = clients.examples(["anna"]), clients.examples(["ben", "cleo"])
    assert first.arrays is second.arrays is clients.subset(["ben"]).examples(["ben"]).arrays


def test_map_is_lazy_and_changes_data(federation):
    calls = []

    def double(x, y):
        calls.append(len(x))
        return 2 * x, y[:, None]

    mapped = data.from_dict(federation).map(double)
    assert calls == []
    assert_same(mapped["ben"], (2 * federation["ben"][0], federation["ben"][1][:, None]))
    assert calls == [1]


def test_dtypes_are_settled_at_reading():
    x64, y = arrays(5, dtype=np.float64)
    clients = data.from_dict({0: (x64, y, np.ones(5))})
    x, labels, weights = clients[0]
    assert (x.dtype, labels.dtype, weights.dtype) == (np.float32, np.int64, np.float32)
    np.testing.assert_array_equal(x, x64.astype(np.float32))
    kept = (np.zeros((2, 1), np.uint8), np.array([True, False]))
    assert [part.dtype for part in data.from_dict({0: kept})[0]] == [np.uint8, np.bool_]


def test_nests_keep_their_structure():
    x = {"image": np.zeros((3, 2, 2)), "meta": [np.arange(3.0), np.arange(6).reshape(3, 2)]}
    clients = data.from_dict({1: (x, (np.arange(3), np.zeros((3, 1))))})
    got_x, got_y = clients.examples([1]).arrays
    assert set(got_x) == {"image", "meta"} and isinstance(got_x["meta"], list)
    assert isinstance(got_y, tuple) and got_y[1].shape == (3, 1)
    np.testing.assert_array_equal(got_x["meta"][1], x["meta"][1])


def test_dictionaries_match_whatever_the_order_of_their_keys():
    one, other = np.zeros((2, 1)), np.ones((2, 1))
    clients = data.from_dict({
        0: ({"a": one, "b": other}, np.arange(2)), 1: ({"b": other, "a": one}, np.arange(2)),
    })
    np.testing.assert_array_equal(clients[1][0]["b"], other)


def test_a_million_clients_open_at_once_and_only_the_cohort_is_read():
    calls = []

    def read(i):
        calls.append(i)
        return np.full((2, 3), i, np.float32), np.array([0, 1])

    tracemalloc.start()
    begin = time.perf_counter()
    clients = data.from_function(range(1_000_000), read)
    cohort = data.Uniform(10).sample(clients, seed=1, round=3)
    examples = clients.examples(cohort)
    seconds = time.perf_counter() - begin
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert calls == cohort and len(set(cohort)) == 10
    assert clients.sizes(cohort).sum() == 20 and len(calls) == 10  # known after reading
    np.testing.assert_array_equal(examples.arrays[0][::2, 0], cohort)
    assert np.int64(999_999) in clients and 1_000_000 not in clients and -1 not in clients
    assert seconds < 5 and peak < 5e6, (seconds, peak)


def test_a_subset_of_a_million_clients_stays_a_range():
    clients = data.from_function(range(1_000_000), lambda i: arrays(1))
    assert clients.subset(range(5, 10)).ids == range(5, 10)


@pytest.mark.parametrize("batch", [None, 2, 100])
def test_datasets_of_examples_and_of_batches(batch, federation):
    import tensorflow as tf

    def read(client_id):
        dataset = tf.data.Dataset.from_tensor_slices(federation[client_id])
        return dataset if batch is None else dataset.batch(batch)

    clients = data.from_function(federation, read)
    for client_id in federation:
        assert_same(clients[client_id], federation[client_id])
    both = data.from_dict({"a": read("anna"), "b": federation["ben"]})
    assert not both.resident
    assert_same(both["a"], federation["anna"])
    assert_same(both["b"], federation["ben"])


def test_a_dataset_that_may_be_either_needs_a_spec():
    import tensorflow as tf

    pairs = np.arange(12.0, dtype=np.float32).reshape(6, 2)
    dataset = tf.data.Dataset.from_tensor_slices((pairs, pairs))  # elements of shapes (2,), (2,)
    with pytest.raises(ValueError, match="examples or batches.*spec"):
        data.from_function([0], lambda i: dataset)[0]
    spec = (tf.TensorSpec((None, 2)), tf.TensorSpec((None, 2)))
    assert_same(data.from_function([0], lambda i: dataset, spec)[0], (pairs, pairs))


def test_datasets_without_end_are_refused():
    import tensorflow as tf

    dataset = tf.data.Dataset.from_tensor_slices(arrays(3))
    with pytest.raises(ValueError, match="infinite.*repeat"):
        data.from_function([0], lambda i: dataset.repeat())[0]
    assert data.from_function([0], lambda i: dataset.repeat(2)).sizes().tolist() == [6]


def test_a_given_spec_binds_every_client_and_needs_no_reading():
    import tensorflow as tf

    spec = (tf.TensorSpec((None, 3), tf.float64), tf.TensorSpec((None,), tf.int64))
    calls = []
    clients = data.from_function([0, 1], lambda i: calls.append(i) or arrays(2, 3 + i), spec)
    assert clients.spec[0] == tf.TensorSpec((None, 3), tf.float32) and calls == []
    assert clients[0][0].shape == (2, 3)
    with pytest.raises(ValueError, match=r"x of client 1 to have shape \(3,\).*shape \(4,\)"):
        clients[1]
    with pytest.raises(ValueError, match="known dimensions.*pad"):
        data.from_function([0], arrays, (tf.TensorSpec((None, None)), spec[1]))
    with pytest.raises(ValueError, match=r"Expected a spec \(x, y\)"):
        data.from_function([0], arrays, spec[0])


BAD = {
    "no examples": ((np.zeros((0, 3)), np.zeros(0)), "one client with examples.*1 clients, all"),
    "unequal": ((np.zeros((3, 3)), np.zeros(2)), "number of examples.*x: 3, y: 2"),
    "nan": ((np.full((2, 3), np.nan), np.zeros(2, int)), "finite values in x.*NaN.*2 of 2.*row 0"),
    "inf": ((np.array([[0.0], [np.inf]]), np.zeros(2, int)), "finite.*row 1"),
    "too large": ((np.full((2, 3), 1e300), np.zeros(2, int)), "finite values in x.*float32"),
    "object": ((np.array([[1], "a"], dtype=object), np.zeros(2)), "numbers in x.*dtype=object"),
    "text targets": ((np.zeros(2), np.array(["a", "b"])), "numbers in y"),
    "no text": ((np.array(["a", None]), np.zeros(2)), "a string in every cell of x.*None at row 1"),
    "numbers in lists": (([1.0, 2.0], np.zeros(2)), r"x\[0\].*leading dimension.*np.asarray"),
    "not a tuple": (np.zeros((2, 3)), "tuple \\(x, y\\).*Received: ndarray"),
    "one part": ((np.zeros((2, 3)),), "of length 1"),
    "weights": ((np.zeros((2, 3)), np.zeros(2), np.array([1.0, np.nan])), "in sample_weight"),
    "nested": (({"a": np.array([np.inf])}, np.zeros(1)), r"in x\['a'\]"),
    "empty nest": (({}, ()), "to hold arrays"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_data_is_refused_when_it_is_read(case):
    value, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        data.from_dict({"bad": value})
    lazy = data.from_function(["bad"], lambda i: value)
    for read in (lambda: lazy["bad"], lambda: lazy.examples(["bad"])):
        with pytest.raises(ValueError, match=message):
            read()


@pytest.mark.parametrize(
    "other, message",
    [
        ((arrays(2)[0], arrays(2)[1][:, None]), r"y of client 1 .*shape \(\),.*shape \(1,\)"),
        ((np.array([["a"] * 3]), np.zeros(1, int)), "x of client 1 .*float32.*object"),
        ((*arrays(2), np.ones(2)), "client 1 to hold the arrays x, y.*sample_weight"),
        (({"a": arrays(2)[0]}, arrays(2)[1]), r"hold the arrays x, y.*x\['a'\]"),
    ],
)
def test_clients_must_be_alike(other, message):
    federation = {0: arrays(2), 1: other}
    with pytest.raises(ValueError, match=message):
        data.from_dict(federation)
    with pytest.raises(ValueError, match=message):
        data.from_function(federation, federation.__getitem__).examples([0, 1])


def test_other_widths_are_refused_where_they_meet():
    federation = {0: arrays(2), 1: arrays(2, 4)}
    message = r"x of client 1 to have shape \(3,\).*Received: shape \(4,\)"
    for clients in (
        data.from_dict(federation), data.from_function(federation, federation.__getitem__)
    ):
        assert clients[0][0].shape == (2, 3) and clients.examples([0]).sizes.tolist() == [2]
        with pytest.raises(ValueError, match=message):
            clients.examples([0, 1])


def test_bad_ids_are_refused():
    with pytest.raises(ValueError, match="at least one client"):
        data.from_dict({})
    with pytest.raises(ValueError, match="at least one client"):
        data.from_function(range(0), arrays)
    with pytest.raises(ValueError, match="'a' occurs more than once"):
        data.from_function(["a", "b", "a"], arrays)
    with pytest.raises(ValueError, match="integers or strings.*1.5"):
        data.from_function([1.5], arrays)
    assert data.from_function(np.arange(3), arrays).ids == (0, 1, 2)


def test_a_client_that_changes_between_readings_is_refused():
    sizes = iter([2, 3])
    clients = data.from_function([0], lambda i: arrays(next(sizes)))
    assert len(clients[0][1]) == 2
    with pytest.raises(ValueError, match="Expected 2 examples of client 0.*Received: 3"):
        clients[0]
    seeds = iter([1, 2])
    clients = data.from_function([0], lambda i: arrays(2, seed=next(seeds)))
    clients[0]
    with pytest.raises(ValueError, match="client 0 to be the same.*other data than before"):
        clients[0]


def test_resident_populations_can_be_sent_to_another_process(federation):
    clients = pickle.loads(pickle.dumps(data.from_dict(federation)))
    assert_same(clients["cleo"], federation["cleo"])


def test_importing_the_package_loads_no_heavy_package():
    heavy = "{'tensorflow', 'keras', 'sklearn', 'pandas', 'matplotlib', 'scipy'}"
    code = f"import sys, tffed.data; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def empty_beside(kind):
    import tensorflow as tf

    full, none = arrays(2), (np.zeros((0, 3)), np.zeros(0))
    held = {"none": none, "full": full, "no shape": (np.array([]), np.array([], int))}
    if kind == "dict":
        return data.from_dict(held)
    if kind == "mapped":
        return data.from_function(held, held.__getitem__).map(lambda x, y: (x + x.max(), y))
    if kind == "dataset":
        made = tf.data.Dataset.from_tensor_slices(full).batch(2)
        return data.from_dict({"none": made.take(0), "full": made, "no shape": made.take(0)})
    return data.from_function(held, held.__getitem__)


@pytest.mark.parametrize("kind", ["dict", "function", "mapped", "dataset"])
def test_a_client_may_have_no_examples(kind):
    clients = empty_beside(kind)
    assert clients.sizes().tolist() == [0, 2, 0]
    for client_id in ("none", "no shape"):
        x, y = clients[client_id]
        assert (x.shape, x.dtype, y.shape, y.dtype) == ((0, 3), np.float32, (0,), np.int64)
    examples = clients.examples(["none", "full", "no shape"])
    assert examples.sizes.tolist() == [0, 2, 0] and examples.rows.tolist() == [0, 1]
    assert clients.examples(["none"]).arrays[0].shape[1:] == (3,)


@pytest.mark.parametrize(
    "first, second, common",
    [
        ("int32", "int64", "int64"), ("bool", "uint8", "uint8"), ("uint8", "int16", "int16"),
        ("int64", "float32", "float32"), ("float16", "float64", "float32"),
        ("uint64", "int8", "int64"), ("bool", "float32", "float32"),
    ],
)
def test_clients_get_the_smallest_dtype_that_loses_nothing(first, second, common):
    held = {k: (np.array([0, 1], d), np.array([1, 0], d)) for k, d in enumerate((first, second))}
    for clients in (
        data.from_dict(held), data.from_function(held, held.__getitem__),
        data.from_function(held, held.__getitem__).subset([1, 0]),
    ):
        found = clients.examples([0, 1]).arrays
        assert [part.dtype for part in found] == [np.dtype(common)] * 2
        assert found[0].tolist() == [0, 1, 0, 1]


def test_numbers_that_no_common_dtype_holds_are_refused():
    held = {"whole": (np.array([2**24 + 1]), np.zeros(1)), "real": (np.array([0.5]), np.zeros(1))}
    with pytest.raises(ValueError, match="x of client 'whole' as float32.*16777217 at row 0"):
        data.from_dict(held)
    signed = {0: (np.array([2**63], np.uint64), np.zeros(1)), 1: (np.array([-1]), np.zeros(1))}
    with pytest.raises(ValueError, match="x of client 0 as int64.*9223372036854775808"):
        data.from_function(signed, signed.__getitem__).examples([0, 1])


def test_map_takes_strings_and_the_numbers_as_they_were_read():
    words = {0: (np.array(["red fish", "blue"]), np.array(["no", "yes"]))}
    for clients in (data.from_function(words, words.__getitem__),):
        x, y = clients.map(lambda x, y: (np.char.str_len(x.astype(str)), y == "yes"))[0]
        assert x.tolist() == [8, 4] and y.tolist() == [False, True]
    instants = {0: (np.array([1.7e9 + 1, 1.7e9 + 2]), np.zeros(2))}
    clients = data.from_function(instants, instants.__getitem__)
    assert clients.map(lambda x, y: (x - 1.7e9, y))[0][0].tolist() == [1, 2]
    with pytest.raises(ValueError, match="x of client 0 loses digits"):
        clients[0]


def test_batches_without_remainder_are_batches():
    import tensorflow as tf

    pairs = tf.data.Dataset.from_tensor_slices((np.ones((20, 3), "f4"), np.zeros(20, int)))
    for dataset in (pairs.batch(4, drop_remainder=True), pairs.batch(5, True).prefetch(1)):
        assert data.from_function(range(2), lambda i, d=dataset: d).sizes().tolist() == [20, 20]
    unbatched = pairs.batch(4, drop_remainder=True).unbatch()
    assert data.from_function([0], lambda i: unbatched)[0][0].shape == (20, 3)


@pytest.mark.parametrize("odd", [True, np.True_, "\ud800", 1.0])
def test_ids_that_have_no_name_of_their_own_are_refused(odd):
    """True would be client 1, and what UTF-8 cannot write no file can hold."""
    arrays = np.ones((2, 2), np.float32), np.ones(2)
    with pytest.raises(ValueError, match="client"):
        data.from_dict({odd: arrays})
    with pytest.raises(ValueError, match="client"):
        data.from_function([odd], lambda cid: arrays)
    assert odd not in data.from_dict({1: arrays, "a": arrays})
