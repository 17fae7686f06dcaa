"""Rows in ClickHouse's RowBinary format, which is what both of its interfaces take fastest.

Format: https://clickhouse.com/docs/interfaces/formats/RowBinary
"""

from __future__ import annotations

import struct
from typing import Final

_UINT32: Final = struct.Struct("<I")
_UINT64: Final = struct.Struct("<Q")


def length(count: int) -> bytes:
    """A length or an array size, as LEB128."""
    if count < 128:
        return bytes((count,))
    out = bytearray()
    while count > 127:
        out.append(count & 127 | 128)
        count >>= 7
    out.append(count)
    return bytes(out)


def string(text: str) -> bytes:
    """A String or LowCardinality(String)."""
    data = text.encode("utf-8", "surrogatepass")
    return length(len(data)) + data


def uint8(number: int) -> bytes:
    """A UInt8, or a Bool."""
    return bytes((number,))


def uint32(number: int) -> bytes:
    """A UInt32, or a DateTime as unix seconds (outside its range: the nearest end)."""
    return _UINT32.pack(min(max(number, 0), 0xFFFF_FFFF))


def uint64(number: int) -> bytes:
    """A UInt64."""
    return _UINT64.pack(number)
