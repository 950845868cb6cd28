"""Every mechanism through `Federated.fit`, as it is and sabotaged, before an attacker.

Each sabotage breaks one thing that a claim rests on and leaves the claim as it was. `audit_fit`
must refute it, and must not refute what is left alone: of 100 honest audits one may be, by chance.
"""

import contextlib
import json
from typing import NamedTuple
from unittest import mock

import keras

import tffed
from tffed import privacy, random
from tffed.engines import embedded
from tffed.privacy import example_level
from tffed.privacy.audit.whole import audit_fit, power
from tffed.privacy.ledger import Ledger

CLIP, NOISE = 0.5, 1.0
_UNIFORM = tffed.mean("uniform")


class Case(NamedTuple):
    """A mechanism under audit.

    Attributes:
        make: `(clip, z, cohort) -> `the arguments of `compile` that bring it.
        options: Arguments of `audit_fit`.
        sabotages: Names of those that it is to be tried with.
    """

    make: object
    options: dict
    sabotages: tuple


def _stages(*parts):
    return {"aggregator": tffed.chain(*parts)}


def _adaptive(clip, z, cohort):
    return privacy.adaptive_gaussian(clip, z, expected_clients=cohort)


def _weights(clip, z, cohort, *, claimed=None, divisor=None):
    """Noise for clients that are clipped to `claimed`, divided by their number, they say."""
    clipped = tffed.clip(clip)._replace(bound=tffed.clip(claimed or clip).bound)
    reducer = tffed.mean("uniform", denominator=divisor)._replace(moves=_UNIFORM.moves)
    return _stages(clipped, privacy.weight_noise(z * (claimed or clip) / cohort), reducer)


_ALL = ("halved noise", "doubled clip", "reused noise", "miscounted rounds")
_EVERYONE = {"turns": 1, "rounds": 4}
CASES = {
    "noise on the sum": Case(
        lambda c, z, n: _stages(privacy.gaussian(c, z), _UNIFORM),
        {},
        (*_ALL, "no second clip"),
    ),
    "noise on the sum, hostile clients": Case(
        lambda c, z, n: _stages(_hostile(privacy.gaussian(c, z)), _UNIFORM), {}, ()
    ),
    "noise at a norm that adapts": Case(
        lambda c, z, n: _stages(_adaptive(c, z, n), _UNIFORM), {}, _ALL
    ),
    "trees of one round": Case(
        lambda c, z, n: _stages(privacy.tree_gaussian(c, z, period=1), _UNIFORM),
        _EVERYONE,
        ("halved noise", "doubled clip", "miscounted rounds"),
    ),
    "trees of four rounds": Case(
        lambda c, z, n: _stages(privacy.tree_gaussian(c, z, period=4), _UNIFORM),
        {"turns": 4},
        (),
    ),
    "noise on the weights": Case(_weights, {}, (*_ALL, "small divisor")),
    "noise on an update": Case(
        lambda c, z, n: _stages(privacy.local_gaussian(c, z), _UNIFORM),
        {"canaries": 300, "turns": 300, "rounds": 300},
        ("halved noise", "doubled clip", "reused noise"),
    ),
    "noise in the steps": Case(
        lambda c, z, n: {"privacy": privacy.dp_sgd(c, z)}, {"unit": "example"}, _ALL
    ),
}


def main(folder):
    """Audits all, prints a table and writes it down; returns the names of wrong verdicts."""
    rows, wrong = [], []
    head = ("mechanism", "sabotage", "claimed", "any", "Gaussian", "power")
    print("{:34} {:18} {:>9} {:>9} {:>9} {:>7}  verdict".format(*head), flush=True)
    for name, case in CASES.items():
        for sabotage in (None, *case.sabotages):
            result = audit(name, sabotage)
            row = _row(name, sabotage, result)
            rows.append(row)
            print(_line(row), flush=True)
            if result.refuted != (sabotage is not None):
                wrong.append(f"{name}, {sabotage or 'honest'}")
    (folder / "whole_audit.json").write_text(json.dumps(rows, indent=2) + "\n")
    print("All verdicts are as they should be." if not wrong else f"WRONG: {'; '.join(wrong)}")
    return wrong


def _row(name, sabotage, result):
    case, claimed = CASES[name], result.claimed_epsilon
    return {
        "mechanism": name,
        "sabotage": sabotage,
        "claimed_epsilon": claimed,
        "bound_of_any_mechanism": result.any_mechanism.epsilon_lower,
        "bound_of_gaussian": result.gaussian_lower,
        "mu": result.mu,
        "mu_lower": result.mu_lower,
        "power": power(result.mu, _mu(claimed, result.delta), case.options.get("canaries", 600)),
        "refuted": result.refuted,
    }


