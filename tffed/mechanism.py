"""What a noisy release is, in numbers: all that accounting needs to know of it."""

from typing import NamedTuple

CLIENT_STEPS, CLIENT_UPDATE = "client steps", "client update"
SERVER_SUM, AVERAGED_WEIGHTS = "server sum", "averaged weights"


class Mechanism(NamedTuple):
    """A noisy release that protects one unit: a client, or an example of a client.

    The unit's contribution is clipped to an L2 norm of `clip`; the noise is N(0, s² I) with
    s = noise_multiplier · clip.

    Attributes:
        place: `CLIENT_STEPS`, `CLIENT_UPDATE`, `SERVER_SUM` or `AVERAGED_WEIGHTS`.
        unit: `"client"` or `"example"`: whose contribution is hidden.
        clip: The norm C of the contribution; the first one, if it adapts.
        noise_multiplier: s / C, of all that is released together; None: a budget will say.
        stddev: On the averaged weights, s itself; `noise_multiplier` follows from it, the cohort
            and the server's step.
        sensitivity: The most that leaving one unit out changes the sum by, over C. It is 1, or 2
            where C bounds the mean gradient of a microbatch of several examples.
        kind: `"gaussian"`: fresh noise in each release. `"tree"`: noise correlated over rounds
            (DP-FTRL).
        sampled: Whether a step in the clients draws its examples, each by a secret coin of its own.
        period: Rounds from one restart of a tree to the next.
        name: In words, for reports.
    """

    place: str
    unit: str
    clip: float | None
    noise_multiplier: float | None
    stddev: float | None = None
    sensitivity: float = 1.0
    kind: str = "gaussian"
    sampled: bool = False
    period: int | None = None
    name: str = "Gaussian mechanism"
