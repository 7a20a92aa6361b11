"""The size of a JSON document in nodes, counted without parsing it.

A parser makes an object of about 60 bytes for each node, so a body of a few megabytes can become hundreds. The count
uses functions of `bytes` that scan at memory speed, on pieces of the document, and keeps nothing but four numbers.
"""

_MARKS = b'"[{,'
_OTHERS = bytes(set(range(256)) - set(_MARKS))


class NodeCounter:
    """Counts the nodes of a document that is fed piece by piece.

    Attributes:
        nodes: opening brackets and commas outside strings so far: at least the number of values less one.
    """

    def __init__(self) -> None:
        self.nodes = 0
        self._in_string = False
        self._escape = b""

    def feed(self, piece: bytes) -> None:
        """Count the nodes of the next piece."""
        piece = self._without_escapes(piece)
        # Two quotes without a mark between them enclose nothing that counts, inside and outside a string.
        marks = piece.translate(None, _OTHERS).replace(b'""', b"")
        parts = marks.split(b'"')
        self.nodes += sum(map(len, parts[self._in_string :: 2]))
        self._in_string ^= len(parts) % 2 == 0

    def _without_escapes(self, piece: bytes) -> bytes:
        """Remove escaped quotes and backslashes; an escape that the piece cuts is kept for the next one."""
        if not self._escape and b"\\" not in piece:
            return piece
        piece = (self._escape + piece).replace(b"\\\\", b"")
        self._escape = b"\\" if piece.endswith(b"\\") else b""
        return piece.removesuffix(b"\\").replace(b'\\"', b"")
