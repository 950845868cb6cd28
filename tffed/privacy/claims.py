"""From the ledger's entries to what an accountant composes, and to the assumptions in words."""

from tffed.mechanism import AVERAGED_WEIGHTS, CLIENT_STEPS, CLIENT_UPDATE, SERVER_SUM
from tffed.privacy.releases import (
    ADD_OR_REMOVE,
    FIXED_SIZE,
    FULL,
    POISSON,
    REPLACE_ONE,
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


def usual_relation(entries):
    """The neighbouring relation that goes with the sampling scheme of all entries."""
    return ADD_OR_REMOVE if {e.terms.scheme for e in entries if e.rounds} <= {POISSON} else ZERO_OUT


def releases(entries, unit, relation=None):
    """What the entries released of one unit, for an accountant.

    Args:
        entries: The `Entry`s of a `Ledger`.
        unit: `"client"` or `"example"`. Noise that hides another unit counts as none.
        relation: `"add_or_remove"`, `"zero_out"` or `"replace_one"`; None: the usual one.

    Returns:
        A tuple of `tffed.privacy.accounting.Release`.

    Raises:
        ValueError: Nothing is known for that relation and an entry's sampling scheme.
    """
    relation = relation or usual_relation(entries)
    if unit == "example" and relation == ADD_OR_REMOVE:
        raise ValueError(
            "A client's number of examples sets its steps, so it is no secret, and no example can "
            "be added or removed. Received: relation='add_or_remove'. Use 'zero_out'."
        )
    return tuple(_release(entry, unit, relation) for entry in entries if entry.rounds)


def _release(entry, unit, relation):
    terms, mechanism = entry.terms, entry.terms.mechanism
    if mechanism is None or mechanism.unit != unit:
        return Release(0.0, Sampling(FULL), entry.rounds, relation=relation)
    rounds = entry.exposure if terms.scheme == SCHEDULE else entry.rounds
    if terms.example_rate is not None:  # each step draws anew
        steps = rounds * terms.per_round
        return release_of(
            mechanism, Sampling(POISSON, rate=terms.example_rate), steps, relation=relation
        )
    return release_of(
        mechanism, _sampling(terms), rounds, relation=relation, per_round=terms.per_round
    )


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


def adversary(mechanism):
    """Against whom a mechanism protects, in words."""
    return _WHO[mechanism.place]


def assumptions(entries):
    """What must hold for the claim to be true, in words, without repetitions."""
    found = [
        "The first weights, and every setting, were chosen without looking at the clients' data.",
        "Noise is drawn from 32-bit floats by a generator that is not cryptographic; attacks on "
        "the rounding of floats (Mironov 2012) are not covered.",
        "A run that was killed repeats the rounds since its last checkpoint with the same noise: "
        "what it had shown of them must not be kept where data or settings have changed since.",
    ]
    for terms in (entry.terms for entry in entries):
        if terms.mechanism is None:
            continue
        if terms.scheme == SCHEDULE:
            found.append(
                "Which rounds a client takes part in may be known: no amplification by sampling is "
                "claimed; the client that took part most often counts."
            )
        elif terms.scheme != EVERYONE:
            found.append(
                f"Cohorts are drawn secretly ({terms.scheme}): who knows the seed of the run knows "
                "them, and the amplification is lost."
            )
        if terms.mechanism.place in (CLIENT_STEPS, CLIENT_UPDATE):
            found.append(
                "In a simulation the clients' noise comes from one secret seed; a client that is "
                "really apart draws its own."
            )
        if terms.example_rate is not None:
            found.append("The examples of each step are drawn secretly, from the noise's seed.")
        if terms.mechanism.unit == "example":
            found.append("A client's number of examples is no secret.")
        if terms.fixed_noise:
            found.append(
                "NOT MET: the noise follows from `noise_seed`. Whoever knows it takes the noise "
                "off; the figures are those of a run without it."
            )
    return list(dict.fromkeys(found))
