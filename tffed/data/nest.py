"""Nests of arrays: an array, or tuples, lists and dictionaries of nests, as Keras models take them.

A dictionary is walked in the order of its sorted keys, so that two dictionaries with the same
keys match whatever order they were filled in.
"""


def leaves(nest, name: str = "") -> list[tuple[str, object]]:
    """Lists the leaves of a nest with their paths.

    Args:
        nest: The nest; everything that is not a tuple, list or dictionary is a leaf.
        name: Path of the nest itself, the prefix of every path, e.g. `"x"`.

    Returns:
        Pairs `(path, leaf)`, a path reading like Python: `"x['image'][0]"`.
    """
    if isinstance(nest, dict):
        return [p for key in sorted(nest) for p in leaves(nest[key], f"{name}[{key!r}]")]
    if isinstance(nest, (tuple, list)):
        return [p for i, part in enumerate(nest) for p in leaves(part, f"{name}[{i}]")]
    return [(name, nest)]


def map_leaves(fn, nest, *others):
    """Applies `fn` to the leaves that stand at the same place in nests of one structure.

    The leaves come in the order of `leaves`.

    Args:
        fn: Function of `1 + len(others)` leaves.
        nest: The nest whose containers the result has.
        *others: Nests of the same structure.

    Returns:
        A nest of the results.
    """
    if isinstance(nest, dict):
        return {key: map_leaves(fn, nest[key], *(o[key] for o in others)) for key in sorted(nest)}
    if isinstance(nest, (tuple, list)):
        parts = [map_leaves(fn, *together) for together in zip(nest, *others, strict=True)]
        return type(nest)(*parts) if hasattr(nest, "_fields") else type(nest)(parts)
    return fn(nest, *others)
