"""One array of a client, from whatever holds its numbers or strings."""

import numpy as np

from tffed.data.dtypes import first_lost, narrowed


def dense(leaf):
    """Returns an array of what may be a tensor, a ragged or sparse one, or a table."""
    kind = type(leaf).__name__
    if kind == "RaggedTensor":
        return leaf.to_tensor().numpy()
    if kind == "SparseTensor":
        import tensorflow as tf

        return tf.sparse.to_dense(leaf).numpy()
    if hasattr(leaf, "toarray") and hasattr(leaf, "nnz"):  # scipy's
        return leaf.toarray()
    return np.asarray(leaf)


def is_unequal(leaf) -> bool:
    """Whether a ragged tensor's rows differ in length, so that `dense` pads them with zeros."""
    if type(leaf).__name__ != "RaggedTensor":
        return False
    return int(np.prod(leaf.to_tensor().shape)) != int(np.prod(leaf.flat_values.shape))


def column_names(leaf):
    """Returns the names of the columns of a table, such as a pandas DataFrame, or None."""
    columns = getattr(leaf, "columns", None)
    return None if columns is None or callable(columns) else tuple(map(str, columns))


def raw_array(leaf, name: str, where: str):
    """Returns the array of a leaf as it is, of any dtype; strings as dtype object.

    Raises:
        ValueError: It has no array, no leading dimension, or columns that no array can hold.
    """
    _check_unmasked(leaf, name, where)
    try:
        array = dense(leaf)
    except ValueError as error:
        raise ValueError(
            f"Expected {name} of {where} to be an array. Received: {type(leaf).__name__}, which "
            f"NumPy refuses ({error}). Give every example the same shape, by padding for example, "
            "or a tf.RaggedTensor where lengths differ."
        ) from error
    if array.ndim == 0:
        raise ValueError(
            f"Expected {name} of {where} to have a leading dimension of examples. Received: the "
            f"scalar {leaf!r}. Lists are taken for nests of arrays: turn a list of numbers into "
            "an array with np.asarray."
        )
    if array.dtype.kind == "f" and column_names(leaf) is not None and hasattr(leaf, "dtypes"):
        _check_table(leaf, name, where)
    return array.astype(object) if array.dtype.kind in "SU" else array


def _check_unmasked(leaf, name, where):
    hidden = np.ma.getmaskarray(leaf) if isinstance(leaf, np.ma.MaskedArray) else np.zeros(1, bool)
    if hidden.dtype != bool or hidden.any():
        raise ValueError(
            f"Expected an array without masked entries in {name} of {where}. Received: a "
            f"MaskedArray that hides {np.count_nonzero(hidden)} of {leaf.size}; models would see "
            "what is under the mask. Fill them in with .filled(value), or leave those examples out."
        )


def _check_table(table, name, where):
    """Whole numbers beside fractions became float64: none may have changed."""
    for label in table.columns:
        column = np.asarray(table[label])
        if column.ndim == 1 and column.dtype.kind in "iu" and first_lost(column, np.float64):
            raise ValueError(
                f"Expected numbers that float64 can hold in column {label!r} of {name} of {where}. "
                f"Received: {column.dtype} up to {column.max()}. Give it as an array of its own."
            )


def checked_array(array, name: str, where: str, columns=None):
    """Returns the array in the dtype that models take: float64 as float32, the rest as it is.

    Raises:
        ValueError: Neither numbers nor, in x, strings; NaN or infinity; a number that float32 would
            make another one.
    """
    if not array.size:
        return array
    if array.dtype.kind == "O" and name.startswith("x") and _all_strings(array, name, where):
        return array
    if array.dtype.kind not in "biuf":
        raise ValueError(
            f"Expected numbers in {name} of {where}. Received: dtype={array.dtype}. Convert to "
            "numbers, for example with clients.map(lambda x, y: (layer(x), y)), and give examples "
            "of unequal shapes one shape by padding."
        )
    if array.dtype.itemsize > 4 and array.dtype.kind == "f":
        _check_finite(array, name, where)
        array = narrowed(array.astype(np.float64, copy=False), name, where, columns)
    _check_finite(array, name, where)
    return array


def _all_strings(array, name, where):
    flat = array.reshape(-1)
    strings = np.fromiter((isinstance(v, (str, bytes)) for v in flat), bool, len(flat))
    if strings.any() and not strings.all():
        at = int(np.argmin(strings))
        if flat[at] is None or flat[at] != flat[at]:
            raise ValueError(
                f"Expected a string in every cell of {name} of {where}. Received: {flat[at]!r} at "
                f"row {at // (len(flat) // len(array))}. Fill it in, for example with ''."
            )
    return bool(strings.all())


def _check_finite(array, name, where):
    # min and max carry NaN and infinity along, without a temporary the size of the data.
    if array.dtype.kind != "f" or not array.size:
        return
    with np.errstate(invalid="ignore"):
        finite = np.isfinite(array.min()) and np.isfinite(array.max())
    if not finite:
        bad = ~np.isfinite(array.reshape(len(array), -1)).all(axis=1)
        raise ValueError(
            f"Expected finite values in {name} of {where}. Received: NaN or infinity (or values "
            f"beyond {array.dtype}) in {bad.sum()} of {len(array)} examples, the first at row "
            f"{int(np.argmax(bad))}. Remove or fill in those values."
        )
