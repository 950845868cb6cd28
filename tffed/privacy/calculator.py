"""Epsilon and noise before there is a run: for planning, and to check what others state."""

from tffed.arguments import plain
from tffed.privacy import accounting, curves
from tffed.privacy.releases import (
    ADD_OR_REMOVE,
    FIXED_SIZE,
    FULL,
    POISSON,
    REPLACE_ONE,
    Release,
    Sampling,
    sensitivity,
)


def epsilon(
    noise_multiplier,
    rounds,
    delta,
    *,
    sampling_rate=None,
    cohort=None,
    population=None,
    accountant=None,
    relation=None,
):
    """Epsilon of noisy sums of clipped vectors, one a round.

    Each vector is clipped to an L2 norm of C; the noise on their sum is N(0, s² I).

        tffed.privacy.epsilon(1.0, 1500, 1 / 3400, sampling_rate=100 / 3400)           # 5.97
        tffed.privacy.epsilon(2.0, 1500, 1 / 3400, cohort=100, population=3400)        # 7.58
        tffed.privacy.epsilon(2.0, 1500, 1 / 3400, cohort=100, population=3400,
                              accountant="rdp")                                        # 13.78

    The last figure is often quoted for s = C. But to replace a client by another one, or to silence
    it, changes the sum of a cohort of fixed size by up to 2 C: where a client is left out, another
    one takes its place. For s = C the two are 45.3 and 142. That 13.78 is no bound there is seen if
    all other updates are -C u for a unit vector u: whether the client's is C u or 0 can be told
    better than (22, 1 / 3400) allows.

    Args:
        noise_multiplier: s / C, whatever the relation.
        rounds: Rounds; without sampling, those in which a unit takes part.
        delta: Of the guarantee; less than 1 / population.
        sampling_rate: Each unit takes part in a round with this probability, by its own coin.
        cohort, population: Or: so many of so many units take part, any subset alike. Without this
            and `sampling_rate`, every unit takes part in every round.
        accountant: `"rdp"`, `"pld"`, or None for the smaller of both.
        relation: Between neighbouring data sets: `"add_or_remove"` (default), `"zero_out"` or
            `"replace_one"` (default with `cohort`).

    Raises:
        ValueError: The arguments contradict each other, or the relation does not go with the
            sampling; see `tffed/privacy/releases.py`.
    """
    plan = _plan(rounds, sampling_rate, cohort, population, relation)
    noise_multiplier, delta = plain(noise_multiplier), plain(delta)
    return accounting.epsilon(plan(noise_multiplier), delta, accountant=accountant)


def noise_multiplier(
    budget_epsilon,
    rounds,
    delta,
    *,
    sampling_rate=None,
    cohort=None,
    population=None,
    accountant=None,
    relation=None,
):
    """The least s / C, to a thousandth and rounded up, within a budget. Arguments as of `epsilon`.

    Raises:
        ValueError: As of `epsilon`; or no noise keeps within the budget.
    """
    plan = _plan(rounds, sampling_rate, cohort, population, relation)
    return curves.solve_noise_multiplier(budget_epsilon, delta, plan, accountant=accountant)


def _plan(rounds, rate, cohort, population, relation):
    """The releases as a function of the noise multiplier."""
    if (cohort is None) != (population is None) or (rate is not None and cohort is not None):
        raise ValueError(
            "Expected `sampling_rate`, or `cohort` and `population`, or none of them. Received: "
            f"sampling_rate={rate}, cohort={cohort}, population={population}"
        )
    rounds, rate, cohort, population = map(plain, (rounds, rate, cohort, population))
    sampling = Sampling(FULL)
    if rate is not None:
        sampling = Sampling(POISSON, rate=rate)
    elif cohort is not None:
        sampling = Sampling(FIXED_SIZE, size=cohort, population=population)
    relation = relation or (REPLACE_ONE if cohort is not None else ADD_OR_REMOVE)
    change = sensitivity(relation, sampling)
    return lambda z: [Release(z / change, sampling, rounds, relation=relation)]
