"""The books of one `fit`: whom its rounds ask, and what is written before anybody sees them."""

import tensorflow as tf

from tffed import random
from tffed.privacy.accounting import account
from tffed.privacy.claims import releases
from tffed.privacy.ledger import Entry, Record
from tffed.privacy.releases import TREE
from tffed.privacy.terms import AMPLIFIED, SCHEDULE
from tffed.training import Cohorts


class Accounts:
    """Draws the cohorts of a `fit` and writes its rounds into the ledger.

    Cohorts on whose secrecy the claim rests follow from the secret of the noise, all others from
    the seed of the run.

    Args:
        plan: The `tffed.fitting.Plan`.
        state: The `ServerState` that it begins with.

    Attributes:
        cohorts: The `tffed.training.Cohorts`.
    """

    def __init__(self, plan, state):
        self._plan, self._terms = plan, plan.terms
        if tf.is_tensor(state.noise) and random.known(state.noise):  # as a state may be put in
            self._terms = self._terms._replace(fixed_noise=True)
        self._first = int(state.round)
        secret = plan.terms.scheme in AMPLIFIED and not random.known(state.noise)
        seed = random.cohort_seed(state.noise) if secret else plan.seed
        self.cohorts = Cohorts(plan.clients, plan.sampler, seed)
        self._dearer = False
        self._before = plan.ledger.exposed(self._terms, self._first, ())

    def check(self, state):
        """Checks that the round that begins with `state` may be done, before it is.

        Raises:
            ValueError: Its cohort, or the server's rate, is not one that the noise and the budget
                were meant for.
        """
        number, mechanism, plan = int(state.round), self._terms.mechanism, self._plan
        self._check_rate(number, float(state.optimizer.learning_rate))
        if mechanism is not None and mechanism.kind == TREE:
            plan.ledger.check_tree(mechanism.period, number, self.cohorts.of(number))
        if plan.exposures is None:
            return
        planned = self._before + plan.exposures[number - self._first + 1]
        found = plan.ledger.exposed(self._terms, number, self.cohorts.of(number))
        if found > planned:
            raise ValueError(
                f"Expected the sampler to draw the cohorts that the budget was planned with, in "
                f"which no client takes part more than {planned} times up to round {number + 1}. "
                f"Received: one that does {found} times, from {plan.sampler!r}. A sampler's draws "
                "must follow from the clients, the seed and the round alone."
            )

    def _check_rate(self, number, rate):
        """Checks that noise on the weights keeps to the budget, at the rate of a round's step."""
        if self._terms.server_rate is None:
            return
        terms, budget = self._terms.at(rate), self._plan.budget
        self._dearer |= rate > self._terms.server_rate
        if budget is None or not self._dearer:
            return
        entries = [*self._plan.ledger.entries, Entry(terms, 1, 1, 0, number)]
        after = releases(entries, terms.mechanism.unit, budget.relation, believed=True)
        if (cost := account(after, budget.delta).epsilon) > budget.epsilon:
            raise ValueError(
                f"Expected a server's learning rate of {self._terms.server_rate:.6g}, with which "
                f"{budget} was planned. Received: {rate:.6g} in round {number + 1} or before, with "
                f"which this round would come to epsilon={cost:.3g}: noise on the weights hides "
                "less of larger steps. Begin with the largest rate, or give more noise."
            )

    def write(self, state, number, dropped, release):
        """Writes what round `number` has released, with `state` after it."""
        terms = self._terms
        if terms.mechanism is not None:
            terms = terms.at(float(state.optimizer.learning_rate))
        counted = terms.scheme == SCHEDULE or (
            terms.mechanism is not None and terms.mechanism.kind == TREE
        )
        cohort = tuple(self.cohorts.of(number)) if counted else ()
        record = Record(terms, number, cohort, int(dropped), release)
        self._plan.ledger.record(record)
        if release is not None:
            self._plan.files.note(record)
