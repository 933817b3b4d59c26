"""Code that runs inside vLLM's workers: labels of the wanted positions only, with exact tails.

The wanted positions of all prompts in a step pass the head together, in blocks, and their labels
reach the host in one copy: neither grows with the number of requests.

vLLM mixes `LabelWorker` into its worker class (`worker_extension_cls`). Nothing changes until
`softshards_install` is called, and `softshards_uninstall` restores everything. `vllm_self_test`
calls both, and the labels are used only if they pass its test.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from labeler.labeling.engines.label_rows import EXTRAS, gather_rows
from schemas.labeled_spans import positions

SPANS_KEY = "softshards_spans"
"""Key in `SamplingParams.extra_args`: [[start, stop], ...], the prompt's positions to label."""
Rows = tuple[torch.Tensor, torch.Tensor]
Gather = Callable[[torch.Tensor, torch.Tensor], Rows]
"""`gather_rows` with its settings: logits [n, V] and tokens [n] to label rows."""
LOGIT_ROWS = 512
"""Rows of logits in memory at once while prompts are labeled, for any step size."""


class LabelWorker:
    """Methods that vLLM's worker gains; called through `collective_rpc` on every worker."""

    model_runner: Any

    def softshards_install(self, k: int, vocab_size: int, draws: int) -> bool:
        """Label prompts and generations with `k` of `vocab_size` real ids, and `draws` drawn ones.

        Returns:
            False if this worker has no head.

        Raises:
            AttributeError: this vLLM's model runner is built differently.
        """
        runner = self.model_runner
        if not hasattr(runner, "sampler"):  # a pipeline stage before the last has no sampler
            return False
        gather = partial(gather_rows, k=k, vocab_size=vocab_size, draws=draws)
        _take_over_sampler(runner.sampler, gather)
        if not callable(runner._get_prompt_logprobs_dict):
            raise AttributeError("_get_prompt_logprobs_dict")

        def prompt_labels(hidden_states: torch.Tensor, scheduled: dict[str, int]) -> dict[str, Any]:
            return _prompt_labels(runner, hidden_states, scheduled, gather, (1 + k, draws))

        runner._get_prompt_logprobs_dict = prompt_labels
        return True

    def softshards_uninstall(self) -> None:
        """Restore the runner's and its sampler's own methods."""
        runner = self.model_runner
        runner.__dict__.pop("_get_prompt_logprobs_dict", None)
        if hasattr(runner, "sampler"):
            for name in ("compute_logprobs", "gather_logprobs"):
                runner.sampler.__dict__.pop(name, None)


def _take_over_sampler(sampler: Any, gather: Gather) -> None:
    """Make the sampler gather our rows, from logits: they are kept where it computes logprobs.

    Sampling changes float32 logits in place before it gathers, so these are copied.
    """
    for name in ("compute_logprobs", "gather_logprobs"):
        getattr(type(sampler), name)  # an AttributeError here, not in the first step

    def keep_logits(logits: torch.Tensor) -> torch.Tensor:
        return logits.clone() if logits.dtype == torch.float32 else logits

    def gather_labels(logits: torch.Tensor, _: int, token_ids: torch.Tensor) -> Any:
        return _tensors(*gather(logits, token_ids))

    sampler.compute_logprobs, sampler.gather_logprobs = keep_logits, gather_labels


def _prompt_labels(
    runner: Any,
    hidden_states: torch.Tensor,
    scheduled: dict[str, int],
    gather: Gather,
    width: tuple[int, int],
) -> dict[str, Any]:
    """Return the labels of the prompts that this step finishes, by request id.

    A prompt longer than a step takes several; its rows are collected in the runner's own buffer
    for prompt logprobs, which follows the request when it is preempted.

    Args:
        runner: vLLM's model runner.
        hidden_states: [tokens, hidden] of this step.
        scheduled: tokens in this step, by request id.
        gather: `gather_rows` with its settings.
        width: ids per row, without drawn ones, and drawn ids per row.
    """
    finished: dict[str, Any] = {}
    parts: list[tuple[Any, slice]] = []  # a request's rows, and those that this step labels
    states, tokens = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for name in list(runner.num_prompt_logprobs):
        scheduled_tokens = scheduled.get(name)
        if scheduled_tokens is None:  # preempted
            continue
        request = runner.requests[name]
        wanted = positions(*np.reshape(request.sampling_params.extra_args[SPANS_KEY], (-1, 2)).T)
        rows = request.in_progress_prompt_logprobs_cpu
        if rows is None:
            rows = _tensors(
                torch.zeros(len(wanted), sum(width), dtype=torch.int32),
                torch.full((len(wanted), width[0] + len(EXTRAS)), torch.nan),
            )
            request.in_progress_prompt_logprobs_cpu = rows
        first = request.num_computed_tokens
        # The token at t is predicted by the hidden state of t - 1.
        here = slice(*np.searchsorted(wanted, [first + 1, first + scheduled_tokens + 1]))
        index = runner.input_batch.req_id_to_index[name]
        parts.append((rows, here))
        states.append(wanted[here] - 1 - first + runner.query_start_loc.np[index])
        tokens.append(runner.input_batch.token_ids_cpu[index, wanted[here]])
        if first + scheduled_tokens >= len(request.prompt_token_ids):
            finished[name] = rows
            del runner.num_prompt_logprobs[name]
            request.in_progress_prompt_logprobs_cpu = None
    where = torch.from_numpy(np.stack([np.concatenate(states), np.concatenate(tokens)]))
    if where.shape[1]:
        ids, values = _label_states(runner, hidden_states, where, gather)
        start = 0
        for rows, here in parts:
            stop = start + here.stop - here.start
            rows.logprob_token_ids[here] = ids[start:stop]
            rows.logprobs[here] = values[start:stop]
            start = stop
    return finished


def _label_states(
    runner: Any, hidden_states: torch.Tensor, where: torch.Tensor, gather: Gather
) -> Rows:
    """Return the label rows of some positions of a step, on the host.

    Args:
        runner: vLLM's model runner.
        hidden_states: [tokens, hidden] of this step.
        where: int64 [2, n], rows of `hidden_states` and the tokens that they predict.
        gather: `gather_rows` with its settings.
    """
    pinned = hidden_states.is_cuda
    where = (where.pin_memory() if pinned else where).to(hidden_states.device, non_blocking=True)
    packed = []
    for states, tokens in torch.split(where, LOGIT_ROWS, dim=1):
        logits = runner.model.compute_logits(hidden_states[states])
        ids, values = gather(logits, tokens)
        packed.append(torch.cat([ids, values.view(torch.int32)], dim=1))
    rows = torch.cat(packed)
    host = torch.empty(rows.shape, dtype=rows.dtype, pin_memory=pinned)
    host.copy_(rows, non_blocking=True)
    runner._sync_device()
    return host[:, : ids.shape[1]], host[:, ids.shape[1] :].view(torch.float32)


def _tensors(ids: torch.Tensor, values: torch.Tensor) -> Any:
    """Return vLLM's container for logprobs; the ranks of the actual tokens, unused here, are 0."""
    from vllm.v1.outputs import LogprobsTensors

    return LogprobsTensors(ids, values, torch.zeros(len(ids), dtype=torch.int32, device=ids.device))
