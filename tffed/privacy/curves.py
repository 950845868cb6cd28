"""Accounting turned round: the noise for a budget, the rounds that fit, epsilon round by round."""

import math

import numpy as np

from tffed.arguments import real
from tffed.privacy import accounting
from tffed.privacy.accounting import epsilon

_PRECISION = 1e-3
_MOST_NOISE = 1e6


def solve_noise_multiplier(budget_epsilon, delta, make_releases, *, accountant=None):
    """The smallest noise multiplier that keeps within a budget, to a thousandth, rounded up.

    Args:
        budget_epsilon: The epsilon that must not be exceeded.
        delta: The delta of the budget.
        make_releases: A function of a noise multiplier that gives all releases of the plan, with
            those already spent.
        accountant: See `account`.

    Returns:
        z with epsilon(make_releases(z), delta) <= budget_epsilon, which z / 1.001 exceeds; 0.0 if
        the plan needs no noise.

    Raises:
        ValueError: No noise is enough, e.g. because the budget is spent already.
    """
    _check_budget(budget_epsilon)

    def spent(multiplier):
        return epsilon(make_releases(multiplier), delta, accountant=accountant)

    if spent(0.0) <= budget_epsilon:
        return 0.0
    least = spent(_MOST_NOISE)
    if least > budget_epsilon:
        raise ValueError(
            f"Expected a budget that some noise keeps to; even a noise multiplier of "
            f"{_MOST_NOISE:g} spends epsilon={least:.4g} at delta={delta:g}. Received: "
            f"budget_epsilon={budget_epsilon}. What was spent already counts; raise the budget."
        )
    low = high = 1.0
    while spent(high) > budget_epsilon:
        low, high = high, 2 * high
    while spent(low) <= budget_epsilon:
        low, high = low / 2, low
    return _root(spent, budget_epsilon, low, high)


def _root(spent, budget, low, high):
    """The least z in (low, high] with spent(z) <= budget, rounded up; sought in log z."""
    from scipy import optimize

    def excess(log_z):  # In [-1, 1], also where nothing or everything is spent.
        return 1 - 2 * budget / (spent(math.exp(log_z)) + budget)

    root = optimize.brentq(excess, math.log(low), math.log(high), xtol=_PRECISION / 5)
    # The root is known to a fifth: two fifths above it the budget holds, three below it does not.
    multiplier = math.exp(root + 0.4 * _PRECISION)
    return multiplier if spent(multiplier) <= budget else high


def rounds_within(
    budget_epsilon, delta, spent_releases, release_of_n_rounds, most, accountant=None
):
    """How many more rounds fit a budget.

    Args:
        budget_epsilon, delta, accountant: See `solve_noise_multiplier`.
        spent_releases: The releases made so far.
        release_of_n_rounds: A function of a number of rounds that gives their releases, a sequence.
        most: No more rounds than this are asked for.

    Returns:
        The largest n in [0, most] within the budget; 0 too if it is exceeded already.
    """
    _check_budget(budget_epsilon)

    def fits(rounds):
        releases = (*spent_releases, *release_of_n_rounds(rounds))
        return epsilon(releases, delta, accountant=accountant) <= budget_epsilon

    if fits(most):
        return most
    inside, outside = 0, most
    while outside - inside > 1:
        middle = (inside + outside) // 2
        inside, outside = (middle, outside) if fits(middle) else (inside, middle)
    return inside


def epsilon_by_round(releases_after, total, delta, accountant=None, points=30):
    """How epsilon grew.

    Args:
        releases_after: `(rounds) -> ` all releases after so many rounds.
        total: The number of rounds.
        delta, accountant: See `account`; None: the accountant that is the better one at the end is
            used throughout.
        points: At how many rounds, evenly spread; the last round is one of them.

    Returns:
        `(rounds, epsilons)`: arrays of shape (points,), or as many as there are rounds.
    """
    rounds = np.unique(np.linspace(min(1, total), total, points).round().astype(int))
    whole = tuple(releases_after(total))
    end = accounting.account(whole, delta, accountant)
    by_rdp = accounting.account(whole, delta, "rdp").epsilon
    grid = accounting.interval(by_rdp) if math.isfinite(by_rdp) else None
    epsilons = [
        accounting.account(releases_after(int(n)), delta, end.accountant, grid).epsilon
        for n in rounds
    ]
    return rounds, np.array(epsilons)


def _check_budget(budget):
    if not 0 < real(budget) < math.inf:
        raise ValueError(
            f"`budget_epsilon` must be a finite number above 0. Received: budget_epsilon={budget!r}"
        )
