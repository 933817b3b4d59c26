"""A server's answers, parsed JSON of the completions API, to label rows (ids, logprobs).

Rows are what `capture.labels_from_rows` takes: [n, 1 + k], the actual token in column 0.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from labeler.labeling.engines.capture import CaptureError

Rows = tuple[NDArray[np.int32], NDArray[np.float32]]
Pairs = list[tuple[int, float]]
UNKNOWN = "\ufffd"
"""Text that a tokenizer decodes part of a character to."""


class TextLogprobs(TypedDict):
    """`logprobs` of an answer that names tokens by text; one entry per position."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]


@dataclass(frozen=True, kw_only=True)
class TokenTexts:
    """A tokenizer's tokens as text, for servers that do not name ids.

    Attributes:
        texts: the text of each id.
        ids: the id of each text that only one id has.
    """

    texts: list[str]
    ids: dict[str, int]

    @property
    def share(self) -> float:
        """Return the share of ids that their text identifies."""
        return len(self.ids) / len(self.texts)


def token_texts(tokenizer: Any, vocab_size: int) -> TokenTexts:
    """Decode every id by itself, special tokens too."""
    texts = tokenizer.batch_decode(
        [[i] for i in range(vocab_size)],
        skip_special_tokens=False,
        clean_up_tokenization_spaces=False,
    )
    count = Counter(texts)
    ids = {t: i for i, t in enumerate(texts) if t and count[t] == 1 and UNKNOWN not in t}
    return TokenTexts(texts=texts, ids=ids)


@contextlib.contextmanager
def check_answer() -> Iterator[None]:
    """Turn errors from a malformed answer into a CaptureError, which becomes a reject."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise CaptureError(
            f"the server's answer is malformed: {type(error).__name__} {error}"
        ) from error


def scored_by_id(
    choice: dict[str, Any], tokens: Sequence[int], where: Sequence[int], k: int
) -> Rows:
    """Return rows of `prompt_logprobs` (vLLM) at the positions `where` of the prompt `tokens`.

    Raises:
        CaptureError: the server scored another prompt, or returned fewer than k logprobs.
    """
    if choice["prompt_token_ids"] != list(tokens):
        raise CaptureError("the server scored a different prompt")
    given = choice["prompt_logprobs"]
    if len(given) != len(tokens):
        raise CaptureError(f"the server returned {len(given)} positions, expected {len(tokens)}")
    rows = [[(int(i), entry["logprob"]) for i, entry in given[t].items()] for t in where]
    return _stack(rows, [tokens[t] for t in where], k)


def generated_by_id(choice: dict[str, Any], k: int) -> tuple[list[int], Rows]:
    """Return ids and rows of a generation whose tokens are spelled `token_id:N` (vLLM).

    Raises:
        CaptureError: as `scored_by_id`.
    """
    ids = choice["token_ids"]
    given = choice["logprobs"]["top_logprobs"]
    if len(given) != len(ids):
        raise CaptureError(f"the server returned {len(given)} positions for {len(ids)} tokens")
    rows = [[(int(text.split(":")[1]), p) for text, p in entry.items()] for entry in given]
    return ids, _stack(rows, ids, k)


def scored_by_text(
    choice: dict[str, Any], tokens: Sequence[int], where: Sequence[int], k: int, known: TokenTexts
) -> Rows:
    """Return rows of an echoed prompt at the positions `where` of the prompt `tokens`.

    Raises:
        CaptureError: the server echoed other tokens.
    """
    given: TextLogprobs = choice["logprobs"]
    if len(given["tokens"]) < len(tokens):
        got = len(given["tokens"])
        raise CaptureError(f"the server returned {got} positions, expected {len(tokens)}")
    for t, token in enumerate(tokens):
        _require_text(given["tokens"][t], token, known)
    rows = [_text_row(given, t, tokens[t], known) for t in where]
    return _stack(rows, [tokens[t] for t in where], k, filler=len(known.texts))


def generated_by_text(
    choice: dict[str, Any], k: int, known: TokenTexts, tokenizer: Any
) -> tuple[list[int], Rows]:
    """Return ids and rows of a generation whose tokens are identified by their text.

    Raises:
        CaptureError: a token's text belongs to several ids or to none, and tokenizing the whole
            text does not settle it.
    """
    given: TextLogprobs = choice["logprobs"]
    ids = [known.ids.get(text, -1) for text in given["tokens"]]
    if -1 in ids:
        again = tokenizer.encode("".join(given["tokens"]), add_special_tokens=False)
        if len(again) != len(ids) or any(a != b for a, b in zip(again, ids) if b != -1):
            text = given["tokens"][ids.index(-1)]
            raise CaptureError(f"a generated token cannot be identified by its text {text!r}")
        ids = again
    rows = [_text_row(given, t, token, known) for t, token in enumerate(ids)]
    return ids, _stack(rows, ids, k, filler=len(known.texts))


def _require_text(text: str, token: int, known: TokenTexts) -> None:
    ours = known.texts[token]
    if text != ours and UNKNOWN not in ours:
        raise CaptureError(f"the server echoed {text!r} where token {token} is {ours!r}")


def _text_row(given: TextLogprobs, t: int, token: int, known: TokenTexts) -> Pairs:
    """Return the row of one position: the actual token, and the most likely texts as ids.

    A text that names no id gets the first id past the vocabulary, like padding of a head: it is
    dropped later, and its mass becomes part of the tail.
    """
    own = given["tokens"][t]
    others = {text: p for text, p in given["top_logprobs"][t].items() if text != own}
    pairs = [(known.ids.get(text, len(known.texts)), p) for text, p in others.items()]
    return [(token, given["token_logprobs"][t]), *(pair for pair in pairs if pair[0] != token)]


def _stack(rows: list[Pairs], tokens: Sequence[int], k: int, filler: int | None = None) -> Rows:
    """Return rows as arrays; one with fewer than k pairs is padded with `filler`.

    A server lists the k most likely ids and the actual token, each once: k pairs where it is among
    them and k + 1 where it is not. Where it ties with the last of k + 1, it is the one outside.
    """
    ids = np.full((len(rows), 1 + k), -1 if filler is None else filler, np.int32)
    logprobs = np.full((len(rows), 1 + k), -np.inf, np.float32)
    for n, (row, token) in enumerate(zip(rows, tokens)):
        own = [pair for pair in row if pair[0] == token]
        top = sorted(row, key=lambda pair: (-pair[1], pair[0] == token))[:k]
        if not own:
            raise CaptureError(f"the server returned no logprob of token {token}")
        if len(top) < k and filler is None:
            raise CaptureError(
                f"the server returned {len(top)} logprobs at a position, expected {k}"
            )
        pairs = own[:1] + top
        ids[n, : len(pairs)] = [pair[0] for pair in pairs]
        logprobs[n, : len(pairs)] = [pair[1] for pair in pairs]
    return ids, logprobs
