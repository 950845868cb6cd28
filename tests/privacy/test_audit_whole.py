"""The audit of `fit` from end to end: honest runs pass, sabotaged ones are refuted."""

import keras
import numpy as np
import pytest
from scipy import stats

import tffed
from experiments import whole_audit
from tests.helpers import needs_tf_privacy
from tffed.privacy import audit, gaussian
from tffed.privacy.audit import whole

pytestmark = needs_tf_privacy


@pytest.mark.parametrize("delta", [1e-9, 1e-5, 0.01])
def test_the_epsilon_of_mu_is_that_of_dp_accounting(delta):
    losses = pytest.importorskip("dp_accounting.pld.privacy_loss_mechanism")
    for mu in (0.05, 0.3, 1.0, 2.5, 9.0):
        found = audit.gaussian_epsilon(mu, delta)
        gaussian = losses.GaussianPrivacyLoss(1 / mu)
        assert gaussian.get_delta_for_epsilon(found) == pytest.approx(delta, rel=1e-5)
    assert audit.gaussian_epsilon(0.0, delta) == audit.gaussian_epsilon(-1.0, delta) == 0
    # Of noise that is next to none: ε = μ²/2 + O(μ).
    assert audit.gaussian_epsilon(1e6, delta) == pytest.approx(5e11, rel=1e-4)


def samples(mu, number, rng):
    return rng.normal(mu, 1, number // 2), rng.normal(0, 1, number // 2)


def test_the_limit_of_mu_is_that_of_the_noncentral_t():
    rng = np.random.default_rng(0)
    for mu in (0.5, 2.0):
        found, lower = whole.effect(*samples(mu, 600, rng), 0.99)
        # The μ at which a t statistic as large as this one has a probability of 1 %.
        root = np.sqrt(150)
        assert stats.nct.sf(found * root, 598, lower * root) == pytest.approx(0.01, abs=0.002)


@pytest.mark.parametrize("mu", [1.0, 1.25, 1.4])
def test_power_is_how_often_it_refutes(mu):
    rng = np.random.default_rng(1)
    refuted = [whole.effect(*samples(mu, 600, rng), 0.995)[1] > 1.0 for _ in range(2000)]
    expected = whole.power(mu, 1.0, 600, 0.99)
    assert np.mean(refuted) == pytest.approx(expected, abs=0.03)
    assert expected < 0.006 if mu == 1 else expected > 0.4


def test_a_canary_moves_its_weight_by_the_clip_and_no_other(tmp_path):
    signs = np.array([1.0, 0.0, -1.0, 0.0, 0.0, 1.0])

    def prepare(fed, cohort):
        noise = tffed.chain(gaussian(0.5, 0.0), tffed.mean("uniform"))
        fed.compile(keras.optimizers.SGD(1.0), loss="mae", aggregator=noise, jit_compile=False)

    clients = whole._clients(signs, "client", 2, 3)
    moves, report = whole._Run(prepare, clients, 3, 9, 2, tmp_path).released(4, 1e-5)
    expected = np.zeros((4, 9))
    for number in range(4):
        here = slice(3 * (number % 2), 3 * (number % 2) + 3)
        expected[number, here] = 0.5 / 3 * signs[here]
    np.testing.assert_allclose(moves, expected, atol=1e-7)
    assert report.rounds == 4 and report.epsilon == np.inf


def test_what_rounds_share_is_taken_off_and_what_they_do_not_stays():
    rng = np.random.default_rng(2)
    noise, own = rng.normal(size=(2, 500))
    took_part = np.zeros((2, 300), bool)
    took_part[0, :150] = took_part[1, 150:] = True
    shared = whole._scores(np.stack([noise, noise]), took_part)
    np.testing.assert_allclose(shared, 0, atol=1e-12)
    apart = whole._scores(np.stack([noise, own]), took_part)
    assert np.corrcoef(apart, np.r_[noise[:150], own[150:300]])[0, 1] > 0.97


# Secrets follow from the tests' names, so that what passes once passes always.
@pytest.mark.parametrize(
    ("name", "sabotage", "options"),
    [
        ("noise on the sum", None, {"canaries": 400}),
        ("noise in the steps", None, {}),
        ("noise on the weights", "reused noise", {"canaries": 300}),
        ("noise in the steps", "doubled clip", {"canaries": 300}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_sabotage_is_refuted_and_honesty_is_not(name, sabotage, options):
    found = whole_audit.audit(name, sabotage, **options)
    honest = audit.gaussian_epsilon(2.0, 1e-5)  # four rounds of multiplier 1
    assert found.claimed_epsilon == pytest.approx(honest, rel=1e-3)
    assert found.rounds == 8
    assert found.refuted == (sabotage is not None), str(found)
    if sabotage is None:
        assert abs(found.mu - 2.0) < 0.5 and found.any_mechanism.epsilon_lower > 1


def test_refuses_what_cannot_be_divided():
    with pytest.raises(ValueError, match="canaries that `turns` divides.*canaries=5"):
        audit.audit_fit(lambda fed, cohort: None, canaries=5)
