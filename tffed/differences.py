"""In what two identities of runs differ, for messages."""

import json

_SHOWN = 8  # differences that a message names


def differences(found, expected):
    """In what two identities differ: `["loss: 'mse' in the checkpoint, 'mae' here", …]`."""
    lines = list(_compare("", found, expected))
    more = len(lines) - _SHOWN
    return lines[:_SHOWN] + ([f"and {more} more"] if more > 0 else [])


def _compare(path, found, expected):
    if isinstance(found, dict) and isinstance(expected, dict):
        if path and "class" in found and found["class"] == expected.get("class"):
            path = f"{path} ({found['class']})"
        for key in [*expected, *(k for k in found if k not in expected)]:
            place = f"{path}.{key}" if path else key
            yield from _compare(place, found.get(key, _NONE), expected.get(key, _NONE))
    elif isinstance(found, list) and isinstance(expected, list) and len(found) == len(expected):
        for k, (a, b) in enumerate(zip(found, expected, strict=True)):
            yield from _compare(f"{path}[{k}]", a, b)
    elif json.dumps(found, default=repr) != json.dumps(expected, default=repr):  # NaN equals NaN
        yield f"{path}: {_shown(found)} in the checkpoint, {_shown(expected)} here"


class _Nothing:
    def __repr__(self):
        return "nothing"


_NONE = _Nothing()


def _shown(value):
    if isinstance(value, list) and len(value) > 3:
        return f"a list of {len(value)}"
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:120]}…"
