"""Arrays as bytes and back: the one format of messages, client states and checkpoints.

    pack(arrays) = magic | number of arrays | dtype, rank, shape of each | data of each | CRC-32

All integers are little-endian; the data of an array is its elements in C order, little-endian,
without padding. The same arrays always give the same bytes. Nothing in the bytes is ever executed
or unpickled, and no more memory is taken than the bytes themselves account for, so bytes from
another machine can be read safely. The checksum finds accidents (a damaged disk, a cut
transmission); against a forger it proves nothing.
"""

import math
import struct
import zlib
from collections.abc import Iterable

import numpy as np

_MAGIC = b"TFA1"
_COUNT = struct.Struct("<I")
_ARRAY = struct.Struct("<BB")
_CHECKSUM = struct.Struct("<I")

# The position in this list is the code in the bytes: add at the end, never change the order.
# Beside the name of the dtype stands what its elements are stored as.
_DTYPES = (
    ("bool", "|u1"),
    ("int8", "|i1"),
    ("int16", "<i2"),
    ("int32", "<i4"),
    ("int64", "<i8"),
    ("uint8", "|u1"),
    ("uint16", "<u2"),
    ("uint32", "<u4"),
    ("uint64", "<u8"),
    ("float16", "<f2"),
    ("float32", "<f4"),
    ("float64", "<f8"),
    ("complex64", "<c8"),
    ("complex128", "<c16"),
    ("bfloat16", "<u2"),
    ("float8_e4m3fn", "|u1"),
    ("float8_e5m2", "|u1"),
)
_CODES = {name: code for code, (name, _) in enumerate(_DTYPES)}
# Stored by their bits as another dtype; packing those that NumPy lacks needs no ml_dtypes.
_BY_BITS = frozenset({"bool", "bfloat16", "float8_e4m3fn", "float8_e5m2"})


def pack(arrays: Iterable[np.ndarray]) -> bytes:
    """Writes arrays as bytes.

    Args:
        arrays: Arrays, or what `np.asarray` makes one of (scalars, tensors), of any shape. The
            dtypes are bool, the integers, float16, float32, float64, complex64, complex128,
            bfloat16, float8_e4m3fn and float8_e5m2.

    Returns:
        The bytes: 12 and, for each array, 2 + 8 * rank + its elements.

    Raises:
        ValueError: An array has another dtype, such as object or text.
    """
    arrays = [np.asarray(array) for array in arrays]
    parts = [_MAGIC, _COUNT.pack(len(arrays))]
    for index, array in enumerate(arrays):
        if array.dtype.name not in _CODES:
            raise ValueError(
                f"Expected arrays of one of the dtypes {', '.join(_CODES)}. "
                f"Received: arrays[{index}].dtype={array.dtype}. Convert it to one of these."
            )
        parts.append(_ARRAY.pack(_CODES[array.dtype.name], array.ndim))
        parts.append(struct.pack(f"<{array.ndim}Q", *array.shape))
    parts += [_elements(array) for array in arrays]
    checksum = 0
    for part in parts:
        checksum = zlib.crc32(part, checksum)
    return b"".join([*parts, _CHECKSUM.pack(checksum)])


def unpack(data: bytes) -> list[np.ndarray]:
    """Reads the arrays that `pack` wrote.

    Args:
        data: What `pack` returned, as bytes or another contiguous buffer.

    Returns:
        The arrays, writable and with memory of their own, with the dtypes and bits they had (in
        the byte order of this machine).

    Raises:
        ValueError: The bytes are not what `pack` writes: cut off, damaged, or something else.
    """
    data = memoryview(data).cast("B")
    if bytes(data[: len(_MAGIC)]) != _MAGIC:
        raise _invalid(f"they begin with {bytes(data[: len(_MAGIC)])!r} instead of {_MAGIC!r}")
    end = len(data) - _CHECKSUM.size
    if end < len(_MAGIC) + _COUNT.size or _CHECKSUM.unpack_from(data, end)[0] != zlib.crc32(
        data[:end]
    ):
        raise _invalid("their checksum does not match: they are damaged or cut off")
    try:
        return _read_arrays(data[:end])
    except struct.error as error:
        raise _invalid(f"they end too early ({error})") from error


def _elements(array: np.ndarray) -> memoryview:
    """Returns an array's elements as the bytes to store, without a copy where that is possible."""
    storage = np.dtype(_DTYPES[_CODES[array.dtype.name]][1])
    flat = np.ascontiguousarray(array).reshape(-1)
    stored = (
        flat.view(storage) if array.dtype.name in _BY_BITS else flat.astype(storage, copy=False)
    )
    return memoryview(stored.view(np.uint8))


def _read_arrays(data: memoryview) -> list[np.ndarray]:
    """Reads the arrays of bytes whose beginning and checksum are right, without trusting them."""
    (count,) = _COUNT.unpack_from(data, len(_MAGIC))
    offset = len(_MAGIC) + _COUNT.size
    headers = []
    for _ in range(count):
        code, rank = _ARRAY.unpack_from(data, offset)
        if code >= len(_DTYPES):
            raise _invalid(f"the dtype code {code} is unknown; a newer tffed may have written it")
        shape = struct.unpack_from(f"<{rank}Q", data, offset + _ARRAY.size)
        offset += _ARRAY.size + 8 * rank
        headers.append((*_DTYPES[code], shape))
    arrays = []
    for name, storage, shape in headers:
        size = math.prod(shape) * np.dtype(storage).itemsize
        if size > len(data) - offset:
            raise _invalid(f"shape {shape} of {name} needs more bytes than there are")
        arrays.append(_read_array(data[offset : offset + size], name, storage, shape))
        offset += size
    if offset != len(data):
        raise _invalid(f"{len(data) - offset} bytes follow the last array")
    return arrays


def _read_array(data: memoryview, name: str, storage: str, shape: tuple[int, ...]) -> np.ndarray:
    """Returns an array of its own memory from the bytes of its elements."""
    stored = np.frombuffer(data, storage)
    if name == "bool" and stored.size and stored.max() > 1:
        raise _invalid("a bool is neither 0 nor 1")
    try:
        array = stored.reshape(shape)
    except ValueError as error:  # A rank or an empty shape beyond what NumPy can hold.
        raise _invalid(f"shape {shape} is impossible ({error})") from error
    if name in _BY_BITS:
        return array.copy().view(_dtype_by_bits(name))
    return array.astype(np.dtype(storage).newbyteorder("="))


def _dtype_by_bits(name: str) -> np.dtype:
    """Returns the dtype of a name that NumPy itself may not know."""
    if name == "bool":
        return np.dtype(bool)
    import ml_dtypes  # A dependency of TensorFlow.

    return np.dtype(getattr(ml_dtypes, name))


def _invalid(reason: str) -> ValueError:
    """Returns the error for bytes that cannot be read."""
    return ValueError(
        f"Expected bytes that tffed.serialize.pack wrote. Received: bytes that cannot be read, "
        f"because {reason}. Get them again from where they come from."
    )
