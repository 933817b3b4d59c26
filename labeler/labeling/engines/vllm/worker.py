"""Code that runs inside vLLM's workers: labels of the wanted positions only, with exact tails.

The wanted positions of all prompts in a step pass the head together, in blocks, and their labels
reach the host in one copy: neither grows with the number of requests.

vLLM mixes `LabelWorker` into its worker class (`worker_extension_cls`). Nothing changes until
`softshards_install` is called, and `softshards_uninstall` restores everything. `vllm_self_test`
calls both, and the labels are used only if they pass its test.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from labeler.labeling.engines.capture import pad_asked
from labeler.labeling.engines.label_rows import EXTRAS, gather_rows
from labeler.labeling.engines.vllm.state_tap import HeadShard, StateTap, to_wire
from schemas.labeled_spans import positions

SPANS_KEY = "softshards_spans"
"""Key in `SamplingParams.extra_args`: [[start, stop], ...], the prompt's positions to label."""
LOGIT_ROWS = 512
"""Rows of logits in memory at once while prompts are labeled, for any step size."""


ASKED_KEY = "softshards_asked"
"""Key in `SamplingParams.extra_args`: ids to label beside the top-k, a list for each position."""

Gather = Callable[..., tuple[torch.Tensor, torch.Tensor]]
"""`gather_rows` with its settings: logits [n, V], tokens [n] and asked ids to ids and values."""


