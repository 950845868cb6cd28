"""What the samples of the rounds benchmark come to: ratios, the table and the picture."""

import numpy as np

from tffed.extras import require

# The most that a round of tffed may take of the floor's time, by workload and clients' sizes.
TARGETS = {
    ("softmax", "equal"): 0.90,
    ("2nn", "equal"): 0.65,
    ("2nn", "ragged"): 0.70,
    ("cnn", "equal"): 0.85,
    ("bn_cnn", "equal"): 0.90,
    ("char_lstm", "equal"): 0.55,
    ("transformer", "equal"): 0.90,
}
SHELL_TARGET, GROWTH_TARGET, FIRST_TARGET = 1.03, 1.05, 6.0
_COLOURS = {"fit": "#1f5fa8", "functional": "#8fb4dc", "target": "#c0392b", "growth": "#4a8f5b"}


def summarise(records):
    """Adds to each record its ratios.

    Args:
        records: What `measure.measure` returns, of all processes.

    Returns:
        `(records, growth)`: records with `floor` (the name of the faster one), `ratios` (a
        dictionary of `ratio` by design, and of `fit/functional`), `first_extra` (seconds of fit's
        first round beyond a later one) and `target`; and a list of the comparisons of a client's
        time in cohorts of two sizes that were measured in turns.
    """
    done, growth = [], []
    for group in records:
        done += [_summary(record) for record in group]
        fits = [r for r in group if "fit" in r["seconds"]]
        if len(fits) > 1:
            fits.sort(key=lambda r: r["clients"])
            growth.append(_growth(fits[0], fits[-1]))
    return done, growth


def _summary(record):
    seconds = record["seconds"]
    floors = [name for name in seconds if name.startswith("floor")]
    floor = min(floors, key=lambda name: np.median(seconds[name])) if floors else None
    ratios = {}
    for name in ("fit", "functional"):
        if name in seconds and floor:
            ratios[name] = ratio(seconds[name], seconds[floor])
    if "fit" in seconds and "functional" in seconds:
        ratios["fit/functional"] = ratio(seconds["fit"], seconds["functional"])
    extra = None
    if "fit" in seconds and record["first_peak_mb"] is not None:  # in a process that was cold
        extra = record["first_seconds"]["fit"] - float(np.median(seconds["fit"]))
    target = TARGETS.get((record["workload"], record["sizes"]))
    return record | {"floor": floor, "ratios": ratios, "first_extra": extra, "target": target}


def _growth(few, many):
    each = [np.array(r["seconds"]["fit"]) / r["clients"] for r in (few, many)]
    names = {"workload": few["workload"], "sizes": few["sizes"]}
    return names | {"clients": [few["clients"], many["clients"]], "ratio": ratio(each[1], each[0])}


def ratio(seconds, base):
    """Two designs' samples as ratios.

    Args:
        seconds: Samples of one, by repetition.
        base: Samples of the other.

    Returns:
        `paired`: the median of the ratios within a repetition, with its `quartiles`; `of_medians`:
        the ratio of the medians.
    """
    seconds, base = np.asarray(seconds), np.asarray(base)
    low, middle, high = np.percentile(seconds / base, (25, 50, 75)).tolist()
    apart = float(np.median(seconds) / np.median(base))
    return {"paired": middle, "quartiles": [low, high], "of_medians": apart}


def label(record):
    """A record's name: its workload and clients, and their sizes unless they are equal."""
    sizes = "" if record["sizes"] == "equal" else f" {record['sizes']}"
    return f"{record['workload']}, {record['clients']:,}{sizes}"


