"""Runs that are killed at random moments end with the bits of runs that were not.

    python -m experiments.benchmarks.kills --kills=200 --pairs=10

Ten kinds of small runs (`kills_runs`) are begun, ended by SIGKILL or SIGTERM to the process group,
SIGKILL to the process, or Ctrl-C, and begun again, one to three times, then left to end. State,
weights, history, clients' states and ledger must be those of an uninterrupted run of the same
secret; no unfinished file may be left and nothing in the temporary folder. Then two processes are
set on one directory: one must be refused, and the other end as if alone. Nothing is timed. The
program ends with status 1 if anything differs; Ctrl-C ends it with what it has.

Processes are forked from this one, which has imported tffed and run nothing; so it needs POSIX.
"""

import collections
import contextlib
import itertools
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

from absl import flags as absl_flags

from experiments.benchmarks import machine

_ENDS = {
    "SIGKILL": (signal.SIGKILL, False),
    "SIGKILL, group": (signal.SIGKILL, True),
    "SIGTERM, group": (signal.SIGTERM, True),
    "SIGINT, group": (signal.SIGINT, True),
}
_AUTOGRAPH = "__autograph_generated_file"  # TensorFlow's, of programs' text: no data
_PATIENCE = 300  # seconds until a process counts as one that hangs


def main(argv=None):
    """Kills, resumes, compares, and prints what it counted."""
    values = machine.parse(sys.argv if argv is None else argv, "kills", __doc__, _define)
    from experiments.benchmarks import kills_runs

    unknown = [kind for kind in values.kinds if kind not in kills_runs.KINDS]
    if unknown:
        sys.exit(f"error: Expected kinds of {list(kills_runs.KINDS)}. Received: {unknown}.")
    found = check(values.kinds or list(kills_runs.KINDS), values.kills, values.pairs, values.seed)
    print(json.dumps(found["counts"], indent=2))
    for fault in found["faults"]:
        print(f"FAULT: {fault}")
    return 1 if found["faults"] else 0


def _define(common):
    absl_flags.DEFINE_integer("kills", 200, "Kills in total.", lower_bound=0, **common)
    absl_flags.DEFINE_integer("pairs", 10, "Pairs of processes on a directory.", lower_bound=0,
                              **common)
    absl_flags.DEFINE_multi_string("kinds", [], "Kinds of runs; all by default.", **common)
    absl_flags.DEFINE_integer("seed", 0, "Seed of the moments.", **common)


def check(kinds, kills, pairs, seed):
    """`{"counts": {what: how often}, "faults": [texts]}`."""
    draws, counts, faults = random.Random(seed), collections.Counter(), []
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also if begun in the background
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        done = {kind: _Kind(kind, Path(folder) / str(k)) for k, kind in enumerate(kinds)}
        for one in [*done.values()] if kills or pairs else []:
            one.prepare()
        with contextlib.suppress(KeyboardInterrupt):  # which ends it with what it has
            for k in range(pairs):
                kind = kinds[k % len(kinds)]
                _report(faults, done[kind].twice(draws, counts), f"{kind}, two processes")
            for kind in itertools.cycle(kinds):
                if counts["kills"] >= kills:
                    break
                most = kills - counts["kills"]
                _report(faults, done[kind].interrupted(draws, most, counts), kind)
    return {"counts": dict(counts), "faults": faults}


def _report(faults, found, where):
    faults += [f"{where}: {fault}" for fault in found]
    print(f"{where}: {'; '.join(found) or 'as it should be'}", flush=True)


