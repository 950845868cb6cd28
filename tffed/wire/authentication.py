"""Who a message is from: a keyed digest after its bytes, HMAC-SHA256 (RFC 2104).

    signed message = message | HMAC-SHA256(key, "tffed-hmac-1" | client | round | message)

with the client's id as 8 bytes of length and its text in UTF-8, `i` and digits for an int, `s` and
the string for a str, and the round as 8 bytes; both numbers little-endian. A CRC finds accidents,
but whoever changes a message can compute another one; without the key nobody can sign.

Each client has a key of its own, which it shares with the server alone. A message is then no other
client's and of no other round; that it was sent before in this round the server must notice itself,
by taking one message of a client. Up and down tell formats apart by their fingerprints. Signing
hides nothing: what must not be read is sent over TLS.
"""

import hashlib
import hmac
import operator
import struct

from tffed.client_text import client_text
from tffed.wire.codecs import WireError

_PURPOSE = b"tffed-hmac-1"
_NUMBER = struct.Struct("<Q")
_LEAST_KEY = 16  # bytes; 32 of `secrets.token_bytes` are a good choice
TAG = hashlib.sha256().digest_size


def sign(payload: bytes, key: bytes, *, client, round_number: int) -> bytes:
    """A message with the digest after it by which `verify` knows its sender.

    Args:
        payload: The bytes of a message, as `Format.pack` makes them.
        key: At least 16 random bytes that this client and the server share, and nobody else:
            `secrets.token_bytes(32)`.
        client: The id of the client, an int or a str, whether it sends or receives.
        round_number: The round it belongs to.

    Raises:
        ValueError: The key is short, or the id or the round is none.
    """
    payload = bytes(payload)
    return payload + _tag(payload, key, client, round_number)


def verify(signed: bytes, key: bytes, *, client, round_number: int) -> bytes:
    """The message in what `sign` gave.

    Args:
        signed: The bytes received.
        key, client, round_number: As for `sign`: whose message it must be, and of which round.

    Raises:
        WireError: It is another client's, another round's, or was changed.
        ValueError: As for `sign`.
    """
    signed = bytes(signed)
    payload, tag = signed[:-TAG], signed[-TAG:]
    if not hmac.compare_digest(tag, _tag(payload, key, client, round_number)):
        raise WireError(
            f"Expected a message that client {client!r} signed in round {round_number}. Received: "
            f"{len(signed)} bytes that it did not sign so. Leave them out; if it happens often, "
            "compare the keys."
        )
    return payload


def _tag(payload, key, client, round_number):
    if not isinstance(key, bytes) or len(key) < _LEAST_KEY:
        kind = f"{len(key)} bytes" if isinstance(key, bytes) else f"a {type(key).__name__}"
        raise ValueError(
            f"Expected a key of at least {_LEAST_KEY} random bytes. Received: {kind}. Make one for "
            "each client: secrets.token_bytes(32)."
        )
    name = client_text(client).encode()
    number = operator.index(round_number)
    if not 0 <= number < 2**64:
        raise ValueError(f"Expected a round in [0, 2**64). Received: round_number={round_number!r}")
    head = _PURPOSE + _NUMBER.pack(len(name)) + name + _NUMBER.pack(number)
    return hmac.digest(key, head + payload, hashlib.sha256)
