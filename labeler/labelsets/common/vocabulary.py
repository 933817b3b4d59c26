"""Token ids as readable text, with characters joined that are cut across tokens."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

from tokenizers import Tokenizer

from labeler.labelsets.common.tokenizer_file import (
    TOKENIZER_JSON,
    as_tokenizer_errors,
    load_with_transformers,
)

CUT = "\ufffd"
"""The character that incomplete bytes are decoded to."""


class ShownVocabulary(TypedDict):
    """Part of a vocabulary, as JSON values."""

    texts: dict[int, str]
    fragments: list[int]
    special: list[int]


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """The text of each token id.

    Attributes:
        texts: by id, the text of a token inside a sequence; for a fragment, its bytes in
            hexadecimal (`E2 80`).
        fragments: the bytes of tokens that are not complete characters.
        special: ids that are markup rather than text.
    """

    texts: list[str]
    fragments: dict[int, bytes]
    special: frozenset[int]
    _tokenizer: Tokenizer = field(repr=False)

    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """Return the text of each row of ids, with special tokens."""
        return self._tokenizer.decode_batch(rows, skip_special_tokens=False)

    def join_fragments(self, ids: Iterable[int]) -> dict[int, str]:
        """Return the characters that several tokens make together, by position in `ids`.

        The first token of such a group has the text of the group, the others have the empty text.
        A fragment that completes no character is in no group.
        """
        found: dict[int, str] = {}
        places: list[int] = []
        data = b""
        for place, token in enumerate(ids):
            part = self.fragments.get(token)
            if part is None:
                places, data = [], b""
                continue
            places, data = [*places, place], data + part
            text = _characters(data)
            if text is None:  # invalid UTF-8: if there is a group, it begins here
                places, data = [place], part
                text = _characters(part)
            if text:
                found |= dict.fromkeys(places, "") | {places[0]: text}
            if text or text is None:
                places, data = [], b""
        return found

    def shown(self, ids: Iterable[int]) -> ShownVocabulary:
        """Return the part of the vocabulary that a page needs to show `ids`, as JSON values."""
        used = sorted(set(ids))
        return {
            "texts": {i: self.texts[i] for i in used},
            "fragments": [i for i in used if i in self.fragments],
            "special": [i for i in used if i in self.special],
        }


def open_vocabulary(directory: Path, size: int) -> Vocabulary:
    """Open the vocabulary of a tokenizer's folder, ids 0 to `size` - 1.

    Raises:
        SoftshardsError: the tokenizer cannot be loaded.
    """
    tokenizer = _load(directory)
    # A decoder may strip the space before the first word, so each token is decoded as the second.
    anchor = tokenizer.encode("a", add_special_tokens=False).ids[-1:]
    [before] = tokenizer.decode_batch([anchor], skip_special_tokens=False)
    texts = [
        text.removeprefix(before)
        for text in tokenizer.decode_batch(
            [[*anchor, token] for token in range(size)], skip_special_tokens=False
        )
    ]
    fragments = {
        token: data
        for token, text in enumerate(texts)
        if CUT in text and (data := _bytes(tokenizer.id_to_token(token))) is not None
    }
    for token, data in fragments.items():
        texts[token] = data.hex(" ").upper()
    added = tokenizer.get_added_tokens_decoder().items()
    special = frozenset(token for token, facts in added if facts.special)
    return Vocabulary(texts=texts, fragments=fragments, special=special, _tokenizer=tokenizer)


def _load(directory: Path) -> Tokenizer:
    """Load tokenizer.json in a tenth of a second; without one, use transformers, in seconds."""
    file = directory / TOKENIZER_JSON
    with as_tokenizer_errors(directory):
        if file.is_file():
            return Tokenizer.from_file(str(file))
        loaded: Any = load_with_transformers(directory)
        backend: Tokenizer = loaded.backend_tokenizer
        return backend


def _characters(data: bytes) -> str | None:
    """Decode UTF-8: the empty text if bytes are missing at the end, None if it is invalid."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        return "" if error.reason == "unexpected end of data" else None


def _bytes(token: str | None) -> bytes | None:
    """Return the bytes that a token spells as `<0xE2>` or in byte-level BPE's alphabet, or None."""
    if token is None:
        return None
    if named := re.fullmatch("<0x([0-9A-Fa-f]{2})>", token):
        return bytes.fromhex(named[1])
    if all(character in BYTE_OF for character in token):
        return bytes(BYTE_OF[character] for character in token)
    return None


def _byte_alphabet() -> dict[str, int]:
    """Return byte-level BPE's alphabet: each byte as itself, or as the next one from U+0100."""
    itself = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(0x100) if byte not in itself]
    return {chr(b): b for b in itself} | {chr(0x100 + n): b for n, b in enumerate(others)}


BYTE_OF = _byte_alphabet()
