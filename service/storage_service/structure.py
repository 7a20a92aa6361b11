"""The size of a JSON document in nodes, and of its numbers, counted without parsing it.

A parser makes an object of about 60 bytes for each node, so a body of a few megabytes can become hundreds. The count
uses functions of `bytes` that scan at memory speed, on pieces of the document, and keeps nothing but four numbers.
"""

import re

MAX_DIGITS = 400
"""Digits of a number in a row. A double has up to 309, and an integer costs the square of its digits to parse."""
_MARKS = b'"[{,'
_OTHERS = bytes(set(range(256)) - set(_MARKS))
_DIGITS_AS_ZERO = bytes.maketrans(b"123456789", b"000000000")
_TOO_MANY_ZEROS = re.compile(rb"0{%d,}" % (MAX_DIGITS + 1))


class NodeCounter:
    """Counts the nodes of a document that is fed piece by piece.

    Attributes:
        nodes: opening brackets and commas outside strings so far: at least the number of values less one.
        in_string: whether the next piece begins inside a string.
    """

    def __init__(self) -> None:
        self.nodes = 0
        self.in_string = False
        self._escape = b""

    def feed(self, piece: bytes) -> None:
        """Count the nodes of the next piece."""
        piece = self._without_escapes(piece)
        # Two quotes without a mark between them enclose nothing that counts, inside and outside a string.
        marks = piece.translate(None, _OTHERS).replace(b'""', b"")
        parts = marks.split(b'"')
        self.nodes += sum(map(len, parts[self.in_string :: 2]))
        self.in_string ^= len(parts) % 2 == 0

    def _without_escapes(self, piece: bytes) -> bytes:
        """Remove escaped quotes and backslashes; an escape that the piece cuts is kept for the next one."""
        if not self._escape and b"\\" not in piece:
            return piece
        piece = (self._escape + piece).replace(b"\\\\", b"")
        self._escape = b"\\" if piece.endswith(b"\\") else b""
        return piece.removesuffix(b"\\").replace(b'\\"', b"")


def has_long_number(text: bytes) -> bool:
    """Return whether a document has a number with more than `MAX_DIGITS` digits in a row; strings may have as many."""
    digits = text.translate(_DIGITS_AS_ZERO)
    if b"0" * (MAX_DIGITS + 1) not in digits:
        return False
    counter, start = NodeCounter(), 0
    for found in _TOO_MANY_ZEROS.finditer(digits):
        counter.feed(text[start : found.start()])
        if not counter.in_string:
            return True
        start = found.start()
    return False
