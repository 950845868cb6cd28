"""Codecs of small unsigned integers: so many bits a number, or so many digits a byte."""

import math
from dataclasses import dataclass

import numpy as np

from tffed.wire.codecs import Codec, WireError, expect_bytes


@dataclass(frozen=True)
class Bits(Codec):
    """Integers below 2**width in `width` bits each: ceil(n · width / 8) bytes for n of them.

    Up to 8 bits: number i fills the bits from i · width on, counted from the least significant bit
    of the first byte; what is left of the last byte is zero. Of wider numbers first come the low
    bytes of all, then what is above them, as numbers of width - 8 bits.

    Args:
        width: 1 to 16.
    """

    width: int

    def __post_init__(self):
        expect_between("width", self.width, 1, 16)

    def size(self, shape, dtype):
        expect_range(self, dtype, 2**self.width)
        return -(-math.prod(shape) * self.width // 8)

    def pack(self, array):
        codes = numbers_below(2**self.width, array)
        if self.width <= 8:
            return pack_bits(codes, self.width)
        high = (codes >> 8).astype(np.uint8)
        return codes.astype(np.uint8).tobytes() + pack_bits(high, self.width - 8)

    def unpack(self, data, shape, dtype):
        expect_bytes(data, self.size(shape, dtype))
        count = math.prod(shape)
        if self.width <= 8:
            codes = unpack_bits(data, self.width, count)
        else:
            codes = unpack_bits(data[count:], self.width - 8, count).astype(np.uint16) << 8
            codes |= np.frombuffer(data, np.uint8, count)
        return codes.astype(dtype, copy=False).reshape(shape)


@dataclass(frozen=True)
class Digits(Codec):
    """Integers below `base`, as many to a byte as fit: k = floor(8 / log2(base)).

    The byte of digits d_0 … d_(k-1) is Σ d_i · base**i; digits missing in the last byte are zero.

    Args:
        base: 2 to 16; e.g. 3 puts 5 ternary digits in a byte.
    """

    base: int

    def __post_init__(self):
        expect_between("base", self.base, 2, 16)

    def size(self, shape, dtype):
        expect_range(self, dtype, self.base)
        return -(-math.prod(shape) // digits_per_byte(self.base))

    def pack(self, array):
        return pack_digits(numbers_below(self.base, array), self.base)

    def unpack(self, data, shape, dtype):
        expect_bytes(data, self.size(shape, dtype))
        digits = unpack_digits(data, self.base, math.prod(shape))
        return digits.astype(dtype, copy=False).reshape(shape)


def expect_between(name, value, low, high):
    """Raises a ValueError unless `value` is an integer from `low` to `high`."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(
            f"`{name}` must be an integer from {low} to {high}. Received: {name}={value!r}"
        )


def expect_range(codec, dtype, limit):
    """Raises a ValueError unless the dtype holds the integers below `limit`."""
    dtype = np.dtype(dtype)
    largest = np.iinfo(dtype).max if dtype.kind in "iu" else int(dtype.kind == "b")
    if largest < limit - 1:
        raise ValueError(
            f"Expected {codec} to carry integers of a type that holds {limit - 1}. Received: "
            f"dtype={dtype}"
        )


def numbers_below(limit, array):
    """The array as a uint8 or uint16 vector; raises a ValueError unless all are in [0, limit)."""
    flat = array.reshape(-1)
    if flat.size and not 0 <= flat.min() <= flat.max() < limit:
        raise ValueError(
            f"Expected integers in [0, {limit}). Received: some in [{flat.min()}, {flat.max()}]."
        )
    return flat.astype(np.uint8 if limit <= 256 else np.uint16, copy=False)


def digits_per_byte(base):
    """How many digits of a base of at most 256 fit in a byte."""
    return next(k for k in range(8, 0, -1) if base**k <= 256)


def pack_digits(digits, base):
    """The bytes of a uint8 vector of digits."""
    per = digits_per_byte(base)
    columns = _padded(digits, per).reshape(-1, per).T
    packed = columns[-1].copy()
    for column in columns[-2::-1]:
        packed *= base
        packed += column
    return packed.tobytes()


def unpack_digits(data, base, count):
    """The `count` digits in these bytes, uint8, of which there must be as many as it takes.

    Raises:
        WireError: A byte holds more than its digits, or padding is not zero.
    """
    per = digits_per_byte(base)
    rest = np.frombuffer(data, np.uint8)
    if rest.size and rest.max() > base**per - 1:
        raise WireError(f"Expected {per} digits below {base} a byte. Received: {rest.max()}")
    digits = np.empty((rest.size, per), np.uint8)
    for place in range(per - 1):
        above = rest // np.uint8(base)
        digits[:, place] = rest - above * np.uint8(base)
        rest = above
    digits[:, -1] = rest
    return _without_padding(digits, count)


def pack_bits(codes, width):
    """The bytes of a uint8 vector of codes of 1 to 8 bits, packed without gaps."""
    if 8 % width == 0:
        return pack_digits(codes, 2**width)
    words = np.zeros(-(-codes.size // 8), "<u8")  # eight codes are `width` whole bytes
    for place, column in enumerate(_padded(codes, 8).reshape(-1, 8).T):
        words |= column.astype(np.uint64) << np.uint64(place * width)
    packed = words.view(np.uint8).reshape(-1, 8)[:, :width]
    return packed.tobytes()[: -(-codes.size * width // 8)]


def unpack_bits(data, width, count):
    """The `count` codes of 1 to 8 bits in these bytes, uint8.

    Raises:
        WireError: Padding is not zero.
    """
    if 8 % width == 0:
        # No byte is too large for these bases but that of a whole byte, which is the code itself.
        return unpack_digits(data, 2**width, count)
    words = np.zeros((-(-count // 8), 8), np.uint8)
    words[:, :width] = _padded(np.frombuffer(data, np.uint8), width).reshape(-1, width)
    words = words.view("<u8")[:, 0]
    codes = np.empty((words.size, 8), np.uint8)
    for place in range(8):
        codes[:, place] = (words >> np.uint64(place * width)) & np.uint64(2**width - 1)
    return _without_padding(codes, count)


def _padded(vector, multiple):
    missing = -vector.size % multiple
    return np.pad(vector, (0, missing)) if missing else vector


def _without_padding(rows, count):
    flat = rows.reshape(-1)
    if flat[count:].any():
        raise WireError("Expected zeros after the last number. Received: other bits.")
    return flat[:count]
