"""Attacks on what tffed trains: what a privacy claim is worth.

- `audit_clients`, `audit_examples`: canaries planted in one run bound ε from below.
- `audit_fit`: canaries through a whole `Federated.fit`, against what its report claims.
- `one_run`, `from_rates`: the bounds themselves, from counts; `one_shot`: an estimate of ε.
- `loss_threshold`, `lira`: membership inference on the final model.
- `invert`: the examples behind a gradient; `figure` draws them.
"""

from tffed.privacy.audit.bounds import from_rates, normals, one_run, one_shot, p_value
from tffed.privacy.audit.canaries import AuditResult, audit_clients, audit_examples
from tffed.privacy.audit.inversion import dense_input, figure, infer_labels, invert
from tffed.privacy.audit.membership import (
    MembershipResult,
    example_losses,
    from_scores,
    lira,
    loss_threshold,
)
from tffed.privacy.audit.whole import FitAudit, audit_fit, gaussian_epsilon

__all__ = [
    "AuditResult",
    "FitAudit",
    "MembershipResult",
    "audit_clients",
    "audit_examples",
    "audit_fit",
    "dense_input",
    "example_losses",
    "figure",
    "from_rates",
    "from_scores",
    "gaussian_epsilon",
    "infer_labels",
    "invert",
    "lira",
    "loss_threshold",
    "normals",
    "one_run",
    "one_shot",
    "p_value",
]
