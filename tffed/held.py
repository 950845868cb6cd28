"""What objects, classes and functions hold besides their configuration and code.

Left out is what says nothing of what will be computed: weights, layers (which are described by
themselves), generators of random numbers, and what Keras keeps for its own use.
"""

import dis
import functools
import inspect
import sys
import types
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

# Attributes of Keras's layers, models and metrics that change while they are used.
_PASSING = ("autocast", "built", "compiled", "jit_compile", "run_eagerly", "steps_per_execution")
_PASSING += ("stop_training", "supports_jit", "supports_masking", "name", "seed")
_SCALARS = (bool, int, float, str)
_PLAIN = (*_SCALARS, complex, bytes, range, set, frozenset, functools.partial)
_CODE = (types.FunctionType, types.BuiltinFunctionType, types.MethodType, np.ufunc, type)
_APART = (keras.Variable, tf.Variable, keras.layers.Layer, keras.KerasTensor)
_APART += (keras.random.SeedGenerator,)


def own(module):
    """Whether code of a module is the user's: that of libraries goes by its name."""
    return _top(module) not in ("keras", "tensorflow", "numpy", "builtins", "abc")


def standard(kind):
    """Whether a class comes with Python."""
    return _top(kind.__module__) in sys.stdlib_module_names


def attributes(value, configured=True):
    """The data and functions that an object holds.

    Args:
        value: The object.
        configured: Whether it has a configuration. If so, of a library's object only those of the
            user's making are returned.
    """
    kind, found = type(value), {}
    whole = not configured and not isinstance(value, keras.Model)
    users, stored = own(kind.__module__) or whole, _stored(kind)
    for name, held in _fields(value).items():
        if isinstance(held, types.FunctionType):
            if own(held.__module__) and not hasattr(kind, name):  # else a wrapper of Keras's
                found[name.strip("_")] = held
            continue
        public = not name.startswith("_") and name not in _PASSING
        public = public and (whole or _is_scalar(held))
        held = kept(held) if users and (name not in stored or public) else _users_objects(held)
        if held is not None:
            found[name] = held
    return found


def class_attributes(kind):
    """The data of a class: numbers, texts, lists, arrays and objects of the user's."""
    found = {}
    for name, held in vars(kind).items():
        if name.startswith("__") or hasattr(held, "__get__"):
            continue
        held = kept(held)
        if held is not None:
            found[name] = held
    return found


def globals_of(function):
    """The data, functions and classes of its module that a function reads."""
    read, attributes_read = _names(function.__code__)
    found = {}
    for name in sorted(read):
        value = function.__globals__.get(name)
        if isinstance(value, types.ModuleType):
            if _is_written(value.__name__):
                parts = {one: kept(getattr(value, one, None)) for one in sorted(attributes_read)}
                found[name] = {k: v for k, v in parts.items() if v is not None}
            continue
        value = kept(value)
        if value is not None:
            found[name] = value
    return found


def kept(value):
    """The value, without what is left out; None if nothing remains."""
    if value is None or isinstance(value, _APART) or _is_symbolic(value):
        return None
    if isinstance(value, dict):
        parts = {k: kept(v) for k, v in value.items()}
        return {k: v for k, v in parts.items() if v is not None}
    if isinstance(value, list | tuple):
        return [None if isinstance(v, _APART) or _is_symbolic(v) else kept(v) for v in value]
    if isinstance(value, _PLAIN) or hasattr(value, "__array__"):
        return value
    if isinstance(value, _CODE):
        return value if _is_written(value.__module__) else value.__name__
    known = hasattr(value, "get_config") or _is_users(value) or standard(type(value))
    return value if known and not isinstance(value, types.ModuleType) else None


def _users_objects(value):
    """The user's objects in what a library's object holds, or None."""
    if isinstance(value, list | tuple | dict):
        parts = value.values() if isinstance(value, dict) else value
        parts = [one for one in parts if _is_users(one)]
        return parts or None
    return value if _is_users(value) else None


def _is_users(value):
    kind = type(value)
    if isinstance(value, (*_APART, *_CODE, types.ModuleType)):
        return False
    return own(kind.__module__) and _top(kind.__module__) != "tffed" and not standard(kind)


def _is_written(module):
    """Whether the user wrote a module: those that come with Python or were installed have names."""
    if not own(module) or _top(module) in ("tffed", *sys.stdlib_module_names):
        return False
    file = getattr(sys.modules.get(module), "__file__", None) or ""
    return not {"site-packages", "dist-packages"} & set(Path(file).parts)


def _is_scalar(value):
    return isinstance(value, _SCALARS) or getattr(value, "shape", None) == ()


def _is_symbolic(value):
    return tf.is_tensor(value) and not hasattr(value, "numpy")


def _fields(value):
    slots = [name for kind in type(value).__mro__ for name in _slots(kind)]
    found = {name: getattr(value, name) for name in slots if hasattr(value, name)}
    found |= getattr(value, "__dict__", {})
    return {name: held for name, held in found.items() if not name.startswith("__")}


def _slots(kind):
    names = vars(kind).get("__slots__", ())
    names = (names,) if isinstance(names, str) else names
    return [name for name in names if own(kind.__module__) and not name.startswith("__")]


@functools.cache
def _stored(kind):
    """The names of attributes that methods of libraries' classes set."""
    found = set()
    for base in kind.__mro__:
        if base is object or own(base.__module__):
            continue
        for member in vars(base).values():
            for one in (member, *(getattr(member, part, None) for part in ("fget", "fset"))):
                one = inspect.unwrap(getattr(one, "__func__", one))
                code = getattr(one, "__code__", None)
                found |= set() if code is None else _assigned(code)
    return found


def _assigned(code):
    steps = dis.get_instructions(code)
    names = {one.argval for one in steps if one.opname == "STORE_ATTR"}
    return names.union(*map(_assigned, _inner(code)))


def _names(code):
    """The global names that code reads, and the names of attributes."""
    read, attributes_read = set(), set()
    for step in dis.get_instructions(code):
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            read.add(step.argval)
        elif step.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            attributes_read.add(step.argval)
    for inner in map(_names, _inner(code)):
        read, attributes_read = read | inner[0], attributes_read | inner[1]
    return read, attributes_read


def _inner(code):
    return [one for one in code.co_consts if isinstance(one, types.CodeType)]


def _top(module):
    return (module or "").split(".")[0]
