"""Differential privacy: noise in four places, accounted for what was done, and attacked.

Each mechanism is one argument away:

| noise | hides | you write |
|---|---|---|
| in the clients' steps | an example | `compile(privacy=dp_sgd(clip, noise_multiplier))` |
| on a client's update | a client, even from the server | `chain(local_gaussian(…), …)` |
| on the server's sum | a client | `chain(gaussian(…), mean("uniform"))` |
| the same, with a norm that adapts | a client | `adaptive_gaussian(…)` |
| the same, correlated over rounds | a client | `tree_gaussian(…)` (DP-FTRL) |
| on the averaged weights | a client | `chain(clip(…), weight_noise(…), mean("uniform"))` |

`fit(…, privacy=Budget(epsilon, delta))` sets the noise; `privacy_report()` says what may be
claimed.
"""

import importlib

_HOMES = {
    "tffed.mechanism": ("Mechanism",),
    "tffed.privacy.accounting": ("account",),
    "tffed.privacy.budget": ("Budget",),
    "tffed.privacy.calculator": ("epsilon", "noise_multiplier"),
    "tffed.privacy.example_level": ("ExampleLevel", "dp_sgd", "private_gradients"),
    "tffed.privacy.ledger": ("Ledger",),
    "tffed.privacy.releases": ("Release", "Sampling", "release_of"),
    "tffed.privacy.report": ("PrivacyReport",),
    "tffed.privacy.stages": (
        *("adaptive_gaussian", "gaussian", "local_gaussian", "tree_gaussian", "weight_noise"),
    ),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted([*_HOME_OF, "audit"])


def __getattr__(name):
    """Loads a public name when it is first used."""
    if name == "audit":
        return importlib.import_module("tffed.privacy.audit")
    if name not in _HOME_OF:
        raise AttributeError(f"module 'tffed.privacy' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME_OF[name]), name)


def __dir__():
    return __all__
