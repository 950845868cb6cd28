"""From the ledger's entries to what an accountant composes, and to the assumptions in words."""

import itertools
import math

from tffed.mechanism import AVERAGED_WEIGHTS, CLIENT_STEPS, CLIENT_UPDATE, SERVER_SUM
from tffed.privacy.releases import (
    ADD_OR_REMOVE,
    FIXED_SIZE,
    FULL,
    POISSON,
    REPLACE_ONE,
    TREE,
    ZERO_OUT,
    Release,
    Sampling,
    release_of,
)
from tffed.privacy.terms import EVERYONE, SCHEDULE

NEIGHBOURS = {
    ADD_OR_REMOVE: "data sets of which one has one {} more",
    ZERO_OUT: "data sets in one of which one {}'s contribution is zero",
    REPLACE_ONE: "data sets of which one has another {} in the place of one",
}


# From the most to the least that an adversary may see.
_PLACES = (CLIENT_STEPS, CLIENT_UPDATE, SERVER_SUM, AVERAGED_WEIGHTS)
# More combinations than these of kinds of clients are bounded together.
_MOST_ALTERNATIVES = 512


def usual_relation(entries):
    """The neighbouring relation that goes with the sampling scheme of all entries."""
    return ADD_OR_REMOVE if {e.terms.scheme for e in entries if e.rounds} <= {POISSON} else ZERO_OUT


def releases(entries, unit, relation=None, *, believed=False):
    """What the entries released of one unit, for an accountant.

    Args:
        entries: The `Entry`s of a `Ledger`.
        unit: `"client"` or `"example"`. Noise that hides another unit counts as none.
        relation: `"add_or_remove"`, `"zero_out"` or `"replace_one"`; None: the usual one.
        believed: Whether noise from a known seed counts as noise: to plan an experiment.

    Returns:
        A tuple of alternatives, of which the worst holds: each a tuple of
        `tffed.privacy.accounting.Release`, of one kind of client (see `Terms.uses`).

    Raises:
        ValueError: Nothing is known for that relation and an entry's sampling scheme.
    """
    entries = [entry for entry in entries if entry.rounds]
    relation = relation or usual_relation(entries)
    if unit == "example" and relation == ADD_OR_REMOVE:
        raise ValueError(
            "A client's number of examples sets its steps, so it is no secret, and no example can "
            "be added or removed. Received: relation='add_or_remove'. Use 'zero_out'."
        )
    for entry in entries:
        _check_hidden(entry.terms, relation)

    def found(entry, use):
        return _release(entry, use, unit, relation, believed)

    return tuple(
        tuple(found(entry, chosen[entry.terms.uses]) for entry in entries)
        for chosen in _kinds({entry.terms.uses for entry in entries})
    )


def _kinds(uses):
    """For each kind of client, which of the ways to use its examples it has: of each of `uses`.

    Clients of the same data are of one kind throughout; of other data they may be of any.
    """
    uses = sorted(uses)
    if math.prod(len(one) for one in uses) > _MOST_ALTERNATIVES:
        worst = {one: (max(s for s, _ in one), max(r or 1.0 for _, r in one)) for one in uses}
        return [{one: worst[one] if len(one) > 1 else one[0] for one in uses}]
    return [dict(zip(uses, one, strict=True)) for one in itertools.product(*uses)]


def _check_hidden(terms, relation):
    """Checks that a unit may be added or removed without its presence showing anyhow."""
    if relation != ADD_OR_REMOVE or terms.mechanism is None:
        return
    if terms.mechanism.place == CLIENT_UPDATE or not terms.fixed_divisor:
        shows = (
            "who sees the clients' messages counts them"
            if terms.mechanism.place == CLIENT_UPDATE
            else "the sum is divided by the number of clients"
        )
        raise ValueError(
            f"No client can be added or removed unseen where {shows}. Received: "
            "relation='add_or_remove'. Use 'zero_out' (or noise on the sum with "
            "mean('uniform', denominator=…))."
        )


