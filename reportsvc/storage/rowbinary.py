"""Rows in ClickHouse's RowBinary format, which is what both of its interfaces take fastest.

Format: https://clickhouse.com/docs/interfaces/formats/RowBinary
"""

from __future__ import annotations

import struct
from typing import Final

#: For so many in a row.
_UINT32: Final = [struct.Struct(f"<{count}I") for count in range(4)]
_UINT64: Final = struct.Struct("<Q")
_SHORT: Final = [bytes((count,)) for count in range(128)]


def length(count: int) -> bytes:
    """A length or an array size, as LEB128."""
    if count < 128:
        return _SHORT[count]
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


def uint32(*numbers: int) -> bytes:
    """Up to three of UInt32, or of DateTime as unix seconds (outside its range: the nearest end)."""
    try:
        return _UINT32[len(numbers)].pack(*numbers)
    except struct.error:
        return _UINT32[len(numbers)].pack(*(min(max(number, 0), 0xFFFF_FFFF) for number in numbers))


def uint64(number: int) -> bytes:
    """A UInt64."""
    return _UINT64.pack(number)
