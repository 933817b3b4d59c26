"""A compressed file as a stream that reports truncation."""

from __future__ import annotations

import bz2
import io
import lzma
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO

import zstandard

BLOCK = 1 << 16
"""Compressed bytes to read at a time."""
LARGEST_WINDOW = 1 << 31
"""Largest window of zstd, that of `zstd --long=31`; the library's own limit is 2^27 bytes."""

PACKINGS: dict[str, Callable[[], Any]] = {
    "gz": lambda: zlib.decompressobj(wbits=31),  # 31: a gzip header and its checksum
    "zst": lambda: zstandard.ZstdDecompressor(max_window_size=LARGEST_WINDOW).decompressobj(),
    "bz2": bz2.BZ2Decompressor,
    "xz": lzma.LZMADecompressor,
}
"""Decompressors of one frame, by the suffix of their files."""
UNPACK_ERRORS = (OSError, EOFError, zlib.error, zstandard.ZstdError, lzma.LZMAError)
"""Errors that `PackedStream` raises for a damaged file."""


class PackedStream(io.RawIOBase):
    """Decompress one or more frames, block by block.

    An end inside a frame raises `EOFError`, and bytes after a frame that are no frame raise the
    decompressor's error; readers of the standard library may take either for the end of the data.
    Zeros after a frame are padding, as tapes and block devices add it.
    """

    def __init__(self, source: BinaryIO | io.BufferedReader, packing: str) -> None:
        self._source, self._new = source, PACKINGS[packing]
        self._frame: Any = None
        self._packed = b""
        self._padded = False
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fill `buffer` from the next block; return the number of bytes, 0 at the end."""
        while not self._ready:
            # bzip2 and xz decompress to thousands of times the size: they give a buffer at a time.
            waiting = self._frame is not None and not getattr(self._frame, "needs_input", True)
            if not self._packed and not waiting:
                self._packed = self._source.read(BLOCK)
                if not self._packed and self._frame is not None:
                    raise EOFError("the file ends inside a compressed frame: it is truncated")
                if not self._packed:
                    return 0
            if self._frame is None:
                if self._padded:
                    self._packed = self._packed.lstrip(b"\0")
                    if not self._packed:
                        continue
                self._frame = self._new()
            most = (len(buffer),) if hasattr(self._frame, "needs_input") else ()
            self._ready = memoryview(self._frame.decompress(self._packed, *most))
            self._packed = b""
            if self._frame.eof:
                self._packed, self._frame, self._padded = self._frame.unused_data, None, True
        taken = self._ready[: len(buffer)]
        self._ready = self._ready[len(buffer) :]
        buffer[: len(taken)] = taken
        return len(taken)
