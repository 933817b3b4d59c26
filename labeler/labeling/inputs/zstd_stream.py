"""A zstd file as a stream that knows when it was cut off."""

from __future__ import annotations

import io
from typing import BinaryIO

import zstandard

BLOCK = 1 << 16
"""Packed bytes unpacked at a time: what is ready is seldom more than some ten times that."""


class ZstdStream(io.RawIOBase):
    """Decompresses one or more frames, a block at a time.

    zstandard's own stream reader takes an end inside a frame for the end of the data; this one
    raises `zstandard.ZstdError` there.
    """

    def __init__(self, source: BinaryIO | io.BufferedReader) -> None:
        self._source = source
        self._frame: zstandard.ZstdDecompressionObj | None = None
        self._packed = b""
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fill `buffer` as far as the next block goes; 0 at the end of the data."""
        while not self._ready:
            if not self._packed:
                self._packed = self._source.read(BLOCK)
            if not self._packed:
                if self._frame is not None:
                    raise zstandard.ZstdError("the file ends inside a zstd frame: it was cut off")
                return 0
            frame = self._frame or zstandard.ZstdDecompressor().decompressobj()
            self._ready = memoryview(frame.decompress(self._packed))
            self._packed = frame.unused_data
            self._frame = None if frame.eof else frame
        taken = self._ready[: len(buffer)]
        self._ready = self._ready[len(buffer) :]
        buffer[: len(taken)] = taken
        return len(taken)
