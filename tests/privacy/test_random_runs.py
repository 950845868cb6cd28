"""Of random private runs with interruptions: no claim is smaller than a recount from outside."""

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from tests.helpers import needs_tf_privacy
from tests.privacy import random_runs

pytest.importorskip("dp_accounting")
pytestmark = needs_tf_privacy


@settings(
    max_examples=5,
    deadline=None,
    database=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(random_runs.runs())
def test_claims_are_at_least_what_was_seen(example):
    random_runs.check(example)
