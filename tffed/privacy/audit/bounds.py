"""Lower bounds on ε from how often an attacker guesses right, and one estimate of ε.

All are of NumPy and SciPy alone. A *bound* is wrong with a probability of at most 1 - confidence,
whatever the mechanism; an *estimate* promises nothing of the kind.
"""

import numpy as np

from tffed.extras import require

_LARGEST, _HALVINGS = 50.0, 36


def one_run(canaries, guesses, correct, delta=0.0, confidence=0.95, test="tradeoff"):
    """The ε that one run with many canaries refutes (Steinke, Nasr & Jagielski 2023).

    Each of m canaries is included by a fair coin. The attacker sees what the mechanism released,
    guesses r coins, a number chosen beforehand, abstains from the others, and has v right. Returns
    the largest ε at which v or more right guesses have a probability of at most 1 - confidence
    under every (ε, δ)-DP mechanism, for neighbours that differ by adding or removing one canary.

    Args:
        canaries: The number m.
        guesses: The number r.
        correct: The number v.
        delta: The δ of the claim.
        confidence: Probability with which the bound holds.
        test: `"tradeoff"`, the test of Mahloujifar, Melis & Chaudhuri 2024 for the trade-off curve
            of (ε, δ)-DP, which loses little where δ·m is large; or `"steinke"`, Theorem 5.2.

    Returns:
        The bound, at least 0.

    Raises:
        ImportError: `test` is "steinke" and SciPy is not installed.
        ValueError: The numbers are not those of guesses, or `test` is neither.
    """
    _check_counts(canaries, guesses, correct)
    _check_probabilities(delta, confidence)
    if test not in _TESTS:
        raise ValueError(f"`test` must be one of {tuple(_TESTS)}. Received: test={test!r}")
    refutes = _TESTS[test]
    return _largest(
        lambda epsilon: refutes(canaries, guesses, correct, epsilon, delta, 1 - confidence)
    )


def p_value(canaries, guesses, correct, epsilon, delta=0.0):
    """The most probable that so many right guesses can be under (ε, δ)-DP, by Theorem 5.2.

    With W ~ Binomial(r, e^ε / (1 + e^ε)): P[W ≥ v] + 2 m δ max_i P[v > W ≥ v - i] / i, over
    i = 1 … v; at δ = 0 the first term alone (Steinke, Nasr & Jagielski 2023).

    Args:
        canaries: The number m of canaries.
        guesses: The number r of guesses.
        correct: The number v of right ones.
        epsilon: The ε of the claim.
        delta: The δ of the claim.

    Raises:
        ImportError: SciPy is not installed.
        ValueError: The numbers are not those of guesses.
    """
    _check_counts(canaries, guesses, correct)
    right = _stats().binom(guesses, 1 / (1 + np.exp(-epsilon)))
    steps = np.arange(1, correct + 1)
    below = np.cumsum(right.pmf(correct - steps)) / steps
    return min(1.0, right.sf(correct - 1) + 2 * canaries * delta * below.max(initial=0.0))


def from_rates(tp, n_pos, fp, n_neg, delta=0.0, confidence=0.95):
    """The ε that many runs of a test refute (Jagielski, Ullman & Oprea 2020).

    In each run a canary is there or not, independently, and a fixed test says which. (ε, δ)-DP has
    TPR ≤ e^ε FPR + δ and TNR ≤ e^ε FNR + δ; in them stand the Clopper-Pearson bounds of the
    rates, one-sided, each at (1 - confidence) / 2.

    Args:
        tp: Runs with the canary in which the test said so.
        n_pos: Runs with the canary.
        fp: Runs without it in which the test said it was there.
        n_neg: Runs without it.
        delta: The δ of the claim.
        confidence: Probability with which the bound holds.

    Returns:
        The bound, at least 0.

    Raises:
        ImportError: SciPy is not installed.
        ValueError: The numbers are not those of such runs.
    """
    for name, part, whole in (("tp", tp, n_pos), ("fp", fp, n_neg)):
        if not 0 <= part <= whole or whole < 1:
            raise ValueError(
                f"Expected `{name}` of at least 0 and at most its number of runs, of which there "
                f"is at least one. Received: {name}={part} of {whole}."
            )
    _check_probabilities(delta, confidence)
    risk, beta = (1 - confidence) / 2, _stats().beta
    tpr = beta.ppf(risk, tp, n_pos - tp + 1) if tp else 0.0
    fpr = beta.ppf(1 - risk, fp + 1, n_neg - fp) if fp < n_neg else 1.0
    pairs = ((tpr - delta, fpr), (1 - fpr - delta, 1 - tpr))
    return max([0.0, *(float(np.log(high / low)) for high, low in pairs if high > 0)])


