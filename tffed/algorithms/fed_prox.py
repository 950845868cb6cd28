"""FedProx (Li et al. 2020, arXiv:1812.06127)."""

from tffed.algorithm import Recipe
from tffed.algorithms.arguments import check_local_work, uses
from tffed.algorithms.fed_avg import averaging
from tffed.arguments import not_negative


def fed_prox(mu, local_epochs=None, *, local_steps=None, batch_size=None) -> Recipe:
    """Federated averaging with a proximal term that holds clients near the global weights.

    Client k minimises loss(v) + (mu / 2) ‖v - w‖², so each local step uses the gradient
    ∇ loss(v) + mu (v - w). With mu = 0 it is `fed_avg`, bit for bit.

    Args:
        mu: Strength of the proximal term, at least 0.
        local_epochs: As in `fed_avg`.
        local_steps: As in `fed_avg`.
        batch_size: As in `fed_avg`.

    Raises:
        ValueError: `mu` is negative, or an argument of `fed_avg` is wrong.
    """
    mu = not_negative("mu", mu)
    work = check_local_work(local_epochs, local_steps, batch_size)

    def correct(grads, weights, initial, extra):
        del extra
        return tuple(g + mu * (v - w) for g, v, w in zip(grads, weights, initial, strict=True))

    return Recipe(
        "fed_prox",
        lambda *parts: averaging("fed_prox", *parts, **work, correct=correct),
        {"mu": mu, **work},
        uses=uses(work),
    )
