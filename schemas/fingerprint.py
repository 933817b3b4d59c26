"""Digests of files, of JSON values and of tokenizers."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from schemas.json_values import parse_object

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
)


def sha256_bytes(data: bytes | memoryview) -> str:
    """Return the hex SHA-256 of a buffer."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Return the hex SHA-256 of a file, read in blocks."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def canonical_json(value: object) -> bytes:
    """Return the canonical spelling of a JSON value: sorted keys, no spaces, UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def sha256_json(value: object) -> str:
    """Return the hex SHA-256 of a JSON value in its canonical spelling."""
    return sha256_bytes(canonical_json(value))


def tokenizer_digest(tokenizer_dir: Path) -> str:
    """Return a digest of what a tokenizer *does*: vocabulary, merges, normalizer, added tokens.

    Files of one tokenizer from different library versions differ in formatting and in the
    `padding` and `truncation` state that the last call left behind. Neither changes an id, so
    neither is hashed. The chat template has a digest of its own.

    Args:
        tokenizer_dir: a folder with a `tokenizer.json` (fast tokenizers) or other vocabulary files.

    Raises:
        FileNotFoundError: the folder holds no tokenizer file.
        ValueError: its `tokenizer.json` is not a JSON object.
    """
    fast = tokenizer_dir / "tokenizer.json"
    if fast.exists():
        return _fast_tokenizer_digest(fast.read_bytes())
    names = ("vocab.json", "merges.txt", "tokenizer.model", "added_tokens.json")
    digests = {n: sha256_file(tokenizer_dir / n) for n in names if (tokenizer_dir / n).exists()}
    if not digests:
        raise FileNotFoundError(f"{tokenizer_dir} holds no tokenizer.json and no vocabulary file")
    return sha256_json(digests)


_FAST_TOKENIZERS: dict[str, str] = {}
"""Digests by the hash of `tokenizer.json`: a command may check one tokenizer several times."""


def _fast_tokenizer_digest(file: bytes) -> str:
    key = sha256_bytes(file)
    if key not in _FAST_TOKENIZERS:
        content = parse_object(file)
        content.pop("padding", None)
        content.pop("truncation", None)
        _FAST_TOKENIZERS[key] = sha256_json(content)
    return _FAST_TOKENIZERS[key]


def weights_digest(model_dir: Path, *, full: bool = True) -> str:
    """Return a digest of a checkpoint's weight files.

    Args:
        model_dir: a Hugging Face checkpoint folder.
        full: hash every byte. False hashes file names, sizes and the safetensors headers (names,
            dtypes, shapes), which takes no time but misses changed values.

    Raises:
        FileNotFoundError: the folder holds no weights.
    """
    files = sorted([*model_dir.glob("*.safetensors"), *model_dir.glob("*.bin")])
    if not files:
        raise FileNotFoundError(f"{model_dir} holds no *.safetensors and no *.bin")
    if full:
        return sha256_json({path.name: sha256_file(path) for path in files})
    return sha256_json({path.name: [path.stat().st_size, _header(path)] for path in files})


def _header(path: Path) -> str:
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = stream.read(length) if path.suffix == ".safetensors" and length < 1 << 27 else b""
    return sha256_bytes(header)
