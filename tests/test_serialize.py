"""Arrays as bytes: every dtype and shape comes back, no other bytes are taken for arrays."""

import struct
import zlib

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from tests.processes import start
from tffed.serialize import pack, unpack

NATIVE = (
    "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64 complex64 "
    "complex128"
).split()
NARROW = [ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2]

shapes = npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
arrays = st.one_of(
    st.sampled_from(NATIVE).flatmap(lambda dtype: npst.arrays(dtype, shapes)),
    st.sampled_from(NARROW).flatmap(
        lambda dtype: npst.arrays(f"u{np.dtype(dtype).itemsize}", shapes).map(
            lambda bits: bits.view(dtype) if bits.ndim else bits.reshape(1).view(dtype)[0]
        )
    ),
)


def assert_same(found, expected):
    """Same number of arrays, and each has the dtype, shape and bits it had."""
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        b = np.asarray(b)
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert a.tobytes() == b.tobytes()


def sealed(body):
    """Bytes with a right beginning and checksum, whatever is between."""
    body = b"TFA1" + body
    return body + struct.pack("<I", zlib.crc32(body))


@settings(max_examples=150, deadline=None)
@given(st.lists(arrays, max_size=5))
def test_roundtrip_keeps_every_bit(values):
    data = pack(values)
    assert_same(unpack(data), values)
    assert pack(unpack(data)) == data


def test_the_bytes_are_the_documented_ones():
    data = pack([np.array([1, 2], np.uint16), np.float32(1.0)])
    body = struct.pack("<I BBQ BB HH f", 2, 6, 1, 2, 10, 0, 1, 2, 1.0)
    assert data == sealed(body)
    assert len(pack([np.zeros((2, 3), np.float32)])) == 12 + 2 + 8 * 2 + 24


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6).reshape(2, 3).T,
        np.arange(10, dtype=np.float32)[::-2],
        np.broadcast_to(np.float64(3), (2, 2)),
        np.asfortranarray(np.arange(6, dtype=ml_dtypes.bfloat16).reshape(2, 3)),
    ],
    ids=["transposed", "reversed", "broadcast", "fortran"],
)
def test_layout_in_memory_does_not_matter(array):
    assert pack([array]) == pack([array.copy("C")])
    np.testing.assert_array_equal(unpack(pack([array]))[0], array)


def test_byte_order_in_memory_does_not_matter():
    big = np.array([1.5, -2], ">f4")
    (found,) = unpack(pack([big]))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, [1.5, -2])
    assert pack([big]) == pack([big.astype(np.float32)])


def test_result_is_writable_and_apart_from_the_bytes():
    data = bytearray(pack([np.zeros(3), np.zeros(2, bool), np.zeros((), ml_dtypes.bfloat16)]))
    found = unpack(memoryview(data))
    data[:] = b"\xff" * len(data)
    for array in found:
        assert not array.any()
        array[...] = 1
        assert array.all()


def test_tensors_and_scalars_are_taken():
    import tensorflow as tf

    tensors = [tf.constant([1, 2], tf.bfloat16), tf.constant(3, tf.int64), 2.5, True]
    assert_same(unpack(pack(tensors)), [np.asarray(t) for t in tensors])


@pytest.mark.parametrize("value", [np.array([{}]), np.array(["a"]), np.array(0, "M8[s]")])
def test_other_dtypes_are_refused(value):
    with pytest.raises(ValueError, match=r"Received: arrays\[1\]\.dtype="):
        pack([np.zeros(1), value])


def test_every_cut_and_every_flipped_bit_is_found():
    data = pack([np.arange(3, dtype=np.float32), np.array([True]), np.zeros((0, 2))])
    for length in range(len(data)):
        with pytest.raises(ValueError, match="Received: bytes that cannot be read"):
            unpack(data[:length])
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ValueError, match="Received: bytes that cannot be read"):
            unpack(damaged)
    with pytest.raises(ValueError, match="cannot be read"):
        unpack(data + b"\0")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (struct.pack("<I", 2**32 - 1), "end too early"),
        (struct.pack("<IBB", 1, 200, 0), "dtype code 200 is unknown"),
        (struct.pack("<IBBQ", 1, 10, 1, 2**62), "more bytes than there are"),
        (struct.pack("<IBBQQ", 1, 10, 2, 2**63, 2), "more bytes than there are"),
        (struct.pack("<IBBQQ", 1, 10, 2, 2**63, 0), "impossible"),
        (struct.pack("<IBB", 1, 10, 255) + bytes(8 * 255), "impossible"),
        (struct.pack("<IBBQ", 1, 10, 1, 2) + bytes(7), "more bytes than there are"),
        (struct.pack("<IBB", 1, 10, 0) + bytes(5), "1 bytes follow"),
        (struct.pack("<IBB", 1, 0, 0) + b"\2", "neither 0 nor 1"),
        (b"", "checksum"),
    ],
)
def test_forged_bytes_are_refused(body, reason):
    with pytest.raises(ValueError, match=reason):
        unpack(sealed(body))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60))
def test_arbitrary_bytes_give_arrays_or_a_value_error(body):
    try:
        found = unpack(sealed(body))
    except ValueError:
        return
    assert pack(found) == sealed(body)


def test_needs_no_tensorflow():
    code = (
        "import sys, numpy as np; from tffed.serialize import pack, unpack; "
        "unpack(pack([np.zeros(2)])); print({'tensorflow', 'ml_dtypes'} & set(sys.modules))"
    )
    with start(code) as process:
        assert process.stdout.read() == "set()\n"
