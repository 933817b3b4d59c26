"""L2: engine tensors to a durable shard, against vLLM's public outputs feeding the same writer.

    python -m benchmarks.capture [--full]

All three paths begin with the tensors that vLLM's worker hands to its front end (made here from
random logits over 8,192 of 49,152 ids, by the worker's own function) and end with a shard and a
journal entry on disk, written by the labeler's writer:

- tensors: the front end keeps the tensors, arrays are views
  (labeler/labeling/engines/vllm/tensor_capture.py);
- flat: vLLM's own front end with `flat_logprobs=True`, its lists turned into arrays at once;
- dicts: vLLM's own front end as it comes, one `{id: Logprob}` a position, read one by one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from labeler.labeling.engines.vllm.vllm_environment import prepare_environment

prepare_environment()

import numpy as np  # noqa: E402
import torch  # noqa: E402

from labeler.labeling.engines.capture import (  # noqa: E402
    DERIVED_TAIL,
    flat_rows,
    labels_from_rows,
    labels_from_tensors,
)
from labeler.labeling.engines.engine import EngineFacts, Labeled, Request  # noqa: E402
from labeler.labeling.engines.label_rows import gather_rows  # noqa: E402
from labeler.labeling.engines.vllm.tensor_capture import TensorRows, tensor_front_end  # noqa: E402
from labeler.labeling.engines.vllm.vllm_load import import_vllm  # noqa: E402
from labeler.labeling.rendering.spans import Span  # noqa: E402
from labeler.labeling.writing.shard_writer import write_unit  # noqa: E402
from schemas import Identity, Labels  # noqa: E402

VOCAB, LIKELY, K, LENGTH = 49_152, 8_192, 64, 1024
SLOWER = 4
"""The slow path through dicts gets every n-th sequence only."""
FACTS = EngineFacts(
    name="benchmark",
    version="",
    device="cpu",
    dtype="float32",
    head_dtype="float32",
    tail_source=DERIVED_TAIL,
    entropy_source="",
    settings={},
)
IDENTITY = Identity(
    weights="",
    model_config_digest="",
    tokenizer="",
    vocab_size=VOCAB,
    chat_template=None,
    dtype="float32",
    head_dtype="float32",
    mode="score",
    k=K,
    max_length=LENGTH,
    overlap=1,
)


def engine_rows(sequences: int) -> list[tuple[Any, Any, list[int]]]:
    """Return (ids, values, tokens) of sequences, as the worker makes them."""
    made = []
    generator = torch.Generator().manual_seed(0)
    likely = torch.randperm(VOCAB, generator=generator)[:LIKELY].int()
    unigram = torch.randn(LIKELY, generator=generator) * 3
    for _ in range(sequences):
        logits = torch.randn(LENGTH - 1, LIKELY, generator=generator) * 2 + unigram
        tokens = torch.randint(0, LIKELY, (LENGTH,), generator=generator)
        ids, values = gather_rows(logits, tokens[1:], k=K, vocab_size=LIKELY)
        made.append((likely[ids], values, likely[tokens].tolist()))
    return made


def front_end(rows: tuple[Any, Any, list[int]], *, flat: bool, tensors: bool) -> Any:
    """Return what vLLM's front end makes of a prompt's rows."""
    from vllm.v1.engine import logprobs
    from vllm.v1.outputs import LogprobsTensors

    ids, values, _ = rows
    processor = logprobs.LogprobsProcessor(
        tokenizer=None,
        logprobs=None,
        prompt_logprobs=logprobs.create_prompt_logprobs(flat),
        cumulative_logprob=None,
        num_logprobs=None,
        num_prompt_logprobs=K,
    )
    # The public interface has no column for what ours adds.
    shown = values if tensors else values[:, : 1 + K]
    processor._update_prompt_logprobs(LogprobsTensors(ids, shown, torch.zeros(len(ids)).int()))
    return processor.pop_prompt_logprobs()


def from_tensors(rows: tuple[Any, Any, list[int]]) -> Labels:
    kept: TensorRows = front_end(rows, flat=True, tensors=True)
    ids, values = kept.joined()
    return labels_from_tensors(ids, values, np.asarray(rows[2][1:]), k=K, vocab_size=VOCAB)


def from_flat(rows: tuple[Any, Any, list[int]]) -> Labels:
    ids, values = flat_rows(front_end(rows, flat=True, tensors=False), skip=1)
    return labels_from_rows(ids, values, np.asarray(rows[2][1:]), k=K, vocab_size=VOCAB)


def from_dicts(rows: tuple[Any, Any, list[int]]) -> Labels:
    listed = front_end(rows, flat=False, tensors=False)
    tokens = rows[2]
    ids = np.empty((len(tokens) - 1, 1 + K), np.int32)
    values = np.empty((len(tokens) - 1, 1 + K), np.float32)
    for t, entries in enumerate(listed[1:], start=1):
        ranked = sorted(entries.items(), key=lambda item: item[1].rank)[:K]
        ids[t - 1] = [tokens[t], *(token for token, _ in ranked)]
        values[t - 1] = [entries[tokens[t]].logprob, *(entry.logprob for _, entry in ranked)]
    return labels_from_rows(ids, values, np.asarray(tokens[1:]), k=K, vocab_size=VOCAB)


def rows_per_s(to_labels: Callable[[Any], Labels], made: list[Any], folder: Path) -> float:
    """Write engine tensors as a journaled shard."""
    planned = [
        {"id": str(n), "chunk": 0, "parent_id": None, "source": None, "meta": None, "prompt": None}
        | {"student_input_ids": None, "student_spans": None}
        for n in range(len(made))
    ]
    start = time.perf_counter()
    span = Span(start=1, stop=LENGTH, kind="text")
    labeled = [
        Labeled(
            request=Request(index=n, sample=0, input_ids=rows[2], spans=(span,), seed=0),
            input_ids=rows[2],
            spans=(span,),
            labels=to_labels(rows),
            finish_reason=None,
        )
        for n, rows in enumerate(made)
    ]
    write_unit(
        folder,
        0,
        planned,
        labeled,
        [],
        texts=[None] * len(made),
        identity=IDENTITY,
        facts=FACTS,
        row_group_labels=16_384,
        provenance={},
    )
    return sum(len(row.labels) for row in labeled) / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--full", action="store_true", help="128 sequences, as the labeler's units have"
    )
    sequences = 128 if parser.parse_args().full else 64
    import_vllm()
    made = engine_rows(sequences)
    rates: dict[str, list[float]] = {"tensors": [], "flat": [], "dicts": []}
    with tempfile.TemporaryDirectory() as name:
        folder, some = Path(name), made[: sequences // SLOWER]
        for _ in range(3):
            with tensor_front_end():
                rates["tensors"].append(rows_per_s(from_tensors, made, folder))
            rates["flat"].append(rows_per_s(from_flat, made, folder))
            rates["dicts"].append(rows_per_s(from_dicts, some, folder))
    rate = {name: statistics.median(values) for name, values in rates.items()}
    for path, value in rate.items():
        print(f"{path:8} {value:12,.0f} label rows per second, engine tensors to durable shard")
    result = {
        "rows_per_s": round(rate["tensors"]),
        "vs_dicts": round(rate["tensors"] / rate["dicts"], 1),
        "vs_flat": round(rate["tensors"] / rate["flat"], 1),
        "k": K,
        "rows": sequences * (LENGTH - 1),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