def _line(row):
    numbers = [row[k] for k in ("claimed_epsilon", "bound_of_any_mechanism", "bound_of_gaussian")]
    shown = " ".join(f"{n:9.3f}" if n < 1e5 else f"{n:9.1e}" for n in numbers)
    verdict = "REFUTED" if row["refuted"] else "not refuted"
    sabotage = row["sabotage"] or "-"
    return f"{row['mechanism']:34} {sabotage:18} {shown} {row['power']:7.3f}  {verdict}"


def _mu(epsilon, delta):
    """The μ whose ε that is: `gaussian_epsilon` turned round."""
    from tffed.privacy.audit.whole import gaussian_epsilon

    low, high = 0.0, 100.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if gaussian_epsilon(middle, delta) < epsilon else (low, middle)
    return low


def audit(name, sabotage=None, **options):
    """The `FitAudit` of a case, as it is or with a sabotage."""
    case = CASES[name]

    def prepare(fed, cohort):
        made = _made(case, sabotage, cohort)
        made.setdefault("aggregator", tffed.chain(_UNIFORM))
        fed.compile(keras.optimizers.SGD(1.0), loss="mae", jit_compile=False, **made)

    with _patched(name, sabotage):
        return audit_fit(prepare, **(case.options | options))


def _made(case, sabotage, cohort):
    """The arguments of `compile`: with a sabotage, of a mechanism that claims to be another."""
    honest = case.make(CLIP, NOISE, cohort)
    if sabotage == "small divisor":
        return _weights(CLIP, NOISE, cohort, divisor=cohort / 2)
    if sabotage == "no second clip":
        hostile = _hostile(privacy.gaussian(CLIP, NOISE))
        return _stages(hostile._replace(decode=tffed.Stage().decode), _UNIFORM)
    if sabotage != "doubled clip" or "privacy" in honest:
        return honest
    if case.make is _weights:
        return _weights(2 * CLIP, NOISE, cohort, claimed=CLIP)
    doubled = case.make(2 * CLIP, NOISE / 2, cohort)["aggregator"]  # so the noise is the same
    return {"aggregator": doubled._replace(mechanisms=honest["aggregator"].mechanisms)}


def _hostile(stage):
    """The stage before clients who do not clip."""
    return stage._replace(encode=lambda shared, state, value, seed: (value, state, {}))


@contextlib.contextmanager
def _patched(name, sabotage):
    patches = {
        "halved noise": _halved,
        "reused noise": _reused_draws if name in _IN_CLIENTS else _reused_rounds,
        "miscounted rounds": lambda: _miscounted(CASES[name].options.get("turns", 2)),
        "doubled clip": _doubled_steps,
    }
    with contextlib.ExitStack() as stack:
        for patch in patches.get(sabotage, list)():
            stack.enter_context(patch)
        yield


_IN_CLIENTS = ("noise on an update", "noise in the steps")


def _halved():
    normal = random.normal
    return [mock.patch.object(random, "normal", lambda shape, seed: normal(shape, seed) / 2)]


def _reused_draws():
    """Noise from a secret that is the same for all clients, steps and rounds."""
    normal, secret = random.normal, random.secret()
    return [mock.patch.object(random, "normal", lambda shape, seed: normal(shape, secret))]


def _reused_rounds():
    """Noise from the run's secret alone, as if it were always the first round."""
    round_noise = random.round_noise

    class Unbound(embedded.RoundNoise):
        def __init__(self, state, context=b""):
            super().__init__(state, context)
            self._binds = False

    return [
        mock.patch.object(embedded, "RoundNoise", Unbound),
        mock.patch.object(random, "round_noise", lambda noise, number: round_noise(noise, 0)),
    ]


def _miscounted(turns):
    """A ledger that misses every second round of each client."""
    record = Ledger.record

    def forgetful(self, round_):
        if round_.number // turns % 2 == 0:
            record(self, round_)

    return [mock.patch.object(Ledger, "record", forgetful)]


def _doubled_steps():
    """Clips gradients of examples at twice the norm."""
    clipped_sum = example_level.per_example.clipped_sum

    def doubled(model, keras_model, clip, *rest):
        return clipped_sum(model, keras_model, 2 * clip, *rest)

    return [mock.patch.object(example_level.per_example, "clipped_sum", doubled)]
