"""Signed messages: as RFC 2104 and 4231 compute them, and refused when anything differs."""

import hashlib

import numpy as np
import pytest

from tests.engines.test_packed import SIZES, make, rounds
from tests.helpers import make_clients
from tffed.data import from_dict
from tffed.engines.packed import Packed
from tffed.wire import WireError, sign, verify

KEYS = {cid: hashlib.sha256(b"%d" % cid).digest() for cid in range(4)}


def hmac_sha256(key, message):
    """RFC 2104 word by word."""
    key = (hashlib.sha256(key).digest() if len(key) > 64 else key).ljust(64, b"\0")
    inner = hashlib.sha256(bytes(b ^ 0x36 for b in key) + message).digest()
    return hashlib.sha256(bytes(b ^ 0x5C for b in key) + inner).digest()


def test_the_witness_is_that_of_rfc_4231():
    found = hmac_sha256(b"\x0b" * 20, b"Hi There").hex()
    assert found == "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"


@pytest.mark.parametrize(("client", "text"), [(7, b"i7"), ("7", b"s7"), ("é", b"s\xc3\xa9")])
@pytest.mark.parametrize("payload", [b"", b"a message", bytes(range(256)) * 5])
def test_signatures_are_hmac_over_client_round_and_message(client, text, payload):
    signed = sign(payload, KEYS[1], client=client, round_number=258)
    head = b"tffed-hmac-1" + bytes([len(text)]) + bytes(7) + text + b"\2\1" + bytes(6)
    assert signed == payload + hmac_sha256(KEYS[1], head + payload)
    assert verify(memoryview(signed), KEYS[1], client=client, round_number=258) == payload
    assert sign(payload, KEYS[1], client=np.int64(7), round_number=1) == sign(
        payload, KEYS[1], client=7, round_number=1
    )


def test_whatever_differs_is_refused():
    payload = b"weights of client 1"
    signed = sign(payload, KEYS[1], client=1, round_number=3)
    right = {"key": KEYS[1], "client": 1, "round_number": 3}
    for other in ({"key": KEYS[2]}, {"client": 2}, {"client": "1"}, {"round_number": 4}):
        with pytest.raises(WireError, match="Expected a message that client .* signed"):
            verify(signed, **right | other)
    changed = [signed[:k] + bytes([signed[k] ^ 1]) + signed[k + 1 :] for k in range(len(signed))]
    changed += [signed[:k] for k in range(len(signed))] + [signed + b"\0", b"\0" + signed, payload]
    for one in changed:
        with pytest.raises(WireError):
            verify(one, **right)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"key": b"short"}, "at least 16 random bytes. Received: 5 bytes"),
        ({"key": "x" * 32}, "Received: a str"),
        ({"client": True}, "client id"),
        ({"client": "\ud800"}, "UTF-8"),
        ({"round_number": -1}, r"Expected a round in .* Received: round_number=-1"),
    ],
)
def test_what_cannot_sign_is_refused(wrong, message):
    right = {"key": KEYS[0], "client": 1, "round_number": 0}
    for act in (sign, verify):
        with pytest.raises(ValueError, match=message):
            act(b"x" * 40, **right | wrong)


def test_a_round_leaves_out_the_client_whose_message_was_forged():
    def carry(forged):
        return lambda cid, payload: verify(
            sign(payload, KEYS[3 if cid in forged else cid], client=cid, round_number=0),
            KEYS[cid],
            client=cid,
            round_number=0,
        )

    clients = from_dict(make_clients(SIZES))
    honest, plain = (Packed(make(), carry=c) for c in (carry(()), lambda cid, payload: payload))
    found = [rounds(engine, clients, 1)[0].weights.trainable for engine in (honest, plain)]
    np.testing.assert_array_equal(found[0][0], found[1][0])
    forged = Packed(make(), carry=carry((1,)))
    _, metrics, *_ = rounds(forged, clients, 1)
    assert float(metrics["dropped"]) == 1 and list(forged.errors) == [1]
