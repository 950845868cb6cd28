"""What was released: noisy rounds, how units got into them, and how far neighbours are apart.

How much the sum of a round can change, over the clip norm C, by the relation between neighbouring
data sets:

| units are sampled                | "add_or_remove" | "zero_out" | "replace_one" |
|----------------------------------|-----------------|------------|---------------|
| "poisson"                        | 1               | 1          | –             |
| "fixed_size_without_replacement" | –               | 2          | 2             |
| "full" (known to the adversary)  | 1               | 1          | 2             |
| "full", noise of kind "tree"     | –               | 1          | 2             |

A dash is refused. The 2 of "replace_one": two vectors of norm C may point in opposite directions.
The 2 of fixed-size cohorts under "zero_out": a unit in the cohort keeps another one out. So that it
may hide in the sampling, "in the cohort" must look like "not in it", and these two differ by a swap
of two units' vectors, whatever the relation.
"""

import math
from typing import NamedTuple

from tffed.arguments import integer_from, real

ADD_OR_REMOVE, ZERO_OUT, REPLACE_ONE = RELATIONS = ("add_or_remove", "zero_out", "replace_one")
POISSON, FIXED_SIZE, FULL = SCHEMES = ("poisson", "fixed_size_without_replacement", "full")
GAUSSIAN, TREE = KINDS = ("gaussian", "tree")
_ALLOWED = {
    POISSON: (ADD_OR_REMOVE, ZERO_OUT),
    FIXED_SIZE: (ZERO_OUT, REPLACE_ONE),
    FULL: RELATIONS,
    TREE: (ZERO_OUT, REPLACE_ONE),
}


class Sampling(NamedTuple):
    """How the protected units get into a round. The adversary sees the noisy sums, not the cohorts.

    It speaks of the units themselves. Where an example is protected, the sampling of *clients* does
    not count: the client's other examples may give away that it took part, so `"full"` is the
    scheme, for the rounds in which the client took part.

    Attributes:
        scheme: `"poisson"`: each unit by its own coin, with probability `rate`.
            `"fixed_size_without_replacement"`: `size` of `population` units, all subsets alike.
            `"full"`: always, or in rounds that the adversary may know.
        rate: The probability of the coin.
        size: Units a cohort.
        population: Units there are.
    """

    scheme: str
    rate: float | None = None
    size: int | None = None
    population: int | None = None


class Release(NamedTuple):
    """One kind of noisy round and how often it was done. `release_of` makes it from a mechanism.

    Attributes:
        noise_multiplier: Standard deviation of the noise over the most that the sum can change
            under `relation` (see the module's table), *not* over the clip norm. 0: not private.
        sampling: A `Sampling`. Of a `"tree"`, always `"full"`.
        rounds: Rounds done; with `"full"`, those in which the unit with most of them took part.
        per_round: Noisy releases that a unit enters each time it takes part, e.g. local epochs.
        kind: `"gaussian"`: fresh noise each round. `"tree"`: noise by tree aggregation, a unit at
            most once a tree (DP-FTRL).
        period: Rounds of a tree, after which the next one starts; None: a single tree.
        relation: `"add_or_remove"` one unit; `"zero_out"` one unit's vector; `"replace_one"` unit.
    """

    noise_multiplier: float
    sampling: Sampling
    rounds: int
    per_round: int = 1
    kind: str = "gaussian"
    period: int | None = None
    relation: str = ADD_OR_REMOVE


def sensitivity(relation, sampling, *, kind=GAUSSIAN, left_out=1.0):
    """The most that the sum of a round can change between neighbours, over the clip norm.

    Args:
        relation: One of `RELATIONS`.
        sampling: A `Sampling`.
        kind: `"gaussian"` or `"tree"`.
        left_out: The change if one unit's contribution is left out: `Mechanism.sensitivity`. No
            change exceeds 2, that of a clipped vector turned round.

    Raises:
        ValueError: The relation cannot be accounted for with this sampling.
    """
    _check_sampling(sampling)
    _check_relation(relation, sampling.scheme, kind)
    return 2.0 if relation == REPLACE_ONE or sampling.scheme == FIXED_SIZE else left_out


def release_of(mechanism, sampling, rounds, *, relation=ADD_OR_REMOVE, per_round=1):
    """The `Release` of a `Mechanism` that was used for some rounds.

    Args:
        mechanism: A `tffed.privacy.Mechanism` whose noise multiplier is set.
        sampling: A `Sampling` of what the mechanism protects.
        rounds, relation, per_round: See `Release`.

    Raises:
        ValueError: The noise multiplier is not set, or the relation does not go with the sampling.
    """
    if mechanism.noise_multiplier is None:
        raise ValueError(
            "Accounting needs a mechanism whose noise multiplier is set. Received: "
            f"mechanism={mechanism!r}. Solve for it first, e.g. with solve_noise_multiplier."
        )
    change = sensitivity(relation, sampling, kind=mechanism.kind, left_out=mechanism.sensitivity)
    return Release(
        mechanism.noise_multiplier / change,
        sampling,
        rounds,
        per_round,
        mechanism.kind,
        mechanism.period,
        relation,
    )


def check(release):
    """Refuses a release whose fields contradict each other, or its relation.

    Raises:
        ValueError: So it is.
    """
    _check_sampling(release.sampling)
    if release.kind not in KINDS:
        raise ValueError(f"`kind` must be one of {KINDS}. Received: kind={release.kind!r}")
    _check_relation(release.relation, release.sampling.scheme, release.kind)
    if not 0 <= real(release.noise_multiplier) < math.inf:
        raise ValueError(
            "`noise_multiplier` must be a finite number of at least 0. Received: "
            f"noise_multiplier={release.noise_multiplier!r}"
        )
    integer_from(0, "rounds", release.rounds)
    integer_from(1, "per_round", release.per_round)
    if release.kind == TREE:
        _check_tree(release)


def _check_sampling(sampling):
    scheme, rate, size, population = sampling
    if scheme not in SCHEMES:
        raise ValueError(f"`scheme` must be one of {SCHEMES}. Received: scheme={scheme!r}")
    expected = {POISSON: ("rate",), FIXED_SIZE: ("size", "population"), FULL: ()}[scheme]
    given = tuple(n for n in ("rate", "size", "population") if getattr(sampling, n) is not None)
    if given != expected:
        raise ValueError(
            f"Sampling of scheme {scheme!r} takes {expected or 'nothing else'}. "
            f"Received: {sampling!r}"
        )
    if scheme == POISSON and not 0 <= real(rate) <= 1:
        raise ValueError(f"`rate` must be a probability. Received: rate={rate!r}")
    if scheme == FIXED_SIZE:
        integer_from(0, "size", size)
        integer_from(max(size, 1), "population", population)


def _check_relation(relation, scheme, kind):
    if kind == TREE and scheme != FULL:
        raise ValueError(
            "Tree aggregation is not amplified by sampling; its releases are accounted for with "
            f"Sampling('full'). Received: scheme={scheme!r}"
        )
    which = TREE if kind == TREE else scheme
    allowed = _ALLOWED.get(which, RELATIONS)
    if relation not in allowed:
        raise ValueError(
            f"With {which!r} releases `relation` must be one of {allowed}: no theorem that is used "
            f"here holds for another. Received: relation={relation!r}"
        )


def _check_tree(release):
    if release.period is not None:
        integer_from(1, "period", release.period)
    if release.per_round != 1:
        raise ValueError(
            "A unit may enter a tree once. Received: kind='tree', "
            f"per_round={release.per_round}. Restart the tree each time that a unit may come back."
        )
