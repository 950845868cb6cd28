"""FedOpt (Reddi et al. 2021, arXiv:2003.00295)."""

from tffed.algorithm import Recipe
from tffed.algorithms.arguments import check_local_work, uses
from tffed.algorithms.fed_avg import averaging


def fed_opt(local_epochs=None, *, local_steps=None, batch_size=None) -> Recipe:
    """Federated averaging with an adaptive server: FedAvgM, FedAdagrad, FedAdam, FedYogi.

    The clients work as in `fed_avg`; the server takes the negative mean update as the gradient of
    its own optimizer: w ← step(w, -mean update). With `SGD(1.0)` it is `fed_avg`. In a round
    without clients the mean is zero, and the optimizer still steps: its momentum goes on.

    The paper uses no bias correction, v₋₁ = ε² and ε = 1e-3 or so; Keras's Adam corrects the bias,
    so its first steps are smaller but for the smallest gradients (of |g| near ε or below).
    `tffed.Yogi` follows the paper.

    Args:
        local_epochs: As in `fed_avg`.
        local_steps: As in `fed_avg`.
        batch_size: As in `fed_avg`.

    Raises:
        ValueError: An argument of `fed_avg` is wrong.
    """
    work = check_local_work(local_epochs, local_steps, batch_size)
    return Recipe(
        "fed_opt",
        lambda *parts: averaging("fed_opt", *parts, **work),
        work,
        needs_server_optimizer=True,
        uses=uses(work),
    )
