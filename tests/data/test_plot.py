"""The chart of labels by client: heights of its bars and its words."""

import sys

import numpy as np
import pytest
from matplotlib.figure import Figure

from tffed import data

pytest.importorskip("matplotlib")


def population(clients=6):
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(200, 2)), rng.integers(0, 4, 200)
    return data.partition(x, y, clients=clients, scheme=data.Dirichlet(0.5), seed=2)


def bars(figure):
    """Heights, one row of clients per label."""
    return np.array([[bar.get_height() for bar in group] for group in figure.axes[0].containers])


def test_bars_are_counts_of_labels(tmp_path):
    clients = population()
    figure = data.plot_labels(clients, tmp_path / "labels.png")
    want = np.array([np.bincount(clients[i][1], minlength=4) for i in clients]).T
    np.testing.assert_array_equal(bars(figure), want)
    tops = [max(bar.get_y() + bar.get_height() for bar in group)
            for group in zip(*figure.axes[0].containers, strict=True)]
    np.testing.assert_array_equal(tops, clients.sizes())
    axes = figure.axes[0]
    assert axes.get_title() == "4 labels by client (6 clients)"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("Client", "Examples")
    assert [t.get_text() for t in figure.axes[0].get_legend().get_texts()] == ["3", "2", "1", "0"]
    assert (tmp_path / "labels.png").read_bytes().startswith(b"\x89PNG")


def test_the_legend_stands_beside_the_bars():
    figure = data.plot_labels(population())
    figure.draw_without_rendering()
    legend = figure.axes[0].get_legend().get_window_extent()
    assert legend.x0 >= figure.axes[0].get_window_extent().x1
    assert legend.x1 <= figure.bbox.x1


def test_only_the_first_clients_are_drawn_and_read():
    calls = []

    def read(i):
        calls.append(i)
        return np.zeros((i % 3 + 1, 2)), np.full(i % 3 + 1, i % 2)

    figure = data.plot_labels(data.from_function(range(1_000_000), read), max_clients=5)
    assert calls == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(bars(figure), [[1, 0, 3, 0, 2], [0, 2, 0, 1, 0]])
    assert "first 5 of 1000000" in figure.axes[0].get_title()


def test_real_targets_and_several_targets_show_sizes():
    for y in (np.linspace(0, 1, 9), np.zeros((9, 2), int)):
        clients = data.from_dict({"a": (np.zeros((9, 1)), y), "b": (np.ones((9, 1)), y)})
        figure = data.plot_labels(clients)
        np.testing.assert_array_equal(bars(figure), [[9, 9]])
        assert figure.axes[0].get_title().startswith("Examples by client")
        assert figure.axes[0].get_legend() is None
    two = data.from_dict({0: (np.zeros((3, 1)), (np.arange(3), np.arange(3)))})
    np.testing.assert_array_equal(bars(data.plot_labels(two)), [[3]])


def test_pyplot_keeps_no_figure():
    data.plot_labels(population())
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules[
        "matplotlib.pyplot"].get_fignums()


def test_bad_arguments_and_a_missing_package(monkeypatch):
    with pytest.raises(ValueError, match="max_clients=0"):
        data.plot_labels(population(), max_clients=0)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'tffed\[plot\]'"):
        data.plot_labels(population())


def test_it_draws_into_given_axes():
    figure = Figure(figsize=(14, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    assert data.plot_labels(population(), axes=right) is figure
    assert not left.containers and len(right.containers) == 4
