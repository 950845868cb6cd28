"""Every model of the zoo trains on every path as separately trained Keras models do."""

import pytest

from tests.contract.models import CASES
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
            slow = case.slow or path not in ("default", "graph", *case.also)
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


def test_there_are_enough_cases():
    assert len(CASES) >= 60
