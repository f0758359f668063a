"""The elements of a JSON array, as a file's records: found without keeping more than one of them in memory."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import BinaryIO

_BLOCK = 1 << 20
_SPACE = b" \t\r\n"
_OPENING = re.compile(rb"(?:\xef\xbb\xbf)?[ \t\r\n]*\[")
#: Outside of a text: a whole one without escapes, the beginning of another, or what opens, closes or divides.
_OUTSIDE = re.compile(rb'"[^"\\]*"|["\[\]{},]')
_INSIDE = re.compile(rb'["\\]')


def begins_array(head: bytes) -> bool:
    """Whether a file's first bytes are those of a JSON array. A line of JSON lines may be one, too."""
    return _OPENING.match(head) is not None


def split_array(stream: BinaryIO, offset: int) -> Iterator[tuple[int, bytes]]:
    """The offset and bytes of every element from `offset` on, where `stream` stands and an element begins.

    At 0 stands the array itself. Raises ValueError where there is not one array from the first byte to the last.
    """
    for start, element in _elements(stream, offset):
        yield start, element.strip(_SPACE)


def raw_elements(stream: BinaryIO) -> Iterator[bytes]:
    """Every element of the array with the space before and behind it. Raises as `split_array` does."""
    for _, element in _elements(stream, 0):
        yield element


def _elements(stream: BinaryIO, offset: int) -> Iterator[tuple[int, bytes]]:
    block = stream.read(_BLOCK)
    if offset == 0:
        opening = _OPENING.match(block)
        if opening is None:
            raise ValueError("no array")
        offset, block = opening.end(), block[opening.end() :]
    depth, start, first = 1, offset, True
    element, sign = list[bytes](), b""
    pieces = _pieces(stream, block)
    for piece, sign in pieces:
        offset += len(piece) + len(sign)
        depth += (sign in (b"[", b"{")) - (sign in (b"]", b"}"))
        if depth == 0 or (depth == 1 and sign == b","):
            content = b"".join([*element, piece])
            if content.strip(_SPACE) or sign == b"," or not first:
                yield start, content
            start, first, element = offset, False, []
            if depth == 0:
                break
        else:
            element += piece, sign
    if depth > 0 or sign != b"]":
        raise ValueError("the array is never closed")
    if any(piece.strip(_SPACE) or sign for piece, sign in pieces):
        raise ValueError("the file goes on behind the array")


def _pieces(stream: BinaryIO, block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """`block` and the rest of the stream, cut at every bracket and comma outside of texts: what is before it, and it.

    Where a block ends there is no such sign, but b"".
    """
    quoted, at, block = False, 0, block or stream.read(_BLOCK)
    while block:
        begin = 0
        while found := (_INSIDE if quoted else _OUTSIDE).search(block, at):
            at, sign = found.end(), found[0]
            if sign == b'"':
                quoted = not quoted
            elif sign == b"\\":
                at += 1
            elif len(sign) == 1:
                yield block[begin : at - 1], sign
                begin = at
        yield block[begin:], b""
        at = max(at - len(block), 0)  # 1 behind a backslash that was the last byte
        block = stream.read(_BLOCK)
