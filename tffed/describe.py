"""Objects that numbers follow from as JSON-able values: equal ones of two processes read alike.

Names that Keras numbers by itself are left out. Functions and classes of the user count by their
code, and by the constants and functions that the code reads, not by their text: comments and moved
lines change nothing.
"""

import collections
import dataclasses
import dis
import functools
import hashlib
import re
import threading
import types

import numpy as np

from tffed.arguments import plain
from tffed.held import attributes, class_attributes, globals_of, own, standard

_DEEPEST = 8
_described = threading.local()  # functions and classes that the present call has met
_MANY = 64  # entries of a list that are kept one by one; longer ones go by a digest
_LARGEST = 2**28  # bytes of an array of which each is read; of larger ones, blocks


def describe(value, depth=0):
    """A JSON-able value of `value`; of what is not known, its type."""
    if not depth:
        _described.code = {}
    if type(value).__name__ == "KerasTensor":
        return "tensor"
    value = plain(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if depth > _DEEPEST:
        return type(value).__name__
    if isinstance(value, dict):
        kept = _without_places(value)
        return {str(plain(k)): describe(v, depth + 1) for k, v in kept.items()}
    if isinstance(value, list | tuple | range):
        found = [describe(v, depth + 1) for v in value]
        return found if len(found) <= _MANY else f"{len(found)} entries ({_short(repr(found))})"
    if isinstance(value, set | frozenset):
        return sorted(repr(describe(v, depth + 1)) for v in value)
    if isinstance(value, bytes | complex):
        return repr(value)
    if hasattr(value, "__array__") and not isinstance(value, type):
        return digest([np.asarray(value)])
    if isinstance(value, functools.partial):
        return {"function": describe(value.func, depth + 1)} | {
            "arguments": describe([value.args, value.keywords], depth + 1)
        }
    if isinstance(value, types.MethodType):
        return describe(value.__func__, depth)
    if isinstance(value, types.FunctionType):
        return _function(value, depth)
    if isinstance(value, types.BuiltinFunctionType | np.ufunc):
        return value.__name__
    if isinstance(value, type):
        return _class(value, depth)
    if standard(type(value)) and own(type(value).__module__):
        return _of_python(value, depth)
    return _object(value, depth)


def digest(arrays):
    """A short digest of arrays: shapes, dtypes and values."""
    found = hashlib.blake2b(digest_size=12)
    for array in arrays:
        array = np.asarray(array)
        found.update(f"{array.shape}{array.dtype}".encode())
        if array.dtype.hasobject:
            found.update(repr(array.tolist()).encode())
            continue
        for block in _blocks(array):
            found.update(np.ascontiguousarray(block).data.cast("B") if block.size else b"")
    return found.hexdigest()


def auto_name(name, kind):
    """Whether a name is one that Keras makes of a class's, with or without a number."""
    base = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", kind))
    base = re.sub("([a-z])([A-Z])", r"\1_\2", base).lower()
    pattern = f"(forward_|backward_)?{re.escape(base)}" + r"(_\d+)?"
    return re.fullmatch(pattern, str(name)) is not None


def _without_places(value):
    """A dictionary that Keras has serialized, without what differs from process to process."""
    config = value.get("config")
    if value.get("class_name") == "__lambda__":  # its text holds line numbers
        return {"class_name": "__lambda__"}
    if "class_name" not in value or not isinstance(config, dict):
        return value
    if auto_name(config.get("name"), value["class_name"]):
        config = {k: v for k, v in config.items() if k != "name"}
    return {"class_name": value["class_name"], "config": config}


def _blocks(array):
    if array.nbytes <= _LARGEST or array.ndim == 0 or len(array) < 64:
        return [array]
    width = max(1, len(array) * _LARGEST // array.nbytes // 64)
    starts = np.linspace(0, len(array) - width, 64).astype(np.int64)
    return [array[start : start + width] for start in starts]


def _once(describe_code):
    """Describes a function or class once in a call of `describe`; within itself, by its name."""

    def known(value, depth):
        met = _described.code
        if value not in met:
            met[value] = value.__name__
            met[value] = describe_code(value, depth)
        return met[value]

    return known


@_once
def _function(value, depth):
    """A function of Keras or NumPy by its name, any other also by its code."""
    name = value.__qualname__.replace("<locals>.", "")
    if not own(value.__module__):
        return name
    closure = [_cell(cell) for cell in value.__closure__ or ()]
    parts = [value.__defaults__, value.__kwdefaults__, closure, globals_of(value)]
    told = repr(_code(value.__code__)) + repr(describe(parts, depth + 1))
    return f"{name} (code {_short(told)})"


@_once
def _class(value, depth):
    name = value.__qualname__.replace("<locals>.", "")
    if depth > _DEEPEST:
        return name
    found = {}
    for kind in value.__mro__:
        if kind is object or not own(kind.__module__):
            break
        for attribute, member in vars(kind).items():
            member = getattr(member, "__func__", getattr(member, "fget", member))
            if isinstance(member, types.FunctionType):
                found.setdefault(attribute, _function(member, depth + 1))
        for attribute, held in class_attributes(kind).items():
            found.setdefault(attribute, describe(held, depth + 1))
    return f"{name} (code {_short(repr(sorted(found.items())))})" if found else name


def _of_python(value, depth):
    """An object of Python's library by its fields or entries, or its text if that is stable."""
    if isinstance(value, types.SimpleNamespace):
        return describe(vars(value), depth + 1)
    if isinstance(value, collections.deque):
        return describe(list(value), depth + 1)
    text = repr(value)
    return type(value).__name__ if " at 0x" in text else text


def _object(value, depth):
    """An object by its class, and by its configuration, fields and attributes."""
    kind = type(value)
    name = _class(kind, depth)
    config = _config(value)
    if config is None and dataclasses.is_dataclass(value):
        config = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if config is None:
        return {"class": name} | describe(attributes(value, configured=False), depth)
    config = {**config, **attributes(value)}
    if auto_name(config.get("name"), kind.__name__):
        del config["name"]
    return {"class": name} | describe(config, depth)


def _config(value):
    try:
        return value.get_config()
    except Exception:  # whatever a user's object does: then its class has to do
        return None


def _code(code):
    """What is done, with which constants; a docstring is none, as it is not loaded."""
    steps = [
        (one.opname, _constant(one.argval) if one.opcode in dis.hasconst else one.arg)
        for one in dis.get_instructions(code)
        if one.opname != "NOP"
    ]
    return steps, code.co_names


def _constant(value):
    if isinstance(value, types.CodeType):
        return _code(value)
    return sorted(map(repr, value)) if isinstance(value, frozenset) else repr(value)


def _cell(cell):
    try:
        return cell.cell_contents
    except ValueError:  # not yet set
        return None


def _short(text):
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
