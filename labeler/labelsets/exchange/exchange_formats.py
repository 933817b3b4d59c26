"""Exchange formats: their columns, the alignment of their rows, and what they lose."""

from __future__ import annotations

from dataclasses import dataclass

FILL = -1e4
"""Log-probability of an empty entry, in formats whose rows must be rectangular.

exp(FILL) is 0, and unlike -inf it makes no NaN of a masked loss, in float16 either."""
IGNORED = -100
"""Label of a token without a loss, as torch and transformers define it."""

NEXT = (
    "entry t is the distribution of input_ids[t + 1], given the tokens up to t: the model's output "
    "at t, unshifted; the last entry is padding"
)
NAMES = "ids, sources, meta, texts and finish reasons of rows"
TENSORS_LOSE = (
    "the tail: the mass outside the top-k",
    "the log-probability of an actual token outside the top-k",
    "entropy and log_normalizer",
    "kinds of spans",
    NAMES,
)


@dataclass(frozen=True, kw_only=True)
class ExchangeFormat:
    """The properties of one format.

    Attributes:
        columns: columns of its rows, by which a file is recognized.
        alignment: which entry holds the distribution of which token, in words.
        loses: parts of a label set that it has no place for.
        suffixes: suffixes of its files, compressed or not.
        shift: entry t holds the distribution of the token at t + shift; 0 for formats with spans.
    """

    columns: tuple[str, ...]
    alignment: str
    loses: tuple[str, ...]
    suffixes: tuple[str, ...]
    shift: int = 0


JSONL_SUFFIXES = (".jsonl", ".jsonl.zst")
FORMATS = {
    "distillkit": ExchangeFormat(
        columns=("input_ids", "token_ids", "top_values"),
        alignment=NEXT,
        loses=TENSORS_LOSE,
        suffixes=(".parquet",),
        shift=1,
    ),
    "axolotl": ExchangeFormat(
        columns=("input_ids", "target_token_ids", "target_logprobs", "target_mask"),
        alignment=NEXT,
        loses=TENSORS_LOSE,
        suffixes=(".parquet",),
        shift=1,
    ),
    "jsonl": ExchangeFormat(
        columns=("input_ids", "spans", "topk_ids", "topk_logprobs"),
        alignment=(
            "label j is the distribution of the j-th token inside the spans, in their order, given "
            "the tokens before it"
        ),
        loses=(),
        suffixes=JSONL_SUFFIXES,
    ),
    "trl": ExchangeFormat(
        columns=("prompt", "completion"),
        alignment="none: the completion is the text from the first labeled token on",
        loses=("all soft labels", "token ids", "kinds of spans", NAMES),
        suffixes=JSONL_SUFFIXES,
    ),
}
