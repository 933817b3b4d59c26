"""The files of others: which there are, how their rows are aligned, and what they lose."""

from __future__ import annotations

from dataclasses import dataclass

FILL = -1e4
"""Log-probability of a place that holds nothing, in formats whose rows must be rectangular.

exp(FILL) is 0, and unlike -inf it makes no NaN of a masked loss, in float16 either."""

NEXT = (
    "entry t is the distribution of input_ids[t + 1], given the tokens up to t: that of the output "
    "at t, unshifted; the last entry is filling"
)
NO_NAMES = "ids, sources, meta, texts and finish reasons of rows"
TENSORS_LOSE = (
    "the tail: the mass outside the top-k",
    "the log-probability of an actual token outside the top-k",
    "entropy and log_normalizer",
    "kinds of spans",
    NO_NAMES,
)


@dataclass(frozen=True, kw_only=True)
class Format:
    """One format.

    Attributes:
        columns: what its rows have, and by which they are known.
        alignment: where the label of a token stands.
        loses: what of a label set it has no place for.
        suffixes: of its files, the compressed ones too.
        shift: the label at entry t is of the token at t + shift; for formats with spans, 0.
    """

    columns: tuple[str, ...]
    alignment: str
    loses: tuple[str, ...]
    suffixes: tuple[str, ...]
    shift: int = 0


JSONL_SUFFIXES = (".jsonl", ".jsonl.zst")
FORMATS = {
    "distillkit": Format(
        columns=("input_ids", "token_ids", "top_values"),
        alignment=NEXT,
        loses=TENSORS_LOSE,
        suffixes=(".parquet",),
        shift=1,
    ),
    "axolotl": Format(
        columns=("input_ids", "target_token_ids", "target_logprobs", "target_mask"),
        alignment=NEXT,
        loses=TENSORS_LOSE,
        suffixes=(".parquet",),
        shift=1,
    ),
    "jsonl": Format(
        columns=("input_ids", "spans", "topk_ids", "topk_logprobs"),
        alignment=(
            "label j is the distribution of the j-th token inside the spans, in their order, given "
            "the tokens before it"
        ),
        loses=(),
        suffixes=JSONL_SUFFIXES,
    ),
    "trl": Format(
        columns=("prompt", "completion"),
        alignment="none: the completion is the text from the first labeled token on",
        loses=("all soft labels", "token ids", "kinds of spans", NO_NAMES),
        suffixes=JSONL_SUFFIXES,
    ),
}
