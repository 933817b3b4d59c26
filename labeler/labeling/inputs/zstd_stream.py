"""A zstd file as a stream that reports truncation."""

from __future__ import annotations

import io
from typing import BinaryIO

import zstandard

BLOCK = 1 << 16
"""Compressed bytes to read at a time; they rarely decompress to more than ten times that."""


class ZstdStream(io.RawIOBase):
    """Decompress one or more frames, block by block.

    An end inside a frame raises `zstandard.ZstdError`; zstandard's own stream reader takes it for
    the end of the data.
    """

    def __init__(self, source: BinaryIO | io.BufferedReader) -> None:
        self._source = source
        self._frame: zstandard.ZstdDecompressionObj | None = None
        self._packed = b""
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fill `buffer` from the next block; return the number of bytes, 0 at the end."""
        while not self._ready:
            if not self._packed:
                self._packed = self._source.read(BLOCK)
            if not self._packed:
                if self._frame is not None:
                    raise zstandard.ZstdError("the file ends inside a zstd frame: it is truncated")
                return 0
            frame = self._frame or zstandard.ZstdDecompressor().decompressobj()
            self._ready = memoryview(frame.decompress(self._packed))
            self._packed = frame.unused_data
            self._frame = None if frame.eof else frame
        taken = self._ready[: len(buffer)]
        self._ready = self._ready[len(buffer) :]
        buffer[: len(taken)] = taken
        return len(taken)
