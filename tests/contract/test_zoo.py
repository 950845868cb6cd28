"""Every model of the zoo trains on every path as separately trained Keras models do."""

import pytest

from tests.contract.models import CASES, QUICK
from tests.contract.witness import LEAST, compare, federated

PATHS = {
    "default": {},
    "graph": {"jit_compile": False},
    "processes": {"processes": True, "lanes": 2},
    "payloads": {"payloads": True},
    "batched": {"batched": True},
}


def _runs():
    for case in CASES.values():
        for path in PATHS:
            if case.refused and path != "default":
                continue
            quick = ("default", *QUICK.get(case.name, ())) if case.name in QUICK else ()
            slow = not case.refused and path not in quick
            yield pytest.param(
                case.name, path, id=f"{case.name}-{path}", marks=[pytest.mark.slow] * slow
            )


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
@pytest.mark.parametrize(("name", "path"), _runs())
def test_as_keras(name, path):
    case = CASES[name]
    if case.refused:
        with pytest.raises(ValueError, match=case.refused):
            federated(case.make())
    else:
        expected = compare(case.make, by_client=path == "default", **PATHS[path])
        assert expected.moved > LEAST, "a model that hardly moves shows nothing"


# Where clients send gradients: the default run takes these, the slow one the others, too.
GRADIENTS = ("activity_regularizer", "counter_of_calls", "weights_without_gradient_sgd")
MORE_GRADIENTS = (
    "sample_weights_in_a_column",
    "class_weights",
    "ignored_class_255",
    "constraint_max_norm",
    "batch_normalisation",
    "statistic_assigned_in_a_call",
    "loss_added_in_a_call",
    "mask_zero_of_a_sequence_loss",
    "embedding_with_plain_sgd",
)


def _gradients(name):
    compare(lambda: CASES[name].make()._replace(gradients=True))


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_as_keras(name):
    _gradients(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE_GRADIENTS)
def test_more_gradients_as_keras(name):
    _gradients(name)


def test_gradients_refuse_weights_assigned_in_a_call():
    with pytest.raises(ValueError, match="assigns"):
        federated(CASES["spectral_normalisation"].make()._replace(gradients=True))


def test_there_are_enough_cases():
    assert len(CASES) >= 60 and set(QUICK) <= set(CASES)
