"""Drawings of a run: its curves by round, and what its clients hold."""

import itertools

import numpy as np

from tffed.extras import require

_SHOWN_CLIENTS, _SHOWN_LABELS = 50, 20
_TRAIN, _TEST = "#7f9fc6", "#c0392b"


def plot_run(rows, clients, path):
    """Draws metric and loss by round, and beside them the clients' examples by label.

    Args:
        rows: A dictionary of numbers a round, as in `metrics.csv`.
        clients: The `ClientData` of the run.
        path: File to write, its format by its ending.

    Raises:
        ImportError: matplotlib is not installed.
    """
    figure = require("matplotlib.figure", "plot").Figure(figsize=(14, 4.4), layout="constrained")
    metric, loss, population = figure.subplots(1, 3, width_ratios=(1, 1, 1.25))
    names = [name for name in rows[0] if f"val_{name}" in {n for row in rows for n in row}]
    measured = [name for name in names if name != "loss"] or ["loss"]
    draw_curves(metric, rows, measured[0])
    draw_curves(loss, rows, "loss")
    draw_clients(population, clients)
    figure.savefig(path, dpi=120)


def draw_curves(axes, rows, name):
    """Draws a metric by round, on the clients as they train and on the test data."""
    for column, label, colour, width in (
        (name, "clients, while they train", _TRAIN, 1.2),
        (f"val_{name}", "test data, after the round", _TEST, 1.8),
    ):
        points = [(row["round"], row[column]) for row in rows if column in row]
        marker = "o" if len(points) <= 30 else None
        axes.plot(
            *zip(*points, strict=True), color=colour, lw=width, marker=marker, ms=3.5, label=label
        )
    words = name.upper() if len(name) <= 3 else name.replace("_", " ").capitalize()
    axes.set_title(f"{words} by round")
    axes.set_xlabel("Round")
    axes.xaxis.get_major_locator().set_params(integer=True)
    if name.endswith("accuracy"):
        axes.set_ylim(0, 1)
    else:
        axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize="small")


def draw_clients(axes, clients):
    """Draws a bar a client: its examples, stacked by label where there are few labels."""
    ids = list(itertools.islice(clients.ids, _SHOWN_CLIENTS))
    targets = [clients[i][1] for i in ids]
    places = np.arange(len(ids))
    labels = _labels(targets)
    if labels is None:
        axes.bar(places, clients.sizes(ids), width=0.85, color=_TRAIN)
    else:
        _draw_labels(axes, places, labels, targets)
    some = f"the first {len(ids)} of {len(clients)}" if len(ids) < len(clients) else f"{len(ids)}"
    axes.set_title(f"Training examples by client ({some} clients)")
    axes.set_xlabel("Client")
    axes.set_ylabel("Examples")
    axes.margins(x=0.01)
    axes.spines[["top", "right"]].set_visible(False)
    if all(isinstance(i, int) for i in ids):
        step = 1 + (len(ids) - 1) // 20
        axes.set_xticks(places[::step], ids[::step])
    else:
        axes.set_xticks([])


def _draw_labels(axes, places, labels, targets):
    colours = require("matplotlib", "plot").colormaps["tab10" if len(labels) <= 10 else "tab20"]
    bottom = np.zeros(len(targets))
    for k, label in enumerate(labels):
        counts = np.array([np.count_nonzero(y == label) for y in targets])
        axes.bar(places, counts, 0.85, bottom, color=colours(k), label=str(label))
        bottom += counts
    handles, names = axes.get_legend_handles_labels()
    axes.legend(  # in the order of the stack
        handles[::-1], names[::-1], title="Label", frameon=False, fontsize="small",
        loc="upper left", bbox_to_anchor=(1, 1),
    )


def _labels(targets):
    """The labels of all clients, or None where targets are not one of a few labels each."""
    if not all(isinstance(y, np.ndarray) and y.ndim == 1 and y.dtype.kind in "iu" for y in targets):
        return None
    labels = np.unique(np.concatenate(targets))
    return labels if len(labels) <= _SHOWN_LABELS else None
