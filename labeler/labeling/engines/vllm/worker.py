"""Code that runs inside vLLM's workers: labels of the wanted positions only, with exact tails.

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

from labeler.labeling.engines.label_rows import EXTRAS, gather_rows, normalizer
from schemas.labeled_spans import positions

SPANS_KEY = "softshards_spans"
"""Key in `SamplingParams.extra_args`: [[start, stop], ...], the prompt's positions to label."""
Rows = tuple[torch.Tensor, torch.Tensor]
LOGIT_ROWS = 512
"""Rows of logits in memory at once while a prompt is labeled, for any step size."""


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


def _take_over_sampler(sampler: Any, gather: Callable[..., Rows]) -> None:
    """Make the sampler gather our rows. It computes logprobs first and gathers them after sampling.

    The normalizer is taken when the logprobs are computed: sampling scales the logits in place.
    """
    compute = type(sampler).compute_logprobs
    latest: dict[str, torch.Tensor] = {}

    def compute_logprobs(logits: torch.Tensor) -> torch.Tensor:
        logprobs: torch.Tensor = compute(logits)
        latest["logprobs"], latest["normalizer"] = logprobs, normalizer(logits, logprobs)
        return logprobs

    def gather_logprobs(logprobs: torch.Tensor, _: int, token_ids: torch.Tensor) -> Any:
        if latest.get("logprobs") is not logprobs:
            raise RuntimeError("the sampler gathers logprobs that it did not compute last")
        log_normalizer = latest.pop("normalizer")
        del latest["logprobs"]
        return _tensors(*gather(logprobs, log_normalizer, token_ids))

    type(sampler).gather_logprobs  # noqa: B018  # an AttributeError here, not in the first step
    sampler.compute_logprobs, sampler.gather_logprobs = compute_logprobs, gather_logprobs


def _prompt_labels(
    runner: Any,
    hidden_states: torch.Tensor,
    scheduled: dict[str, int],
    gather: Callable[..., Rows],
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
    finished = {}
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
        here = range(*np.searchsorted(wanted, [first + 1, first + scheduled_tokens + 1]))
        offset = int(runner.query_start_loc.np[runner.input_batch.req_id_to_index[name]]) - first
        for start in range(here.start, here.stop, LOGIT_ROWS):
            part = slice(start, min(start + LOGIT_ROWS, here.stop))
            where = torch.from_numpy(wanted[part]).to(hidden_states.device)
            logits = runner.model.compute_logits(hidden_states[where - 1 + offset])
            logprobs = type(runner.sampler).compute_logprobs(logits)
            actual = [request.prompt_token_ids[t] for t in wanted[part]]
            tokens = torch.tensor(actual, dtype=torch.int64, device=logits.device)
            ids, values = gather(logprobs, normalizer(logits, logprobs), tokens)
            rows.logprob_token_ids[part].copy_(ids, non_blocking=True)
            rows.logprobs[part].copy_(values, non_blocking=True)
        if first + scheduled_tokens >= len(request.prompt_token_ids):
            finished[name] = rows
            del runner.num_prompt_logprobs[name]
            request.in_progress_prompt_logprobs_cpu = None
    if finished:
        runner._sync_device()
    return finished


def _tensors(ids: torch.Tensor, values: torch.Tensor) -> Any:
    """Return vLLM's container for logprobs; the ranks of the actual tokens, unused here, are 0."""
    from vllm.v1.outputs import LogprobsTensors

    return LogprobsTensors(ids, values, torch.zeros(len(ids), dtype=torch.int32, device=ids.device))
