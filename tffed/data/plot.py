"""Draws how a data set is spread over clients."""

import itertools
import os

import numpy as np

from tffed.data.client_data import ClientData
from tffed.extras import require


def plot_labels(
    clients: ClientData, path: str | os.PathLike | None = None, max_clients: int = 50, axes=None
):
    """Draws the clients' examples by label, a stacked bar per client.

    For targets that are not one integer per example, the bars show sizes only.

    Args:
        clients: The population; the first `max_clients` clients are read and drawn.
        path: File to write, its format by its ending; nothing is written if `None`.
        max_clients: Most clients to draw.
        axes: `matplotlib.axes.Axes` to draw into, those of a new figure if `None`.

    Returns:
        The `matplotlib.figure.Figure`; a new one is made without pyplot's global state.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: `max_clients` is below 1.
    """
    if max_clients < 1:
        raise ValueError(
            "Expected max_clients to be at least 1. Received: "
            f"max_clients={max_clients!r}. Give the number of clients to draw."
        )
    ids = list(itertools.islice(clients.ids, max_clients))
    targets = [clients[i][1] for i in ids]
    labelled = all(isinstance(y, np.ndarray) and _is_label(y) for y in targets)
    if axes is None:
        size = (min(4 + 0.22 * len(ids), 16), 4.5)
        figure = require("matplotlib.figure", "plot").Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
    what = "Examples"
    if labelled:
        what = f"{_draw_labels(axes, targets)} labels"
    else:
        axes.bar(range(len(ids)), clients.sizes(ids), color="tab:blue", width=0.85)
    some = f"first {len(ids)} of {len(clients)}" if len(ids) < len(clients) else f"{len(ids)}"
    axes.set_title(f"{what} by client ({some} clients)")
    axes.set_xlabel("Client")
    axes.set_ylabel("Examples")
    axes.margins(x=0.01)
    axes.spines[["top", "right"]].set_visible(False)
    _name_bars(axes, ids)
    if path is not None:
        axes.figure.savefig(path, dpi=120)
    return axes.figure


def _is_label(y) -> bool:
    return y.dtype.kind in "biu" and y.size == len(y)


def _draw_labels(axes, targets) -> int:
    """Draws the stacked bars and returns the number of labels."""
    colours = require("matplotlib", "plot").colormaps
    labels = np.unique(np.concatenate([y.reshape(-1) for y in targets]))
    counts = np.array([[np.count_nonzero(y == label) for y in targets] for label in labels])
    bottoms = np.cumsum(counts, axis=0) - counts
    for k, label in enumerate(labels):
        colour = colours["tab10"](k) if len(labels) <= 10 else colours["turbo"](k / len(labels))
        axes.bar(
            range(len(targets)), counts[k], bottom=bottoms[k], color=colour, width=0.85,
            label=str(label),
        )
    if len(labels) <= 30:  # more names than that say nothing
        handles, names = axes.get_legend_handles_labels()
        axes.legend(  # in the order of the stack, beside the bars
            handles[::-1], names[::-1], title="Label", loc="upper left", bbox_to_anchor=(1, 1),
            ncols=1 + (len(labels) - 1) // 15, frameon=False, fontsize="small",
        )
    return len(labels)


def _name_bars(axes, ids) -> None:
    step = 1 + (len(ids) - 1) // 25
    shown = range(0, len(ids), step)
    names = [str(ids[k]) for k in shown]
    names = [name if len(name) <= 14 else name[:13] + "…" for name in names]
    long = max(map(len, names)) > 3
    axes.set_xticks(shown, names, rotation=60 if long else 0, ha="right" if long else "center")
