"""Random private runs with interruptions, and a recount of what they released from outside.

    python -m tests.privacy.random_runs --examples 300 --seed 1

A run is a mechanism, an algorithm and a sampler, and a script of what happens to it: rounds, a
callback that raises, a state that is put back, other data, another compile, a process that is
killed and resumed. From outside only this is seen: the weights that callbacks are shown after each
round, and which clients' data are read. Of that, dp-accounting is asked what so many releases cost;
the report must claim no less. Releases that differ must have noise that has nothing in common.
"""

import argparse
import collections
import tempfile

import keras
import numpy as np
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as hypothesis_seed
from hypothesis import strategies as st

import tffed
from tests.privacy.runs import DELTA, compile_again, flat
from tffed import privacy

CLIENTS, UNITS = 8, 30
Z = 200.0  # so much that a move of the weights is noise and nothing else
MEAN, FIXED = tffed.mean("uniform"), tffed.mean("uniform", denominator=3)
MECHANISMS = {
    "sum": lambda: {"stages": (privacy.gaussian(1.0, Z), FIXED)},
    "layers": lambda: {
        "stages": (privacy.gaussian(1.0, Z, per_layer=True), tffed.cast("bfloat16"), FIXED)
    },
    "adaptive": lambda: {
        "stages": (
            privacy.adaptive_gaussian(1.0, Z, count_stddev=Z, expected_clients=3),
            FIXED,
        )
    },
    "tree": lambda: {"stages": (privacy.tree_gaussian(1.0, Z, period=3), FIXED)},
    "weights": lambda: {"stages": (tffed.clip(3.0), privacy.weight_noise(Z), FIXED)},
    "update": lambda: {"stages": (privacy.local_gaussian(1.0, Z), MEAN)},
    "steps": lambda: {"privacy": privacy.dp_sgd(1.0, Z)},
    "sampled": lambda: {"privacy": privacy.dp_sgd(1.0, Z, sampling="poisson")},
}
RECIPES = {
    "fed_avg": lambda: tffed.fed_avg(2, batch_size=4),
    "fed_prox": lambda: tffed.fed_prox(0.1, batch_size=4),
    "fed_sgd": tffed.fed_sgd,
}
SAMPLERS = {
    "poisson": tffed.data.Poisson(0.3),
    "uniform": tffed.data.Uniform(3),
    "cyclic": tffed.data.Cyclic(2),
}
ACTIONS = ("fit", "raise", "put back", "other data", "compile", "killed")


@st.composite
def runs(draw):
    """`(mechanism, recipe, sampler, actions)` of which nothing is refused."""
    mechanism = draw(st.sampled_from(sorted(MECHANISMS)))
    recipe = draw(st.sampled_from(sorted(RECIPES)))
    if mechanism == "sampled" and recipe == "fed_sgd":  # it takes no steps that could draw
        recipe = "fed_avg"
    sampler = "cyclic" if mechanism == "tree" else draw(st.sampled_from(sorted(SAMPLERS)))
    actions = draw(st.lists(st.sampled_from(ACTIONS), min_size=2, max_size=4))
    return mechanism, recipe, sampler, tuple(actions)


class Watch(keras.callbacks.Callback):
    """What is seen of a run from outside.

    Attributes:
        releases: `{bits of the weights before and after: (move, ids that were read)}`.
        compiles: `{number of the compile: [the same keys]}`.
    """

    def __init__(self):
        super().__init__()
        self.releases, self.by_compile = {}, collections.defaultdict(list)
        self.compile, self.read, self.raises = 0, set(), False

    def on_epoch_begin(self, epoch, logs=None):
        self._before = flat(self.model)
        self.read.clear()

    def on_epoch_end(self, epoch, logs=None):
        after = flat(self.model)
        key = self._before.tobytes() + after.tobytes()
        if key not in self.releases:
            self.releases[key] = (after - self._before, frozenset(self.read))
            self.by_compile[self.compile].append(key)
        if self.raises:
            raise KeyboardInterrupt