def table(records, growth):
    """The summaries as text in aligned columns, with what the columns mean below."""
    head = [
        "workload, clients", "steps", "floor s", "by", "fit s", "quartiles", "functional s",
        "fit/floor", "medians", "target", "functional/floor", "fit/functional", "first s",
        "peak MB",
    ]
    rows = [head, *(_row(record) for record in records)]
    widths = [max(len(row[k]) for row in rows) for k in range(len(head))]
    lines = ["  ".join(_aligned(row, widths)).rstrip() for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    for found in growth:
        few, many = found["clients"]
        lines.append(
            f"{found['workload']}, fit, seconds per client at {many:,} clients a round over those "
            f"at {few:,}: {_interval(found['ratio'])}, target {GROWTH_TARGET}"
        )
    return "\n".join([*lines, "", *_NOTES, *_origins(records)])


_NOTES = (
    "floor: as many centralised SGD steps in one graph or with XLA, whichever is faster, on all",
    "cores; convolutions in the graph only, since XLA takes ten times as long for their gradients",
    "in a loop on a CPU. XLA's floor fills partial batches up. Ratios are medians of those within",
    "a repetition; 'medians' is the ratio of medians. first s: fit's first round less a later one,",
    "and peak MB: resident memory at its peak after that round, data and TensorFlow included; both",
    "where the process had done nothing else before.",
)


def _origins(records):
    found = dict.fromkeys(record["origin"] for record in records)
    return [f"data: {origin}" for origin in found]


def _row(record):
    seconds, ratios = record["seconds"], record["ratios"]
    fit = seconds.get("fit")
    spread = "–" if fit is None else " to ".join(_seconds(q) for q in np.percentile(fit, (25, 75)))
    return [
        label(record),
        f"{record['steps']:,}",
        _median(seconds.get(record["floor"])),
        (record["floor"] or "–").removeprefix("floor_"),
        _median(fit),
        spread,
        _median(seconds.get("functional")),
        *(_number(ratios.get("fit", {}).get(kind)) for kind in ("paired", "of_medians")),
        _number(record["target"]),
        _number(ratios.get("functional", {}).get("paired")),
        _number(ratios.get("fit/functional", {}).get("paired"), 3),
        _number(record["first_extra"]),
        "–" if record["first_peak_mb"] is None else f"{record['first_peak_mb']:,.0f}",
    ]


def _aligned(row, widths):
    return [
        cell.ljust(width) if k in (0, 3, 5) else cell.rjust(width)
        for k, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]


def _interval(found):
    low, high = found["quartiles"]
    return f"{found['paired']:.3f} (quartiles {low:.3f} to {high:.3f})"


def _median(samples):
    return "–" if samples is None else _seconds(float(np.median(samples)))


def _seconds(value):
    return f"{value:.4f}" if value < 0.1 else f"{value:.3f}" if value < 10 else f"{value:.1f}"


def _number(value, digits=2):
    return "–" if value is None else f"{value:.{digits}f}"


def draw(records, growth, path, title=""):
    """Draws the ratios with their targets, and the first rounds.

    Args:
        records: Summaries.
        growth: Comparisons of a client's time.
        path: File to write, its format by its ending.
        title: What ran it.

    Raises:
        ImportError: matplotlib is not installed.
    """
    full = [record for record in records if record["ratios"]]
    size = (14, 2.2 + 0.42 * max(len(full), 2))
    figure = require("matplotlib.figure", "plot").Figure(figsize=size, layout="constrained")
    floors, shell, first = figure.subplots(1, 3, width_ratios=(1.6, 1, 1))
    _draw_floors(floors, full)
    _draw_shell(shell, full, growth)
    _draw_first(first, full)
    figure.suptitle(title, fontsize="medium", color="#555555")
    figure.legend(*_legend(floors), loc="outside lower left", ncols=3, frameon=False)
    figure.savefig(path, dpi=120)


def _draw_floors(axes, records):
    bars = [("fit", -0.19), ("functional", 0.19)]
    for name, offset in bars:
        places = [(k, r["ratios"][name]) for k, r in enumerate(records) if name in r["ratios"]]
        _bars(axes, [k + offset for k, _ in places], [r for _, r in places], name, 0.36)
    for k, record in enumerate(records):
        if record["target"] is not None:
            _target(axes, record["target"], k, 0.42)
    axes.axvline(1, color="#555555", lw=0.8, ls=":")
    found = [r["ratios"][n]["paired"] for r in records for n in ("fit", "functional")
             if n in r["ratios"]]
    if found and max(found) > 6 * np.median(found):
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
    _finish(axes, [label(r) for r in records], "Round / floor", "Ratio of seconds")


def _legend(axes):
    """Handles and labels, each once, of the bars and the targets."""
    found = dict(zip(*axes.get_legend_handles_labels()[::-1], strict=True))
    return list(found.values()), list(found)


def _draw_shell(axes, records, growth):
    places = [(label(r), r["ratios"]["fit/functional"], "fit", SHELL_TARGET)
              for r in records if "fit/functional" in r["ratios"]]
    places += [
        ("{}, {:,} / {:,},\ntime per client".format(g["workload"], *g["clients"][::-1]),
         g["ratio"], "growth", GROWTH_TARGET)
        for g in growth
    ]
    for k, (_, found, name, target) in enumerate(places):
        low, high = found["quartiles"]
        axes.plot([low, high], [k, k], color="#333333", lw=1)
        axes.plot(found["paired"], k, "o", color=_COLOURS[name])
        _target(axes, target, k, 0.35)
        _value(axes, k, f"{found['paired']:.3f}")
    axes.axvline(1, color="#555555", lw=0.8, ls=":")
    _finish(axes, [name for name, *_ in places], "fit / functional", "Ratio of seconds")


def _draw_first(axes, records):
    shown = [r for r in records if r["first_extra"] is not None]
    values = [max(0, r["first_extra"]) for r in shown]
    axes.barh(range(len(shown)), values, 0.5, color=_COLOURS["fit"])
    for k, (record, value) in enumerate(zip(shown, values, strict=True)):
        _value(axes, k, f"{value:.1f} s")
        if record["workload"] == "cnn":
            _target(axes, FIRST_TARGET, k, 0.35)
    _finish(axes, [label(r) for r in shown], "First round of fit", "Seconds beyond a later round")


def _bars(axes, at, ratios, name, height):
    middles = np.array([r["paired"] for r in ratios])
    low, high = np.array([r["quartiles"] for r in ratios]).reshape(-1, 2).T
    axes.barh(
        at, middles, height, color=_COLOURS[name], label=name, xerr=(middles - low, high - middles),
        error_kw={"lw": 1, "ecolor": "#333333"},
    )
    for place, middle in zip(at, middles, strict=True):
        _value(axes, place, f"{middle:.2f}")


def _value(axes, place, text):
    """Writes a value at the right edge, where no bar and no target is."""
    axes.text(
        1.01, place, text, transform=axes.get_yaxis_transform(), va="center", fontsize="small"
    )


def _target(axes, value, place, reach):
    ends = [place - reach, place + reach]
    axes.plot([value, value], ends, color=_COLOURS["target"], lw=2, label="target")


def _finish(axes, names, title, words):
    axes.set_yticks(range(len(names)), names, fontsize="small")
    axes.set_ylim(max(len(names), 2) - 0.5, -0.5)
    axes.set_title(title)
    axes.set_xlabel(words)
    axes.grid(alpha=0.3, axis="x")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
