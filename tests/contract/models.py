"""The zoo: all cases, by name."""

from tests.contract.case import CASES
from tests.contract.zoo import (  # noqa: F401  (each registers its cases)
    dense,
    images,
    losses,
    optimizers,
    refused,
    sequences,
    state,
    structure,
)

__all__ = ["CASES"]