@dataclass(frozen=True, kw_only=True)
class _Capture:
    """What is taken from each labeled position.

    Attributes:
        gather: makes ids and values from logits.
        asked: ids per position that a request may name.
        ids, values: their columns.
        tap: holds hidden states; None where they are not wanted.
    """

    gather: Gather
    asked: int
    ids: int
    values: int
    tap: StateTap | None

    def states(self, where: torch.Tensor) -> torch.Tensor | None:
        """Return the states of tokens whose logits were computed last; see `StateTap.rows`."""
        return None if self.tap is None else to_wire(self.tap.rows(where))

    def label(
        self, logits: torch.Tensor, tokens: torch.Tensor, asked: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return ids and values of logits [n, V]; without `asked` [n, m], none are asked for."""
        if self.asked and asked is None:
            asked = tokens.new_full((len(tokens), self.asked), -1)
        return self.gather(logits, tokens, asked=asked if self.asked else None)


class LabelWorker:
    """Methods that vLLM's worker gains; called through `collective_rpc` on every worker."""

    model_runner: Any
    softshards_tap: StateTap | None = None

    def softshards_install(
        self,
        k: int,
        vocab_size: int,
        draws: int,
        states: Sequence[str] = (),
        asked: int = 0,
        temperatures: Sequence[float] = (),
    ) -> bool:
        """Label prompts and generations with `k` of `vocab_size` real ids, and `draws` drawn ones.

        Args:
            k, vocab_size, draws, temperatures: as in `gather_rows`.
            states: the hidden states to take along, by name.
            asked: ids per position that a request may name to be labeled, too.

        Returns:
            False if this worker has no head.

        Raises:
            AttributeError: this vLLM's model runner, or the model, is built differently.
        """
        runner = self.model_runner
        if not hasattr(runner, "sampler"):  # a pipeline stage before the last has no sampler
            return False
        if not callable(runner._get_prompt_logprobs_dict):
            raise AttributeError("_get_prompt_logprobs_dict")
        if states:
            layers = runner.model_config.get_total_num_hidden_layers()
            self.softshards_tap = StateTap(runner.get_model(), states, layers)
        capture = _Capture(
            gather=partial(
                gather_rows, k=k, vocab_size=vocab_size, draws=draws, temperatures=temperatures
            ),
            asked=asked,
            ids=1 + k + asked + draws,
            values=1 + k + asked + len(EXTRAS) + len(temperatures),
            tap=self.softshards_tap,
        )
        _take_over_sampler(runner, capture)

        def prompt_labels(hidden_states: torch.Tensor, scheduled: dict[str, int]) -> dict[str, Any]:
            return _prompt_labels(runner, hidden_states, scheduled, capture)

        runner._get_prompt_logprobs_dict = prompt_labels
        return True

    def softshards_head(self) -> HeadShard | str | None:
        """Return this worker's part of the head, or why it cannot be exported; see `StateTap`."""
        return None if self.softshards_tap is None else self.softshards_tap.head()

    def softshards_uninstall(self) -> None:
        """Restore the runner's and its sampler's own methods."""
        if self.softshards_tap is not None:
            self.softshards_tap.remove()
            self.softshards_tap = None
        runner = self.model_runner
        runner.__dict__.pop("_get_prompt_logprobs_dict", None)
        if hasattr(runner, "sampler"):
            for name in ("compute_logprobs", "gather_logprobs"):
                runner.sampler.__dict__.pop(name, None)


def _take_over_sampler(runner: Any, capture: _Capture) -> None:
    """Make the sampler gather our rows, from logits: they are kept where it computes logprobs.

    Sampling changes float32 logits in place before it gathers, so these are copied.
    """
    sampler = runner.sampler
    for name in ("compute_logprobs", "gather_logprobs"):
        getattr(type(sampler), name)  # an AttributeError here, not in the first step

    def keep_logits(logits: torch.Tensor) -> torch.Tensor:
        return logits.clone() if logits.dtype == torch.float32 else logits

    def gather_labels(logits: torch.Tensor, _: int, token_ids: torch.Tensor) -> Any:
        ids, values = capture.label(logits, token_ids)
        # The last token of each request in the step was sampled from.
        return _tensors(ids, values, capture.states(runner.query_start_loc.gpu[1:][: len(ids)] - 1))

    sampler.compute_logprobs, sampler.gather_logprobs = keep_logits, gather_labels


def _prompt_labels(
    runner: Any, hidden_states: torch.Tensor, scheduled: dict[str, int], capture: _Capture
) -> dict[str, Any]:
    """Return the labels of the prompts that this step finishes, by request id.

    A prompt longer than a step takes several; its rows are collected in the runner's own buffer
    for prompt logprobs, which follows the request when it is preempted.

    Args:
        runner: vLLM's model runner.
        hidden_states: [tokens, hidden] of this step.
        scheduled: tokens in this step, by request id.
        capture: what to take.
    """
    finished: dict[str, Any] = {}
    parts: list[tuple[Any, slice]] = []  # a request's rows, and those that this step labels
    states, tokens = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    asked = [np.empty((0, capture.asked), np.int64)]
    for name in list(runner.num_prompt_logprobs):
        scheduled_tokens = scheduled.get(name)
        if scheduled_tokens is None:  # preempted
            continue
        request = runner.requests[name]
        wanted = positions(*np.reshape(request.sampling_params.extra_args[SPANS_KEY], (-1, 2)).T)
        rows = request.in_progress_prompt_logprobs_cpu
        if rows is None:
            rows = _empty(len(wanted), capture)
            request.in_progress_prompt_logprobs_cpu = rows
        first = request.num_computed_tokens
        # The token at t is predicted by the hidden state of t - 1.
        here = slice(*np.searchsorted(wanted, [first + 1, first + scheduled_tokens + 1]))
        index = runner.input_batch.req_id_to_index[name]
        parts.append((rows, here))
        states.append(wanted[here] - 1 - first + runner.query_start_loc.np[index])
        tokens.append(runner.input_batch.token_ids_cpu[index, wanted[here]])
        if capture.asked:
            lists = (request.sampling_params.extra_args.get(ASKED_KEY) or [[]] * len(wanted))[here]
            asked.append(pad_asked(lists, capture.asked))
        if first + scheduled_tokens >= len(request.prompt_token_ids):
            finished[name] = rows
            del runner.num_prompt_logprobs[name]
            request.in_progress_prompt_logprobs_cpu = None
    columns = [np.concatenate(states), np.concatenate(tokens), *np.concatenate(asked).T]
    where = torch.from_numpy(np.stack(columns))
    if where.shape[1]:
        labeled = _label_states(runner, hidden_states, where, capture)
        start = 0
        for rows, here in parts:
            stop = start + here.stop - here.start
            for kept, new in zip(rows, labeled):
                kept[here] = new[start:stop]
            start = stop
    return finished


def _label_states(
    runner: Any, hidden_states: torch.Tensor, where: torch.Tensor, capture: _Capture
) -> list[torch.Tensor]:
    """Return ids, values and, if wanted, states of some positions of a step, on the host.

    Args:
        runner: vLLM's model runner.
        hidden_states: [tokens, hidden] of this step.
        where: int64 [2 + m, n], rows of `hidden_states`, the tokens that they predict, and the ids
            that are asked for.
        capture: what to take.
    """
    pinned = hidden_states.is_cuda
    where = (where.pin_memory() if pinned else where).to(hidden_states.device, non_blocking=True)
    packed, kept = [], []
    for states, tokens, *asked in torch.split(where, LOGIT_ROWS, dim=1):
        logits = runner.model.compute_logits(hidden_states[states])
        ids, values = capture.label(logits, tokens, torch.stack(asked, 1) if asked else None)
        packed.append(torch.cat([ids, values.view(torch.int32)], dim=1))
        if (taken := capture.states(states)) is not None:
            kept.append(taken)
    columns = [torch.cat(parts) for parts in (packed, kept) if parts]
    host = [torch.empty(c.shape, dtype=c.dtype, pin_memory=pinned) for c in columns]
    for here, there in zip(host, columns, strict=True):
        here.copy_(there, non_blocking=True)
    runner._sync_device()
    rows = host[0]
    return [rows[:, : capture.ids], rows[:, capture.ids :].view(torch.float32), *host[1:]]


def _empty(rows: int, capture: _Capture) -> Any:
    """Return a container for the labels of a prompt; values are NaN until they are labeled."""
    return _tensors(
        torch.zeros(rows, capture.ids, dtype=torch.int32),
        torch.full((rows, capture.values), torch.nan),
        None if capture.tap is None else capture.tap.empty(rows),
    )


def _tensors(ids: torch.Tensor, values: torch.Tensor, states: torch.Tensor | None) -> Any:
    """Return vLLM's container for logprobs.

    States travel where it has the ranks of the actual tokens, which nothing here reads.
    """
    from vllm.v1.outputs import LogprobsTensors

    if states is None:
        states = torch.zeros(len(ids), dtype=torch.int32, device=ids.device)
    return LogprobsTensors(ids, values, states)