class Run:
    """A run that a script is played on."""

    def __init__(self, mechanism, recipe, sampler, folder):
        self.names, self.folder = (mechanism, recipe, sampler), folder
        self.watch, self.data, self.rounds = Watch(), 0, 0
        self.begin()

    def begin(self):
        inputs = keras.Input((4,))
        kernel = keras.layers.Dense(UNITS, kernel_initializer="zeros")
        self.fed = tffed.Federated(
            keras.Model(inputs, kernel(inputs)), RECIPES[self.names[1]](), seed=5
        )
        self.compile()

    def compile(self):
        arguments = MECHANISMS[self.names[0]]()
        stages = arguments.pop("stages", (MEAN,))
        sgd = self.names[1] == "fed_sgd"
        server = {"server_optimizer": keras.optimizers.SGD(1.0)} if sgd else {}
        compile_again(self.fed, *stages, client=None if sgd else 0.1, **server, **arguments)

    def clients(self):
        def read(cid):
            self.watch.read.add(cid)
            rng = np.random.default_rng([self.data, cid])
            return rng.normal(size=(4 + cid, 4)).astype("f4"), rng.integers(0, 3, 4 + cid)

        return tffed.data.from_function(range(CLIENTS), read)

    def fit(self, raises=False):
        """One round, so that no client of the next one is read meanwhile."""
        self.watch.raises = raises
        how = {"sampler": SAMPLERS[self.names[2]], "verbose": 0, "callbacks": [self.watch]}
        try:
            self.fed.fit(
                self.clients(), rounds=self.rounds + 1, initial_round=self.rounds,
                checkpoint_dir=self.folder, checkpoint_freq=3, **how,
            )
            self.rounds += 1
        except KeyboardInterrupt:
            pass
        except ValueError as error:
            if "takes part twice" not in str(error) and "of a tree of period" not in str(error):
                raise

    def play(self, action):
        if action in ("fit", "raise"):
            self.fit(raises=action == "raise")
            self.fit()
        elif action == "other data":
            self.data += 1
            self.fit()
        elif action == "put back" and self.fed.state is not None:
            state = self.fed.state
            self.fit()
            self.data += 1
            if self.folder is None:
                self.fed.state = state._replace(weights=self.fed.state.weights)
                self.rounds -= 1
            self.fit()
        elif action == "compile" and self.folder is None:
            self.compile()
            self.watch.compile, self.rounds = self.watch.compile + 1, 0
            self.fit()
        elif action == "killed" and self.folder is not None:
            self.begin()
            self.fit()


def recount(run):
    """ε of what was seen, by dp-accounting, for the mechanism at hand."""
    import dp_accounting as dp

    mechanism, recipe, sampler = run.names
    accountant = dp.rdp.RdpAccountant(
        neighboring_relation=dp.NeighboringRelation.REPLACE_ONE
        if sampler == "uniform" and mechanism not in ("update", "steps", "sampled")
        else dp.NeighboringRelation.ADD_OR_REMOVE_ONE
    )
    releases = run.watch.releases
    if mechanism in ("update", "steps", "sampled", "tree"):
        counts = collections.Counter(cid for _, cohort in releases.values() for cid in cohort)
        most = max(counts.values(), default=0)
        passes = 2 if recipe == "fed_avg" and mechanism == "steps" else 1
        if mechanism == "sampled":  # at the least, all have one step an epoch at the lowest rate
            one = dp.PoissonSampledDpEvent(4 / (3 + CLIENTS), dp.GaussianDpEvent(Z))
            passes = 1
        else:
            one = dp.GaussianDpEvent(Z)
        accountant.compose(one, most * passes)
        return accountant.get_epsilon(DELTA)
    z = Z if mechanism != "weights" else Z / (3.0 / 3)
    one = {
        "poisson": lambda: dp.PoissonSampledDpEvent(0.3, dp.GaussianDpEvent(z)),
        "uniform": lambda: dp.SampledWithoutReplacementDpEvent(
            CLIENTS, 3, dp.GaussianDpEvent(z / 2)
        ),
        "cyclic": lambda: dp.GaussianDpEvent(z),
    }[sampler]()
    count = len(releases)
    if sampler == "cyclic":
        counts = collections.Counter(cid for _, cohort in releases.values() for cid in cohort)
        count = max(counts.values(), default=0)
    accountant.compose(one, count)
    return accountant.get_epsilon(DELTA)


def check(example, seen=None):
    """Plays a run and holds its report against what was seen."""
    mechanism, recipe, sampler, actions = example
    with tempfile.TemporaryDirectory() as folder:
        kept = folder if "killed" in actions else None
        run = Run(mechanism, recipe, sampler, kept)
        run.fit()
        for action in actions:
            run.play(action)
        claimed = run.fed.privacy_report(DELTA, accountant="rdp").epsilon
        assert claimed >= recount(run) * (1 - 1e-6), example
        moves = [move for move, _ in run.watch.releases.values() if np.any(move)]
        for k, one in enumerate(moves):
            for other in moves[:k]:
                # Of 150 numbers: 0.6 is passed by independent ones once in 10^15 pairs. A tree's
                # noise is correlated from round to round by its nature.
                together = abs(np.corrcoef(one, other)[0, 1])
                assert together < (0.9 if mechanism == "tree" else 0.6), example
        if seen is not None:
            seen.update([mechanism, sampler, *actions])
            seen["releases"] += len(moves)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--examples", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    values = parser.parse_args()
    seen = collections.Counter()

    @hypothesis_seed(values.seed)
    @settings(
        max_examples=values.examples,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(runs())
    def play(example):
        check(example, seen)

    play()
    print(f"{values.examples} runs: {dict(seen)}")


if __name__ == "__main__":
    main()