def _release(entry, use, unit, relation, believed):
    terms, mechanism = entry.terms, entry.terms.mechanism
    if mechanism is None or mechanism.unit != unit or terms.fixed_noise and not believed:
        return Release(0.0, Sampling(FULL), entry.rounds, relation=relation)
    rounds = entry.exposure if terms.scheme == SCHEDULE else entry.rounds
    if mechanism.kind == TREE and rounds:  # of a tree that goes on, the leaves before count, too
        rounds += entry.first % mechanism.period
    steps, rate = use
    if rate is not None:  # each step draws anew
        sampling = Sampling(POISSON, rate=rate)
        return release_of(mechanism, sampling, rounds * steps, relation=relation)
    return release_of(mechanism, _sampling(terms), rounds, relation=relation, per_round=steps)


def _sampling(terms):
    if terms.scheme == POISSON:
        return Sampling(POISSON, rate=terms.rate)
    if terms.scheme == FIXED_SIZE:
        return Sampling(FIXED_SIZE, size=terms.size, population=terms.population)
    return Sampling(FULL)


_WHO = {
    CLIENT_STEPS: "anybody who sees a client's update, the server too: the client adds the noise",
    CLIENT_UPDATE: "anybody who sees a client's update, the server too: the client adds the noise",
    SERVER_SUM: "anybody who sees the model after any round; the server itself is trusted",
    AVERAGED_WEIGHTS: "anybody who sees the model after any round; the server itself is trusted",
}


def adversary(entries):
    """Against whom the mechanisms of all entries protect, in words: what the weakest one does."""
    places = {e.terms.mechanism.place for e in entries if e.terms.mechanism is not None}
    return _WHO[max(places, key=_PLACES.index)]


def assumptions(entries, delta):
    """What must hold for the claim to be true, in words, without repetitions."""
    found = [
        "The first weights, and every setting, were chosen without looking at the clients' data; "
        "what the same weights were trained on before is not counted.",
        "Noise is drawn from 32-bit floats by a generator that is not cryptographic; attacks on "
        "the rounding of floats (Mironov 2012) are not covered.",
        "The secret of the noise stays secret for as long as the claim is to hold: it lies in the "
        "run's state and in its checkpoint directory (readable by its owner alone), which must not "
        "be published or copied where others read. A copy that trains on spends privacy of its "
        "own, which this report does not count.",
        "A round that is repeated on the very same things gives the same bits, and counts once: "
        "who sees both learns that nothing has changed.",
    ]
    for terms in (entry.terms for entry in entries):
        if terms.mechanism is None:
            continue
        found += terms.assumed
        if terms.mechanism.unit == "client" and delta >= 1 / terms.population:
            found.append(
                f"NOT MET: δ below 1 / number of clients. With δ = {delta:.3g} the data of one of "
                f"{terms.population} clients may be published whole."
            )
        if terms.scheme == SCHEDULE:
            found.append(
                "Which rounds a client takes part in may be known: no amplification by sampling is "
                "claimed; the client that took part most often counts."
            )
        elif terms.scheme != EVERYONE:
            found.append(
                f"Cohorts are drawn secretly ({terms.scheme}), from the noise's secret: nothing "
                "else tells who took part."
            )
        if terms.mechanism.place in (CLIENT_STEPS, CLIENT_UPDATE):
            found.append(
                "In a simulation the clients' noise comes from one secret seed; a client that is "
                "really apart draws its own."
            )
        if any(rate is not None for _, rate in terms.uses):
            found.append("The examples of each step are drawn secretly, from the noise's seed.")
        if terms.mechanism.unit == "example":
            found.append("A client's number of examples is no secret.")
        if terms.fixed_noise:
            found.append(
                "NOT MET: the noise follows from `noise_seed`. Whoever knows it takes the noise "
                "off, so ε is infinite."
            )
    return list(dict.fromkeys(found))
