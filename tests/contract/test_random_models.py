"""Random models, a round of which is compared with Keras's."""

import hypothesis
import pytest

from tests.contract.random_models import outcome, specifications, tally


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
@hypothesis.settings(
    max_examples=15,
    phases=[hypothesis.Phase.generate],
    suppress_health_check=list(hypothesis.HealthCheck),
)
@hypothesis.given(specifications())
def test_as_keras_or_refused(spec):
    hypothesis.event(outcome(spec))


@pytest.mark.slow
def test_as_keras_or_refused_at_length():
    found = tally(200, seed=1)
    assert not found["wrong"], found["wrong"]
