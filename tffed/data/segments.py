"""Splits texts into the segments that stand for clients."""

import re

# A role in capitals and a full stop (not an act, scene, numeral or an exclamation), or a role whose
# words are capitalised and a colon, alone on its line.
_SPEAKER = (
    r"(?P<name>(?!(?:ACT|SCENE)\b|[IVXL]+\.|O\.)[A-Z][A-Z '&-]{0,39}(?=\.[ \t]*$)"
    r"|(?=.{1,40}:)[A-Z][\w'-]*(?: +(?:of|the|and|to|&|[A-Z][\w'-]*|\d+))*(?=:[ \t]*$))[.:][ \t]*$"
)
_NUMERAL = r"(?:[IVXLCDM]+|\d+|(?i:one|two|three|four|five|six|seven|eight|nine|ten)[\w-]*)\b"
_ORDINAL = r"(?i:first|second|third|fourth|fifth|sixth|seventh|eighth|ninth|tenth|last)"
_HEADINGS = {
    "speaker": _SPEAKER,
    "chapter": rf"[ \t]*(?P<name>(?:CHAPTER|Chapter|LETTER|Letter|CANTO|Canto) +{_NUMERAL}.*)$",
    "book": rf"[ \t]*(?P<name>(?:(?:BOOK|Book) +{_NUMERAL}|(?i:the) +{_ORDINAL} +(?i:book)\b"
    r"(?! +(?!of\b)[a-z])).*)$",
}


def segments_of(contents: list[tuple[str, str]], clients: str) -> dict[str, str]:
    """Splits texts at their headings.

    Args:
        contents: Pairs `(name, text)` of the files.
        clients: `"speaker"`, `"chapter"`, `"book"` or a regular expression, as in `text`.

    Returns:
        `{name: text}` in the order of first appearance; pieces of one name joined by a newline.

    Raises:
        ValueError: No heading is found, or the regular expression is not valid.
    """
    if clients == "book" and len(contents) > 1:
        return _merged(contents)
    pattern = _HEADINGS.get(clients, clients)
    try:
        heading = re.compile(rf"^(?:{pattern})", re.MULTILINE)
    except re.error as error:
        raise ValueError(
            f"Expected {', '.join(map(repr, _HEADINGS))} or a regular expression. Received: "
            f"clients={clients!r}, which is not one ({error}). Correct the expression."
        ) from error
    pieces = [piece for _, content in contents for piece in _pieces(content, heading)]
    if not pieces:
        raise ValueError(
            "Expected headings that start the text of a client. Received: "
            f"clients={clients!r}, which matches no line of the text. Give a regular expression "
            "for the headings, for example clients=r'ACT [IVX]+'."
        )
    return _merged(pieces)


def _pieces(content, heading):
    content = content.replace("\r\n", "\n")
    matches = [match for match in heading.finditer(content) if match.end() > match.start()]
    starts = [match.start() for match in matches] + [len(content)]
    for match, end in zip(matches, starts[1:], strict=True):
        named = next((group for group in match.groups() if group), match.group())
        yield named.strip(), content[match.end() : end].strip("\n")


def _merged(pieces):
    texts = {}
    for name, piece in pieces:
        texts.setdefault(name, []).append(piece)
    return {name: "\n".join(filter(None, parts)) for name, parts in texts.items()}
