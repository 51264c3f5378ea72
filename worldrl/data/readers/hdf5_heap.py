"""A guard against damage that makes the HDF5 library loop for ever.

Strings of variable length live in global heap collections: blocks of objects, the last of which
has the number 0 and the size of the space that is left. Where damage leads the library to an
object 0 of size 0, it walks on the spot (seen with HDF5 2.0.0). Format: HDF5 File Format
Specification 4.0, section III.E, with 8-byte lengths, which is what h5py and the HDF5 tools write.
"""

from __future__ import annotations

import mmap
from pathlib import Path
from struct import unpack_from

_HEADER = 16  # of a collection and of an object


def heap_is_endless(path: Path) -> bool:
    """Whether some global heap collection of the file would be walked for ever."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        start = data.find(b"GCOL")
        while start >= 0:
            if _walks_for_ever(data, start):
                return True
            start = data.find(b"GCOL", start + 4)
    return False


def _walks_for_ever(data: mmap.mmap, start: int) -> bool:
    if start + _HEADER > len(data) or data[start + 4] != 1:
        return False  # the library refuses other versions
    end = min(start + unpack_from("<Q", data, start + 8)[0], len(data))
    position = start + _HEADER
    while position + _HEADER <= end:
        number, size = unpack_from("<H6xQ", data, position)
        if number == 0 and size == 0:
            return True
        position += size if number == 0 else _HEADER + (size + 7) // 8 * 8
    return False
