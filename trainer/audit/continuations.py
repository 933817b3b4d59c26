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
from schemas.codec import PAD_ID
from trainer.audit.read_training import Ids
from trainer.console import message_console
from trainer.data.vocab_map import read_vocab_map
from trainer.ops.bf16_support import emulation_warning
from trainer.student.attention_ways import set_attention
from trainer.student.context_check import context_length
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
        map_vocab: accept a tokenizer that shares almost all tokens; ids are the label set's, and
            the model never says a token that the set does not have.

    Attributes:
        context: tokens that its configuration is made for.

    Raises:
        IdentityError: its tokenizer is not the label set's.
        SoftshardsError: it cannot be loaded, or its weights are broken.
    """

    def __init__(
        self, path: Path, labels: LabelSet, dtype: str, *, map_vocab: bool = False
    ) -> None:
        self.path = path
        self.vocab_map = read_vocab_map(labels, path) if map_vocab else None
        self.vocab_size = labels.manifest.identity.vocab_size
        if self.vocab_map is not None:
            self.vocab_size = self.vocab_map.student_vocab
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.bf16 = dtype == "bf16"
        if self.bf16 and (warning := emulation_warning(self.device)):
            message_console().print(f"{path}: warning: {warning}")
        model = load_model(path)
        if self.vocab_map is None:
            check_tokenizer(path, labels)
        set_attention(model, "eager")  # others leave out settings, such as Gemma 2's cap of scores
        self.head_rows = int(model.get_output_embeddings().weight.shape[0])
        self._unsaid = self._ids_to_leave_unsaid()
        self.model = model.eval()
        nn.Module.to(self.model, self.device)
        self.context = context_length(model.config) or NO_LIMIT
        self._require_finite()

    def knows(self, ids: Ids) -> bool:
        """Check that the model has every token of a sequence."""
        return self.vocab_map is None or bool((self.vocab_map.ids[ids] != PAD_ID).all())

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
            prefixes: token ids that the model knows, one or more each.
            lengths: number of tokens to generate for each.
            tick: is called as prefixes are done.

        Returns:
            int32 [length] for each prefix.
        """
        done: list[Ids] = [np.zeros(0, np.int32)] * len(prefixes)
        for batch in _batches(prefixes, lengths):
            inputs = self._inputs([prefixes[i] for i in batch])
            longest = max(lengths[i] for i in batch)
            found = self._generate(inputs, longest)
            for i, row in zip(batch, self._as_label_ids(found)):
                done[i] = row[: lengths[i]]
            tick(len(batch))
        return done

    @torch.no_grad()
    def log_likelihoods(self, sequences: Sequence[Ids], tick: Tick) -> NDArray[np.float64]:
        """Return the log-probability of each sequence after its first token: float64 [n]."""
        total = np.zeros(len(sequences))
        at_once = max(1, LOGIT_BYTES // (8 * self.vocab_size))
        for batch in _batches(sequences, [0] * len(sequences), at_once):
            ids = self._inputs([sequences[i] for i in batch])
            with self._precision():
                logits = self.model(input_ids=ids, use_cache=False).logits
            logp = logits[:, :-1, : self.vocab_size].float().log_softmax(-1)
            values = logp.gather(2, ids[:, 1:, None])[:, :, 0].double().sum(1)
            total[batch] = values.cpu().numpy()
            tick(len(batch))
        return total

    def _inputs(self, sequences: Sequence[Ids]) -> Tensor:
        """Return sequences of equal length as the model's ids: int64 [n, length]."""
        ids = np.stack(sequences)
        if self.vocab_map is not None:
            ids = self.vocab_map.map_tokens(ids)
        return torch.from_numpy(ids.astype(np.int64)).to(self.device)

    def _as_label_ids(self, ids: NDArray[np.int32]) -> NDArray[np.int32]:
        """Return ids that the model said as the label set's."""
        if self.vocab_map is None:
            return ids
        theirs = np.zeros(self.vocab_size, np.int32)
        known = np.flatnonzero(self.vocab_map.ids != PAD_ID).astype(np.int32)
        theirs[self.vocab_map.ids[known]] = known
        return theirs[ids]

    def _ids_to_leave_unsaid(self) -> list[int]:
        """Return the rows of the head that are no token of the label set."""
        if self.vocab_map is None:
            return list(range(self.vocab_size, self.head_rows))
        shared = set(self.vocab_map.ids.tolist())
        return [number for number in range(self.head_rows) if number not in shared]

    def _generate(self, inputs: Tensor, length: int) -> NDArray[np.int32]:
        # The checkpoint's own settings, such as a repetition penalty, are replaced.
        self.model.generation_config = GenerationConfig(
            do_sample=False,
            max_new_tokens=length,
            eos_token_id=None,
            pad_token_id=0,
            suppress_tokens=self._unsaid or None,
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
