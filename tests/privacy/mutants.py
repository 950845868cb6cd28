"""Breaks the privacy path on purpose, one place at a time, and looks whether a test notices.

    python -m tests.privacy.mutants
    python -m tests.privacy.mutants --only "ledger" --jobs 2

Each mutation of `mutations.py` is applied to a copy of the package, and the tests that should
notice are run. A mutant that survives is a hole in the tests. `--sound` runs all these tests on the
unchanged copy first: a test that fails anyway kills everything and shows nothing.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.privacy.mutations import MUTATIONS

ROOT = Path(__file__).resolve().parents[2]
_COPIED = ("tffed", "tests", "pyproject.toml")
_SECONDS = 600


def main():
    """Runs the mutants that are asked for; fails if one survives or cannot be tried."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="Those whose name has this in it.")
    parser.add_argument("--jobs", type=int, default=1, help="How many are tried at a time.")
    parser.add_argument("--sound", action="store_true", help="Run the tests unchanged first.")
    options = parser.parse_args()
    chosen = [one for one in MUTATIONS if options.only in one.name]
    for one in chosen:
        check(one)
    if options.sound:
        tests = sorted({test for one in chosen for test in one.tests})
        print(f"{'unchanged':58} {verdict(run(tests))}", flush=True)
    with ThreadPoolExecutor(options.jobs) as pool:
        found = [verdict for verdict in pool.map(tried, chosen)]
    counts = {word: sum(f.startswith(word) for f in found) for word in ("killed", "SURVIVED")}
    print(f"{len(found)} mutants: {counts['killed']} killed, {counts['SURVIVED']} survived")
    sys.exit(counts["killed"] < len(found))


def check(mutation):
    """Checks that a mutation changes one place.

    Raises:
        ValueError: Its text is not there, or more than once.
    """
    count = (ROOT / mutation.file).read_text().count(mutation.old)
    if count != 1 or mutation.old == mutation.new:
        raise ValueError(
            f"Expected the mutation {mutation.name!r} to change one place of {mutation.file}. "
            f"Received: a text that is there {count} times. Bring it up to date."
        )


def tried(mutation):
    """The verdict on one mutation, printed too."""
    found = verdict(run(mutation.tests, mutation))
    print(f"{mutation.name:58} {found}", flush=True)
    return found


def run(tests, mutation=None):
    """Runs tests on a copy of the package, changed or not; returns pytest's exit and output."""
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        for name in _COPIED:
            source, target = ROOT / name, folder / name
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, target)
        if mutation is not None:
            path = folder / mutation.file
            path.write_text(path.read_text().replace(mutation.old, mutation.new))
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
        environment = os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
        try:
            done = subprocess.run(
                command, cwd=folder, env=environment, capture_output=True, text=True,
                timeout=_SECONDS, check=False,
            )
        except subprocess.TimeoutExpired:
            return None, ""
        return done.returncode, done.stdout


def verdict(result):
    """What an exit of pytest says of a mutant."""
    code, output = result
    lines = output.strip().splitlines() or [""]
    if code == 1:
        failed = next((line for line in lines if line.startswith(("FAILED", "ERROR"))), lines[-1])
        return f"killed by {failed.split(' - ')[0].split('::')[-1]}"
    if code == 0:
        return "SURVIVED"
    return f"ERROR: no verdict, exit {code}: {lines[-1]}"


if __name__ == "__main__":
    main()
