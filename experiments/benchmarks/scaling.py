"""How a round's time and memory grow with clients, population, parameters and local steps.

    python -m experiments.benchmarks.scaling --output_dir=runs/scaling

`Federated.fit` on an MLP over clients that are made when they are read, so that nothing but the
round itself takes time or memory. One quantity is varied at a time; every point has a process of
its own. A straight line through the points gives the fixed cost and the cost of one more. The slope
in logarithms says how cost grows: 0 not at all, 1 in proportion; where the fixed cost still shows,
that of the last two points says more. Writes scaling.txt, scaling.json and scaling.png.
"""

import json
import sys
from pathlib import Path

import numpy as np
from absl import flags as absl_flags

from experiments.benchmarks import machine
from tffed.extras import require

_BASE = {"clients_per_round": 10, "population": 100, "parameters": 10_000, "local_steps": 2}
# What is varied: the values, and what is not as in the base.
_SWEEPS = {
    "clients_per_round": ((10, 100, 1_000, 10_000), {"population": 10_000}),
    "population": ((100, 1_000, 10_000, 100_000, 1_000_000), {}),
    "parameters": (
        (10**4, 10**5, 10**6, 10**7, 10**8), {"clients_per_round": 2, "local_steps": 1}
    ),
    "local_steps": ((1, 10, 100, 1_000), {}),
}
_TIME, _MEMORY = "#1f5fa8", "#c0652b"


def main(argv=None):
    """Measures every point, prints the table and writes the files."""
    values = machine.parse(sys.argv if argv is None else argv, "scaling", __doc__, _define)
    folder = Path(values.output_dir)
    points = []
    for sweep in values.sweeps:
        for at in _SWEEPS[sweep][0]:
            if at > values.largest:
                continue
            request = _BASE | _SWEEPS[sweep][1] | {sweep: at}
            print(f"{sweep.replace('_', ' ')}: {at:,}", flush=True)
            try:
                found = machine.in_process("experiments.benchmarks.scaling_point", request)
            except RuntimeError as error:
                sys.exit(f"error: {error}")
            points.append({"sweep": sweep, "at": at, "setting": request} | found)
    lines = slopes(points)
    text = table(points, lines)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "scaling.txt").write_text(text + "\n")
    content = {"machine": machine.describe(), "points": points, "slopes": lines}
    (folder / "scaling.json").write_text(json.dumps(content, indent=1) + "\n")
    draw(points, lines, folder / "scaling.png")
    print(f"\n{text}\nWritten to {folder}: scaling.txt, scaling.json, scaling.png")


def _define(common):
    names = list(_SWEEPS)
    absl_flags.DEFINE_list("sweeps", names, f"Some of {', '.join(names)}.", **common)
    absl_flags.DEFINE_integer(
        "largest", 10**8, "Leaves out points beyond this value.", lower_bound=1, **common
    )
    absl_flags.DEFINE_string("output_dir", "runs/scaling", "Where results go.", **common)
    absl_flags.register_validator(
        "sweeps", lambda given: given and set(given) <= set(names),
        f"expected some of {', '.join(names)}", flag_values=common["flag_values"],
    )


def slopes(points):
    """How the points of each sweep grow.

    Args:
        points: Dictionaries of `sweep`, `at`, `seconds` (a list) and `peak_mb`.

    Returns:
        `{sweep: {"seconds": line, "peak_mb": line}}`; a line is `slope`, in logarithms, of the
        least squares through all points, `last`, that of the last two, and `fixed` and `each` of
        the line fixed + each * at with the least squares of relative errors. Sweeps of one point
        have none.
    """
    found = {}
    for sweep in dict.fromkeys(point["sweep"] for point in points):
        mine = [point for point in points if point["sweep"] == sweep]
        if len(mine) > 1:
            found[sweep] = {of: _line(mine, of) for of in ("seconds", "peak_mb")}
    return found


def _line(points, of):
    x = np.array([point["at"] for point in points], float)
    y = np.array([np.median(point[of]) for point in points])
    slope = np.polyfit(np.log(x), np.log(y), 1)[0]
    last = np.diff(np.log(y[-2:]))[0] / np.diff(np.log(x[-2:]))[0]
    each, fixed = np.polyfit(x / x.max(), y, 1, w=1 / y)
    found = {"slope": slope, "last": last, "fixed": fixed, "each": each / x.max()}
    return {name: float(value) for name, value in found.items()}


def _slopes(line):
    """Both slopes in words, without a minus before a zero."""
    slope, last = (f"{round(line[name], 2) + 0.0:.2f}" for name in ("slope", "last"))
    return f"slope {slope}, at the end {last}"


def table(points, lines):
    """The points and slopes as text in aligned columns."""
    head = f"{'varied':18}{'at':>12}{'seconds a round':>18}{'first round s':>16}{'peak MB':>10}"
    rows = [head, "-" * len(head)]
    for point in points:
        rows.append(
            f"{point['sweep'].replace('_', ' '):18}{point['at']:>12,}"
            f"{np.median(point['seconds']):>18.4f}{point['first_seconds']:>16.2f}"
            f"{point['peak_mb']:>10,.0f}"
        )
    rows.append("")
    for sweep, by in lines.items():
        time, memory = by["seconds"], by["peak_mb"]
        rows.append(
            f"{sweep.replace('_', ' ')}: time {_slopes(time)}, {time['fixed']:.3g} s + "
            f"{time['each']:.2g} s each; memory {_slopes(memory)}, {memory['fixed']:,.0f} MB + "
            f"{memory['each']:.2g} MB each"
        )
    return "\n".join(rows)


def draw(points, lines, path):
    """Draws time above memory, a column a sweep, with the lines.

    Args:
        points: As in `slopes`.
        lines: What `slopes` gave.
        path: File to write, its format by its ending.

    Raises:
        ImportError: matplotlib is not installed.
    """
    sweeps = list(dict.fromkeys(point["sweep"] for point in points))
    size = (3.7 * len(sweeps) + 0.6, 6)
    figure = require("matplotlib.figure", "plot").Figure(figsize=size, layout="constrained")
    axes = figure.subplots(2, len(sweeps), sharex="col", sharey="row", squeeze=False)
    for row, of in zip(axes, ("seconds", "peak_mb"), strict=True):
        values = [np.median(point[of]) for point in points]
        row[0].set_ylim(min(values) / 2, max(values) * 6)
    for k, sweep in enumerate(sweeps):
        mine = [point for point in points if point["sweep"] == sweep]
        by = lines.get(sweep, {})
        _panel(axes[0, k], mine, "seconds", by.get("seconds"), _TIME)
        _panel(axes[1, k], mine, "peak_mb", by.get("peak_mb"), _MEMORY)
        axes[0, k].set_title(sweep.replace("_", " ").capitalize())
        axes[1, k].set_xlabel(sweep.replace("_", " ").capitalize())
    axes[0, 0].set_ylabel("Seconds per round")
    axes[1, 0].set_ylabel("Peak resident memory, MB")
    figure.savefig(path, dpi=120)


def _panel(axes, points, of, line, colour):
    x = np.array([point["at"] for point in points])
    axes.loglog(x, [np.median(point[of]) for point in points], "o", color=colour, ms=5)
    if line is not None:
        steps = np.geomspace(x.min(), x.max())
        axes.loglog(
            steps, line["fixed"] + line["each"] * steps, "--", color=colour, lw=1,
            label=f"fixed cost + cost of each\n{_slopes(line)}",
        )
        axes.legend(frameon=False, fontsize="small", loc="upper left", handlelength=1.5)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    main()
