"""A compressed file as a stream that reports truncation."""

from __future__ import annotations

import bz2
import io
import lzma
import zlib
from collections.abc import Callable
from typing import BinaryIO, Protocol

import zstandard

BLOCK = 1 << 16
"""Compressed bytes to read at a time."""
LARGEST_WINDOW = 1 << 31
"""Largest window of zstd, that of `zstd --long=31`; the library's own limit is 2^27 bytes."""

LARGEST_DICTIONARY = 1 << 27
"""Bytes that xz may need; `xz -9` needs 65 MB."""
SLICE = 1 << 10
"""Bytes of zstd to decompress at a time: a block of four bytes can be 128 KB."""
MOST_EXPANSION, FREE_EXPANSION = 512, 1 << 27
"""Times that a file may expand, after 128 MB: no text does. Windows of zstd fill up to that."""


class Frame(Protocol):
    """A decompressor of one frame, as those of bz2 and lzma are."""

    @property
    def eof(self) -> bool:
        """Whether the frame has ended."""

    @property
    def needs_input(self) -> bool:
        """Whether more bytes are needed to go on."""

    @property
    def unused_data(self) -> bytes:
        """What followed the frame."""

    def decompress(self, data: bytes, most: int, /) -> bytes:
        """Return decompressed bytes, about as many as `most` or fewer."""


class GzipFrame:
    """A member of a gzip file."""

    def __init__(self) -> None:
        self._frame = zlib.decompressobj(wbits=31)  # 31: a gzip header and its checksum
        self.unused_data, self.eof, self.needs_input = b"", False, True

    def decompress(self, data: bytes, most: int, /) -> bytes:
        """Return up to `most` decompressed bytes."""
        ready = self._frame.decompress(self._frame.unconsumed_tail + data, most)
        self.eof, self.unused_data = self._frame.eof, self._frame.unused_data
        # A full buffer may leave more inside.
        self.needs_input = not self._frame.unconsumed_tail and len(ready) < most
        return ready


class ZstdFrame:
    """A frame of zstd."""

    def __init__(self) -> None:
        decompressor = zstandard.ZstdDecompressor(max_window_size=LARGEST_WINDOW)
        self._frame = decompressor.decompressobj()
        self._left = memoryview(b"")
        self.unused_data, self.eof, self.needs_input = b"", False, True

    def decompress(self, data: bytes, most: int, /) -> bytes:
        """Return decompressed bytes: at most 128 KB for each four of a slice."""
        if data:
            self._left = memoryview(data)
        parts, size = [], 0
        while self._left and size < most and not self.eof:
            part = self._frame.decompress(self._left[:SLICE])
            self._left = self._left[SLICE:]
            self.eof = self._frame.eof
            parts.append(part)
            size += len(part)
        self.needs_input = not self._left
        if self.eof:
            self.unused_data = self._frame.unused_data + bytes(self._left)
        return b"".join(parts)


PACKINGS: dict[str, Callable[[], Frame]] = {
    "gz": GzipFrame,
    "zst": ZstdFrame,
    "bz2": bz2.BZ2Decompressor,
    "xz": lambda: lzma.LZMADecompressor(memlimit=LARGEST_DICTIONARY),
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
        self._frame: Frame | None = None
        self._read = self._given = 0
        self._packed = b""
        self._padded = False
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fill `buffer` from the next block; return the number of bytes, 0 at the end."""
        while not self._ready:
            # All decompress to thousands of times the size: they give a buffer at a time.
            waiting = self._frame is not None and not self._frame.needs_input
            if not self._packed and not waiting:
                self._packed = self._source.read(BLOCK)
                self._read += len(self._packed)
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
            self._ready = memoryview(self._frame.decompress(self._packed, len(buffer)))
            self._given += len(self._ready)
            if self._given > FREE_EXPANSION + MOST_EXPANSION * self._read:
                raise EOFError(f"it expands more than {MOST_EXPANSION}-fold: this is no text")
            self._packed = b""
            if self._frame.eof:
                self._packed, self._frame, self._padded = self._frame.unused_data, None, True
        taken = self._ready[: len(buffer)]
        self._ready = self._ready[len(buffer) :]
        buffer[: len(taken)] = taken
        return len(taken)
