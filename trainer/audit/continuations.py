"""Run a model: greedy continuations of prefixes, and log-likelihoods of sequences."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import GenerationConfig

from schemas import LabelSet, SoftshardsError
from trainer.audit.read_training import Ids
from trainer.student.attention_ways import set_attention
from trainer.student.context_check import CONTEXT_NAMES
from trainer.student.load_model import LOAD_ERRORS, load_model
from trainer.student.tokenizer_check import check_tokenizer

BATCH_TOKENS = 4096
"""Tokens, read or generated, of the sequences that are run at once."""
LOGIT_BYTES = 1 << 28
"""Memory for the logits of the sequences that are scored at once."""
NO_LIMIT = 1 << 40

Tick = Callable[[int], None]
"""Called with the number of sequences that are done."""


class _Generates(Protocol):
    def generate(self, inputs: Tensor, *, attention_mask: Tensor) -> Tensor:
        """Return the inputs and what follows."""


class Speaker:
    """A model that continues and scores token ids of a label set's tokenizer.

    Args:
        path: its checkpoint folder.
        labels: the label set.
        dtype: fp32 or bf16, under autocast.

    Attributes:
        context: tokens that its configuration is made for.

    Raises:
        IdentityError: its tokenizer is not the label set's.
        SoftshardsError: it cannot be loaded, or its weights are broken.
    """

    def __init__(self, path: Path, labels: LabelSet, dtype: str) -> None:
        self.path = path
        self.vocab_size = labels.manifest.identity.vocab_size
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.bf16 = dtype == "bf16"
        model = load_model(path)
        check_tokenizer(path, labels)
        if model.config._attn_implementation == "flash_attention_2":
            set_attention(model, "sdpa")  # flash attention does not run in float32
        self.head_rows = int(model.get_output_embeddings().weight.shape[0])
        self.model = model.eval()
        nn.Module.to(self.model, self.device)
        text = self.model.config.get_text_config()
        found = (getattr(text, name, None) for name in CONTEXT_NAMES)
        self.context = next((n for n in found if isinstance(n, int) and n > 0), NO_LIMIT)
        self._require_finite()

    def require_context(self, length: int) -> None:
        """Check that the model has positions for sequences of this length.

        Raises:
            SoftshardsError: it has fewer.
        """
        if length > self.context:
            raise SoftshardsError(
                f"prefix and continuation are {length} tokens, and the model has {self.context} "
                "positions",
                path=self.path,
                hint="lower --prefix or --continuation",
            )

    @torch.no_grad()
    def continue_greedily(
        self, prefixes: Sequence[Ids], lengths: Sequence[int], tick: Tick
    ) -> list[Ids]:
        """Return the most likely next tokens after each prefix, one after the other.

        An end of sequence is a token like others. Prefixes of equal length are run together, so
        that no model needs to ignore padding.

        Args:
            prefixes: token ids, one or more each.
            lengths: number of tokens to generate for each.
            tick: is called as prefixes are done.

        Returns:
            int32 [length] for each prefix.
        """
        done: list[Ids] = [np.zeros(0, np.int32)] * len(prefixes)
        for batch in _batches(prefixes, lengths):
            inputs = torch.from_numpy(np.stack([prefixes[i] for i in batch]).astype(np.int64))
            longest = max(lengths[i] for i in batch)
            found = self._generate(inputs.to(self.device), longest)
            for i, row in zip(batch, found):
                done[i] = row[: lengths[i]]
            tick(len(batch))
        return done

    @torch.no_grad()
    def log_likelihoods(self, sequences: Sequence[Ids], tick: Tick) -> NDArray[np.float64]:
        """Return the log-probability of each sequence after its first token: float64 [n]."""
        total = np.zeros(len(sequences))
        at_once = max(1, LOGIT_BYTES // (8 * self.vocab_size))
        for batch in _batches(sequences, [0] * len(sequences), at_once):
            ids = torch.from_numpy(np.stack([sequences[i] for i in batch]).astype(np.int64))
            ids = ids.to(self.device)
            with self._precision():
                logits = self.model(input_ids=ids, use_cache=False).logits
            logp = logits[:, :-1, : self.vocab_size].float().log_softmax(-1)
            values = logp.gather(2, ids[:, 1:, None])[:, :, 0].double().sum(1)
            total[batch] = values.cpu().numpy()
            tick(len(batch))
        return total

    def _generate(self, inputs: Tensor, length: int) -> NDArray[np.int32]:
        # The checkpoint's own settings, such as a repetition penalty, are replaced.
        self.model.generation_config = GenerationConfig(
            do_sample=False,
            max_new_tokens=length,
            eos_token_id=None,
            pad_token_id=0,
            suppress_tokens=list(range(self.vocab_size, self.head_rows)) or None,
        )
        try:
            with self._precision():
                found = cast(_Generates, self.model).generate(
                    inputs, attention_mask=torch.ones_like(inputs)
                )
        except LOAD_ERRORS as error:
            raise SoftshardsError(
                f"the model, a {type(self.model).__name__}, cannot generate: {error}",
                path=self.path,
            ) from error
        new: NDArray[np.int32] = found[:, inputs.shape[1] :].cpu().numpy().astype(np.int32)
        return new

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    @torch.no_grad()
    def _require_finite(self) -> None:
        ids = torch.arange(1, 9, device=self.device)[None] % self.vocab_size
        if not self.model(input_ids=ids, use_cache=False).logits.isfinite().all():
            raise SoftshardsError(
                "the model's logits are not finite: its weights are broken", path=self.path
            )


def _batches(
    sequences: Sequence[Ids], lengths: Sequence[int], tokens: int = BATCH_TOKENS
) -> Iterator[list[int]]:
    """Yield numbers of sequences of equal length, those with similar `lengths` together."""
    groups: defaultdict[int, list[int]] = defaultdict(list)
    for number, ids in enumerate(sequences):
        groups[len(ids)].append(number)
    for size, members in groups.items():
        members.sort(key=lambda number: lengths[number])
        start = 0
        while start < len(members):
            stop = start + 1
            while (
                stop < len(members)
                and (stop + 1 - start) * (size + lengths[members[stop]]) <= tokens
            ):
                stop += 1
            yield members[start:stop]
            start = stop
