"""A client's id as text, in files and in what is signed."""

import operator
from contextlib import suppress

import numpy as np


def client_text(client_id: int | str) -> str:
    """The text of an id, where 1 and "1" differ: `i1` and `s1`.

    Raises:
        ValueError: It is neither an int nor a str, or one that cannot be written as UTF-8.
    """
    if isinstance(client_id, str):
        with suppress(UnicodeEncodeError):
            client_id.encode()
            return f"s{client_id}"
    elif not isinstance(client_id, bool | np.bool_):
        with suppress(TypeError):
            return f"i{operator.index(client_id)}"
    raise ValueError(
        f"Expected a client id that is an int or a str. Received: client_id={client_id!r} "
        f"({type(client_id).__name__}). Convert the ids of the clients to one of these; of a str, "
        "every character must be one that UTF-8 has."
    )
