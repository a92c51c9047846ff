"""How much the compressed buffers of an Arrow IPC stream hold, before anything is uncompressed.

pyarrow checks and hands out the metadata of a message, but does not tell what is in it; so it is read here, as far
as need be: ``Message.fbs`` of Apache Arrow, in the encoding of FlatBuffers. Not for reading tables.
"""

from __future__ import annotations

from struct import unpack_from
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

_HEADER = 2
"""The field of a Message that is a RecordBatch or a DictionaryBatch."""
_DATA = 1
"""The field of a DictionaryBatch that is a RecordBatch."""
_BUFFERS, _COMPRESSION = 2, 3
"""Fields of a RecordBatch: places and lengths in the message's body, and how they are compressed, if they are."""


def uncompressed_bytes(stream: pa.Buffer) -> int:
    """Bytes of all compressed buffers in `stream` once they are not. Raises what pyarrow, struct and slices do."""
    import pyarrow as pa

    total = 0
    for message in pa.ipc.MessageReader.open_stream(stream):
        if message.type in ("record batch", "dictionary"):
            metadata = message.metadata.to_pybytes()
            batch = _table(metadata, _field(metadata, _table(metadata, 0), _HEADER))
            if message.type == "dictionary":
                batch = _table(metadata, _field(metadata, batch, _DATA))
            if _field(metadata, batch, _COMPRESSION):
                total += sum(_lengths(metadata, _field(metadata, batch, _BUFFERS), memoryview(message.body)))
    return total


def _lengths(metadata: bytes, field: int, body: memoryview) -> list[int]:
    """Of each buffer in the vector at `field`: it begins with its length, or with -1 if it is as it is."""
    if not field:
        return []
    vector = field + unpack_from("<I", metadata, field)[0]
    found = []
    for n in range(unpack_from("<I", metadata, vector)[0]):
        place, length = unpack_from("<qq", metadata, vector + 4 + 16 * n)
        if length:
            found.append(max(length, unpack_from("<q", body, place)[0]))
    return found


def _table(metadata: bytes, at: int) -> int:
    """Where the table lies that the offset at `at` leads to."""
    return at + int(unpack_from("<I", metadata, at)[0])


def _field(metadata: bytes, table: int, number: int) -> int:
    """Where field `number` of `table` lies; 0 if it is not there."""
    vtable = table - unpack_from("<i", metadata, table)[0]
    place = 4 + 2 * number
    if place + 2 > unpack_from("<H", metadata, vtable)[0]:
        return 0
    offset = int(unpack_from("<H", metadata, vtable + place)[0])
    return table + offset if offset else 0
