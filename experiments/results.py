"""What an experiment leaves in its output directory.

`config.json` is written when the run begins and says which run it is, `metrics.csv` after each
round, and `model.keras`, `plot.png` and `evaluation.json` at the end; with noise also
`privacy.json` and `privacy.png`.
"""

import csv
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
from pathlib import Path

CONFIG, METRICS, MODEL = "config.json", "metrics.csv", "model.keras"
PLOT, EVALUATION, CHECKPOINTS = "plot.png", "evaluation.json", "checkpoints"
PRIVACY, PRIVACY_PLOT = "privacy.json", "privacy.png"
# scikit-learn ships data, and zstandard sets what some messages weigh.
_PACKAGES = ("tensorflow", "keras", "numpy", "scikit-learn", "zstandard")
_PACKAGES += ("tensorflow-privacy", "dp-accounting")
# What a second call of the same experiment may have otherwise: it changes no round's result.
_MAY_DIFFER = {"rounds", "output_dir", "lanes", "checkpoint", "checkpoint_freq", "fresh", "verbose"}


class OutputDirectory:
    """The files of one experiment.

    Args:
        values: The parsed flags; `values.output_dir` is where the files go.

    Raises:
        ValueError: The directory holds the results of another experiment.
    """

    def __init__(self, values):
        self.path = Path(values.output_dir)
        self.checkpoints = self.path / CHECKPOINTS
        self._flags = {name: values[name].value for name in values}
        self._check_same()

    def _check_same(self):
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(
                f"Expected a directory for the results. Received: --output_dir={self.path}, which "
                "is a file. Name another."
            )
        before = self._read(CONFIG)
        if before is None:
            if self.checkpoints.exists():
                raise ValueError(
                    f"Expected {CONFIG} beside the checkpoints in {self.path}. Received: none that "
                    "can be read. Name another --output_dir."
                )
            return
        flags = before.get("flags", {})
        names = sorted({*flags, *self._flags} - _MAY_DIFFER)
        differ = [name for name in names if flags.get(name) != self._flags.get(name)]
        if differ:
            there = ", ".join(f"{name}={flags.get(name)}" for name in differ)
            here = ", ".join(f"{name}={self._flags.get(name)}" for name in differ)
            raise ValueError(
                f"Expected an --output_dir without results of another experiment. Received: "
                f"--output_dir={self.path}, whose {CONFIG} has {there} where this has {here}. Name "
                "another directory, or move that one away."
            )

    def rounds_finished(self):
        """Rounds of the finished run that the directory holds, 0 if there is none."""
        found = self._read(EVALUATION)
        return found["rounds"] if found and (self.path / MODEL).is_file() else 0

    def remove(self):
        """Removes the experiment's files, and those only; returns what was removed."""
        return remove_files(self.path)

    def begin(self, data_origin=None):
        """Writes down which run this is. Results of fewer rounds of it are no longer complete."""
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / EVALUATION).unlink(missing_ok=True)
        found = {"flags": self._flags, "versions": versions(), "git": git_commit()}
        self._write(CONFIG, found | {"data": data_origin})

    def write_metrics(self, rows):
        """Writes `metrics.csv`, a row a round; a value that a round does not have is left empty."""
        columns = list(dict.fromkeys(name for row in rows for name in row))
        temporary = self.path / f".{METRICS}"
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)
        os.replace(temporary, self.path / METRICS)

    def finish(self, model, rows, clients, evaluation, privacy=None):
        """Writes the model, the plot, a `PrivacyReport` if there is one and, last, the evaluation.

        Returns:
            Paths of all files of the run.
        """
        from experiments.plots import plot_run

        model.save(self.path / MODEL)
        plot_run(rows, clients, self.path / PLOT)
        if privacy is not None:
            self._write(PRIVACY, privacy.to_dict())
            privacy.plot(self.path / PRIVACY_PLOT)
        self._write(EVALUATION, {"rounds": len(rows), **evaluation})
        return self.files()

    def files(self):
        """Paths of the files that are there."""
        names = (METRICS, PLOT, PRIVACY, PRIVACY_PLOT, MODEL, EVALUATION, CONFIG)
        return [self.path / name for name in names if (self.path / name).is_file()]

    def _read(self, name):
        try:
            return json.loads((self.path / name).read_text())
        except (OSError, ValueError):
            return None

    def _write(self, name, content):
        temporary = self.path / f".{name}"
        temporary.write_text(json.dumps(content, indent=2) + "\n")
        os.replace(temporary, self.path / name)


def remove_files(directory):
    """Removes the files that an experiment writes, and no others.

    Returns:
        The names of what was removed.
    """
    removed = []
    for name in (EVALUATION, MODEL, PLOT, PRIVACY, PRIVACY_PLOT, METRICS, CONFIG):
        file = Path(directory) / name
        if file.is_file():
            file.unlink()
            removed.append(name)
    if (Path(directory) / CHECKPOINTS).is_dir():
        shutil.rmtree(Path(directory) / CHECKPOINTS)
        removed.append(CHECKPOINTS)
    return removed


def read_metrics(path):
    """Rows of a `metrics.csv` as dictionaries of numbers; empty fields are left out."""
    with open(path, newline="") as file:
        return [
            {name: float(value) for name, value in row.items() if value}
            for row in csv.DictReader(file)
        ]


def versions():
    """Versions of Python and of the packages that results depend on; None: not installed."""
    import tffed

    found = {"python": platform.python_version(), "tffed": tffed.__version__}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def git_commit():
    """The commit of the source and whether files differ from it, or None outside a repository."""

    def git(*arguments):
        return subprocess.run(
            ["git", "-C", Path(__file__).parent, *arguments],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "modified": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return None
