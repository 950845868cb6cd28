"""Characters by number."""

import dataclasses
from collections.abc import Iterable

import numpy as np


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """The characters of a text by number, from 1; number 0 is any other character.

    Args:
        characters: Distinct characters in ascending order.

    Raises:
        ValueError: A character twice, or out of order.
    """

    characters: str

    def __post_init__(self):
        if "".join(sorted(set(self.characters))) != self.characters or not self.characters:
            raise ValueError(
                "Expected distinct characters in ascending order. Received: "
                f"characters={self.characters!r}. Use Vocabulary.of([text])."
            )

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Vocabulary":
        """Returns the vocabulary of the characters that occur in some texts."""
        return cls("".join(sorted(set().union(*texts))))

    @property
    def size(self) -> int:
        """Number of different codes, that of unknown characters included."""
        return len(self.characters) + 1

    def encode(self, text: str) -> np.ndarray:
        """Returns the numbers of the characters of a text, int32 `[len(text)]`."""
        points = _code_points(text)
        known = _code_points(self.characters)
        at = np.minimum(np.searchsorted(known, points), len(known) - 1)
        return np.where(known[at] == points, at + 1, 0).astype(np.int32)

    def decode(self, codes: Iterable[int], unknown: str = "\ufffd") -> str:
        """Returns the text of some numbers, with `unknown` for 0.

        Raises:
            ValueError: A number is not in the vocabulary.
        """
        codes = np.asarray(codes)
        if codes.size and not 0 <= codes.min() <= codes.max() < self.size:
            raise ValueError(
                f"Expected codes from 0 to {self.size - 1}. Received: {codes.min()} to "
                f"{codes.max()}. Decode with the vocabulary that the text was encoded with."
            )
        return "".join((unknown, *self.characters)[code] for code in codes.reshape(-1))


def _code_points(text):
    # surrogatepass: undecodable bytes of a file may stand as lone surrogates in the text.
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
