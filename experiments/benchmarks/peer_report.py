"""What the comparison found, as a table, as JSON and as a plot.

A peer's result is `{"peer": name, "rounds": [seconds, …], "warmup": rounds that are not counted,
"accuracy": …, "megabytes": …, "versions": {…}}` or `{"peer": name, "reason": why not measured}`.
"""

import json

import numpy as np

REFERENCE = "tffed"
_COLUMNS = ("", "first round", "median", "quartiles", "tffed / peer", "accuracy", "peak memory")


def summarise(results):
    """Adds the figures to the results of one model.

    Args:
        results: A result a peer.

    Returns:
        The results, those of measured peers with `first`, `median`, `quartiles` (of the rounds
        after the first ones, in seconds) and `ratio`: tffed's median over the peer's, or None where
        tffed was not measured.
    """
    found = []
    for result in results:
        if "reason" not in result:
            later = result["rounds"][result["warmup"] :]
            low, median, high = np.quantile(later, (0.25, 0.5, 0.75)).tolist()
            result = result | {
                "first": result["rounds"][0], "median": median, "quartiles": [low, high],
            }
        found.append(result)
    ours = next((r["median"] for r in found if r["peer"] == REFERENCE and "median" in r), None)
    return [
        r | {"ratio": ours / r["median"] if ours else None} if "median" in r else r for r in found
    ]


def table(model, results):
    """The summarised results of one model as plain text, the columns aligned."""
    rows = [_COLUMNS, *(_row(result) for result in results)]
    widths = [max(len(row[i]) for row in rows if len(row) > i + 1 or i == 0) for i in range(6)]
    widths.append(max(len(row[-1]) for row in rows if len(row) == len(_COLUMNS)))
    lines = [f"{model.upper()}, seconds a round"]
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        if len(row) == len(_COLUMNS):
            cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        else:
            cells.append(row[1])
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines) + "\n"


def _row(result):
    if "reason" in result:
        return (result["peer"], f"not measured: {result['reason']}")
    low, high = result["quartiles"]
    ratio = "" if result["ratio"] is None else f"{result['ratio']:.2f}"
    return (
        result["peer"], f"{result['first']:.2f}", f"{result['median']:.3f}",
        f"{low:.3f} to {high:.3f}", ratio, f"{result['accuracy']:.3f}",
        f"{result['megabytes']:,.0f} MB",
    )


def write(folder, settings, results):
    """Writes peers.json and peers.png.

    Args:
        folder: Directory, a `Path`.
        settings: What was measured, JSON-able.
        results: `{model: summarised results}`.
    """
    content = {"settings": settings, "results": results}
    (folder / "peers.json").write_text(json.dumps(content, indent=2) + "\n")
    _draw(results, folder / "peers.png")


def _draw(results, path):
    from tffed.extras import require

    size = (5.5 * len(results), 3.6)
    figure = require("matplotlib.figure", "plot").Figure(figsize=size, layout="constrained")
    for axes, (model, rows) in zip(figure.subplots(1, len(results), squeeze=False)[0],
                                   results.items(), strict=True):
        rows = sorted((r for r in rows if "median" in r), key=lambda r: -r["median"])
        medians = np.array([r["median"] for r in rows])
        spread = np.abs(np.array([r["quartiles"] for r in rows]).reshape(-1, 2).T - medians)
        colours = ["#c0392b" if r["peer"] == REFERENCE else "#7f8c9a" for r in rows]
        bars = axes.barh([r["peer"] for r in rows], medians, xerr=spread, color=colours)
        axes.bar_label(bars, [f"{m:.3g} s" for m in medians], padding=6)
        axes.set_xlim(0, 1.25 * max(medians, default=1))
        axes.set_title(model.upper())
        axes.set_xlabel("Seconds a round: median, quartiles")
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