def one_shot(cosines, dimension, delta):
    """Andrew et al. 2023's estimate of ε from one run; no bound, and with no confidence level.

    Canary clients send random directions. The cosine of the released update, or of the change of
    the model, with a direction that no client sent is about N(0, 1/d) in d dimensions; with those
    sent, N(μ, σ²) is fitted. The estimate is the ε at which these two normal distributions are
    (ε, δ)-indistinguishable.

    Args:
        cosines: Those of the canaries that were included, `[k]`, k ≥ 2.
        dimension: The number d of parameters.
        delta: The δ of the estimate, in (0, 1).

    Raises:
        ImportError: SciPy is not installed.
        ValueError: There are fewer than two cosines, or δ is not in (0, 1).
    """
    cosines = np.asarray(cosines, np.float64)
    if cosines.ndim != 1 or len(cosines) < 2:
        raise ValueError(
            "Expected a vector of the cosines of at least two canaries. Received: an array of "
            f"shape {cosines.shape}."
        )
    with_canary = (cosines.mean(), cosines.std(ddof=1))
    return normals(with_canary, (0.0, dimension**-0.5), delta)


def normals(first, second, delta):
    """The ε at which two normal distributions on a line are (ε, δ)-indistinguishable.

    The smallest ε ≥ 0 with δ(P, Q) ≤ δ and δ(Q, P) ≤ δ, where
    δ(P, Q) = ∫ max(0, p(x) - e^ε q(x)) dx.

    Args:
        first: `(mean, standard deviation)` of the one.
        second: Those of the other.
        delta: In (0, 1).

    Raises:
        ImportError: SciPy is not installed.
        ValueError: A deviation is not positive, or δ not in (0, 1).
    """
    if not (first[1] > 0 and second[1] > 0 and 0 < delta < 1):
        raise ValueError(
            "Expected positive standard deviations and a δ in (0, 1). Received: "
            f"{first[1]} and {second[1]}, delta={delta}"
        )
    return _largest(
        lambda epsilon: max(_excess(first, second, epsilon), _excess(second, first, epsilon))
        > delta
    )


def _excess(p, q, epsilon):
    """∫ max(0, p - e^ε q): log(p / q) is a parabola, so that p > e^ε q between or outside roots."""
    (mean_p, std_p), (mean_q, std_q) = p, q
    line = np.polynomial.Polynomial
    loss = line((-mean_q, 1.0)) ** 2 / (2 * std_q**2) - line((-mean_p, 1.0)) ** 2 / (2 * std_p**2)
    loss += np.log(std_q / std_p) - epsilon
    roots = loss.trim().roots()
    edges = np.array([-np.inf, *np.sort(roots[np.isreal(roots)].real), np.inf])
    excess = _masses(edges, mean_p, std_p) - np.exp(epsilon) * _masses(edges, mean_q, std_q)
    return np.maximum(excess, 0.0).sum()  # p - e^ε q has one sign between two roots


def _masses(edges, mean, deviation):
    """Of a normal distribution between edges, from the nearer tail: e^ε magnifies small ones."""
    cdf, z = _stats().norm.cdf, (edges - mean) / deviation
    return np.where(z[:-1] > 0, cdf(-z[:-1]) - cdf(-z[1:]), cdf(z[1:]) - cdf(z[:-1]))


def _steinke_refutes(canaries, guesses, correct, epsilon, delta, risk):
    return p_value(canaries, guesses, correct, epsilon, delta) <= risk


def _tradeoff_refutes(canaries, guesses, correct, epsilon, delta, risk):
    """Whether P[at least v right] = risk contradicts (ε, δ)-DP (Mahloujifar et al. 2024).

    Let p_i be the probability of exactly i right guesses, right_i = Σ_{j ≥ i} j p_j / m and
    wrong_i = Σ_{j ≥ i} (r - j) p_j / m. Changing one coin gives right_{i+1} ≤ δ + e^ε wrong_i. From
    p_v = risk the least masses below v follow in turn; if they and v's are more than all, v is not
    that probable.
    """
    growth = np.exp(epsilon)
    right = risk * correct / canaries
    wrong = risk * (guesses - correct) / canaries
    for i in range(correct - 1, -1, -1):
        least = max(wrong, (right - delta) / growth)
        right += i / (guesses - i) * (least - wrong)
        wrong = least
        if right + wrong > guesses / canaries:
            return True
    return False


_TESTS = {"tradeoff": _tradeoff_refutes, "steinke": _steinke_refutes}


def _stats():
    return require("scipy.stats", "data")


def _largest(refuted):
    """The largest ε that is refuted, by bisection; 0 if not even that is."""
    low, high = 0.0, _LARGEST
    if not refuted(low):
        return low
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low


def _check_counts(canaries, guesses, correct):
    if not 0 <= correct <= guesses <= canaries or canaries < 1:
        raise ValueError(
            "Expected 0 <= correct <= guesses <= canaries, and a canary. Received: "
            f"correct={correct}, guesses={guesses}, canaries={canaries}."
        )


def _check_probabilities(delta, confidence):
    if not 0 <= delta < 1 or not 0 < confidence < 1:
        raise ValueError(
            "Expected `delta` in [0, 1) and `confidence` in (0, 1). Received: "
            f"delta={delta}, confidence={confidence}."
        )
