"""The books of one `fit`: whom its rounds ask, and what is written before anybody sees them."""

import math

import tensorflow as tf

from tffed import random
from tffed.privacy.ledger import Record
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
        self._before = plan.ledger.exposed(self._terms, self._first, ())

    def check(self, number, rate):
        """Checks that round `number`, of that server rate, may be done, before it is.

        Raises:
            ValueError: Its cohort or its rate is not one that the noise and the budget were meant
                for.
        """
        mechanism, plan = self._terms.mechanism, self._plan
        self._check_rate(rate)
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

    def _check_rate(self, rate):
        planned = self._terms.server_rate
        if planned is None:  # what is noised before the server's step is so at any rate
            return
        most = math.inf if self._plan.budget is None else planned
        if not (0 < rate <= most and rate < math.inf):
            raise ValueError(
                "Expected noise on the averaged weights to cover the server's steps: a positive "
                "learning rate, with a budget at most the one that it was planned with. Received: "
                f"a rate of {rate:.4g}, planned with {planned:.4g}. Compile again with the "
                "largest one, or leave the budget out."
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
