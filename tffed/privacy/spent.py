"""Which models were trained with privacy before, by a `Federated` whose books are its own."""

import warnings
import weakref

_LEDGERS = weakref.WeakKeyDictionary()


def mark(model, ledger):
    """Takes note that rounds of a model are written to a ledger; warns if others are elsewhere."""
    before = _LEDGERS.get(model)
    if before is not None and before is not ledger and before.rounds:
        warnings.warn(
            f"This model was trained for {before.rounds} rounds by another Federated, and what "
            "those released is in its ledger, not in this one: the report and the budget here do "
            "not count them. Go on with that Federated, or begin with keras.models.clone_model.",
            stacklevel=4,
        )
    _LEDGERS[model] = ledger
