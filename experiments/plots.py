"""Drawings of a run: its curves by round, and what its clients hold."""

from tffed.data import plot_labels
from tffed.extras import require

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
    plot_labels(clients, axes=population)
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
