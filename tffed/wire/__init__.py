"""The wire: how a message, a nest of tensors, becomes bytes (`Format`), leaf by leaf (`Codec`).

`sign` and `verify` tell whose bytes they are.
"""

from tffed.wire.authentication import sign, verify
from tffed.wire.codecs import Codec, Gate, Gated, Raw, Trimmed, WireError
from tffed.wire.compressed import Entropy, Indices
from tffed.wire.format import Format
from tffed.wire.integers import Bits, Digits

__all__ = [
    "Bits",
    "Codec",
    "Digits",
    "Entropy",
    "Format",
    "Gate",
    "Gated",
    "Indices",
    "Raw",
    "Trimmed",
    "WireError",
    "sign",
    "verify",
]