class _Kind:
    """One kind of run: how it begins, how it ends when nothing happens, and trials of it."""

    def __init__(self, name, folder):
        self._name, self._folder = name, folder
        self._trials = 0

    def prepare(self):
        """The common start, with the secret if there is one, and the uninterrupted run."""
        (self._folder / "start").mkdir(parents=True)
        _Process(self._name, self._folder / "start", self._folder / "tmp", begin_only=True).wait()
        directory = self._fresh()
        begun = _Process(self._name, directory, self._folder / "tmp")
        begun.ready()
        start = time.monotonic()
        self._expected = begun.wait()
        self._seconds = time.monotonic() - start

    def interrupted(self, draws, most, counts):
        """Kills a run one to three times and lets it end; what is wrong, as texts."""
        directory, faults = self._fresh(), []
        for _ in range(min(most, draws.randint(1, 3))):
            name = draws.choice(list(_ENDS))
            process = _Process(self._name, directory, self._folder / "tmp")
            process.ready()
            time.sleep(draws.uniform(0, self._seconds))
            if not process.end(*_ENDS[name]):
                break  # it was done before
            counts["kills"] += 1
            counts[name] += 1
            faults += [f"{left} left after {name}" for left in self._temporary()]
        counts["runs"] += 1
        return faults + self._compare(_Process(self._name, directory, self._folder / "tmp").wait(),
                                      directory)  # fmt: skip

    def twice(self, draws, counts):
        """Two processes on a directory, the second one some time after the first."""
        directory = self._fresh()
        first = _Process(self._name, directory, self._folder / "tmp")
        if late := draws.random() < 0.7:
            first.ready()
            time.sleep(draws.uniform(0, self._seconds * 0.7))
        second = _Process(self._name, directory, self._folder / "tmp")
        results = [first.wait(), second.wait()]
        refused = [r for r in results if r.get("refused")]
        counts["pairs, one later" if late else "pairs, at once"] += 1
        if not refused and results[0] == results[1]:
            counts["pairs, one after the other"] += 1  # the first was done
        elif len(refused) != 1 or "uses now" not in refused[0]["refused"]:
            return [f"two processes ended with {results}"]
        counts["pairs refused"] += len(refused)
        return self._compare(next(r for r in results if not r.get("refused")), directory)

    def _fresh(self):
        self._trials += 1
        directory = self._folder / f"run{self._trials}"
        shutil.copytree(self._folder / "start", directory)
        (self._folder / "tmp").mkdir(exist_ok=True)
        return directory

    def _compare(self, found, directory):
        faults = [f"{k} is {found.get(k)}" for k, v in self._expected.items() if found.get(k) != v]
        faults += [f"{p.name} left" for p in directory.glob("*.unfinished")]
        faults += [f"{left} left" for left in self._temporary()]
        shutil.rmtree(directory)
        return faults + ([f"it said {found}"] if faults else [])

    def _temporary(self):
        """What is in the temporary folder, once workers have had the time to end."""
        end = time.monotonic() + 10
        while True:
            names = [path.name for path in (self._folder / "tmp").iterdir()]
            left = [name for name in names if not name.startswith(_AUTOGRAPH)]
            if not left or time.monotonic() > end:
                return left
            time.sleep(0.1)


class _Process:
    """A process that does a run, and says when it begins and how it ends."""

    def __init__(self, kind, directory, temporary, begin_only=False):
        reader, writer = os.pipe()
        self._number = os.fork()
        if not self._number:
            os.close(reader)
            os.setsid()
            _child(kind, directory, temporary, writer, begin_only)
        os.close(writer)
        self._told, self._line = open(reader), None

    def ready(self):
        """Waits until the run begins."""
        self._line = self._told.readline()

    def end(self, number, group):
        """Ends it and waits for that; whether it had not ended already."""
        (os.killpg if group else os.kill)(self._number, number)
        said = self._told.read()
        _, status = self._waited()
        return not said.startswith("{") and not (os.WIFEXITED(status) and not status)

    def wait(self):
        """What it says at its end."""
        if self._line is None:
            self.ready()
        said = self._told.read()
        self._waited()
        return json.loads(said) if said else {"failed": "it said nothing"}

    def _waited(self):
        self._told.close()
        end = time.monotonic() + _PATIENCE
        while time.monotonic() < end:
            found = os.waitpid(self._number, os.WNOHANG)
            if found[0]:
                return found
            time.sleep(0.01)
        os.killpg(self._number, signal.SIGKILL)
        raise RuntimeError(f"Process {self._number} did not end.")


def _child(kind, directory, temporary, writer, begin_only):
    """What a forked process does; it never returns."""
    status = 1
    try:
        os.environ["TMPDIR"] = tempfile.tempdir = str(temporary)
        said = _run(kind, directory, lambda: os.write(writer, b"ready\n"), begin_only)
        os.write(writer, json.dumps(said).encode())
        status = 0
    except KeyboardInterrupt:
        status = 2
    except BaseException:
        os.write(writer, json.dumps({"failed": traceback.format_exc()[-1500:]}).encode())
    finally:
        _end_workers()
        os._exit(status)


def _end_workers():
    from tffed.engines import workers

    for one in workers._shared:
        one.end()


def _run(kind, directory, ready, begin_only):
    import keras

    import tffed
    from experiments.benchmarks import kills_runs

    fed, clients, arguments = kills_runs.make(kind)
    if begin_only:
        stop = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: os._exit(0))
        arguments["callbacks"] = [*arguments.get("callbacks", ()), stop]
    ready()
    try:
        fed.fit(clients, kills_runs.ROUNDS, checkpoint_dir=directory, verbose=0, **arguments)
    except tffed.CheckpointError as error:
        return {"refused": str(error)}
    return kills_runs.digests(fed, clients)


if __name__ == "__main__":
    sys.exit(main())
