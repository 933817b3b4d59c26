"""L3: bytes per position and exactness of stored hidden states, beside those of stored top-k.

    python -m benchmarks.states [--sequences N]

The quickstart's teacher runs over real text in float32, once. Every third sequence is measured;
the others fit basis and step of `fisher` (1e-3 nats, the default) and `fisher_small` (0.06), as a
sample of a set would, whose units are drawn by hash. Bytes are those of the states in a Parquet
file of rows as long as the quickstart's. KL is of the teacher's exact distribution, over all ids,
against the one that its head makes of the stored state. top64 is what plain/1 stores: 64 log-
probabilities in float16 and the tail, here spread evenly over all other ids.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import transformers
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.codec import bytes_a_label, write
from benchmarks.teacher_labels import LENGTH, TEACHER, as_rows, text_ids
from labeler.console import progress
from labeler.labeling.engines.fit_states import OutputHead, fisher, fit_states, kl_left
from labeler.labeling.engines.transformers_engine import exact_labels
from schemas.atomic import atomic_path
from schemas.state_codec import (
    DEFAULT_KL,
    StateBasis,
    decode_states,
    encode_states,
    state_fields,
    states_writer,
)
from schemas.version import STATES_1, STATES_2

SMALL_KL = 0.06
TOP = (12, 50, 64, 128)
States = NDArray[np.float32]


def exact_states(head_of: transformers.PreTrainedModel, positions: int) -> States:
    """Return the states after the final norm at `positions` positions; computed once, then kept."""
    kept = TEACHER.parent / f"benchmark-states-{positions}.npy"
    if not kept.is_file():
        ids = text_ids(positions)
        parts = []
        with torch.inference_mode(), progress("sequences") as bar:
            for start in bar.track(range(0, positions, LENGTH), description="teacher, once"):
                batch = torch.tensor([ids[start : start + LENGTH]])
                parts.append(head_of.base_model(input_ids=batch).last_hidden_state[0].numpy())
        with atomic_path(kept) as tmp, tmp.open("wb") as stream:
            np.save(stream, np.concatenate(parts)[:positions])
    found: States = np.load(kept)
    return found


def measure(states: States, head: OutputHead, basis: StateBasis | None, path: Path) -> Any:
    """Return bytes per position in the file, and the KL that is left."""
    d = states.shape[1]
    rows = [states[start : start + LENGTH] for start in range(0, len(states), LENGTH)]
    schema = pa.schema(state_fields(d, STATES_1 if basis is None else STATES_2))
    with states_writer(path, schema) as writer:
        writer.write_table(pa.table(encode_states(rows, d, basis), schema=schema))
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        kl = kl_left(head, states, decode_states(file.read(), basis))
        group = file.metadata.row_group(0)
        size = sum(group.column(i).total_compressed_size for i in range(group.num_columns))
    return {"bytes": round(size / len(states), 1), "kl": kl.mean(), "max": kl.max()} | (
        {} if basis is None else {"step": basis.step}
    )


def measure_top(states: States, head: OutputHead, k: int, path: Path) -> Any:
    """Return the same for the top k and a tail that is spread evenly over all other ids."""
    vocab = len(head.weight)
    tokens = torch.zeros(len(states), dtype=torch.int64)
    with torch.inference_mode():
        labels = exact_labels(head.logits(torch.from_numpy(states)), tokens, k=k, vocab_size=vocab)
        write(path, as_rows(labels, vocab), vocab, k, "plain", len(states))
        found = []
        for start in range(0, len(states), 256):
            rows = slice(start, start + 256)
            log_q = head.logits(torch.from_numpy(states[rows])).log_softmax(1)
            some = labels[rows]
            even = torch.from_numpy(some.tail_logprob.astype(np.float16).astype(np.float32))
            log_p = (even - np.log(vocab - k))[:, None].repeat(1, vocab)
            stored = torch.from_numpy(some.topk_logprobs.astype(np.float16).astype(np.float32))
            log_p.scatter_(1, torch.from_numpy(some.topk_ids).long(), stored)
            found.append((log_q.exp() * (log_q - log_p.log_softmax(1))).sum(1).double().numpy())
    kl = np.concatenate(found)
    return {"bytes": round(bytes_a_label(path, len(states)), 1), "kl": kl.mean(), "max": kl.max()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--sequences", type=int, default=6, help="of 1,024 positions; a third measured"
    )
    arguments = parser.parse_args()
    if not TEACHER.is_dir():
        raise SystemExit(f"error: no teacher: run scripts/get_teacher.py {TEACHER}")
    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        TEACHER, dtype=torch.float32, trust_remote_code=False
    ).eval()
    head = OutputHead(weight=model.get_output_embeddings().weight.detach())
    states = exact_states(model, arguments.sequences * LENGTH)
    measured = np.arange(len(states)) // LENGTH % 3 == 2
    sample, held_out = states[~measured], states[measured]
    values = np.linalg.eigvalsh(fisher(head, sample))
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "part.parquet")
        result["float16"] = measure(held_out, head, None, path)
        for arm, kl in (("fisher", DEFAULT_KL), ("fisher_small", SMALL_KL)):
            basis = fit_states(head, sample, kl=kl)
            result[arm] = measure(held_out, head, basis, path)
        result |= {f"top{k}": measure_top(held_out, head, k, path) for k in TOP}
    console, shown = Console(), Table("stored", "B a position", "KL", "largest KL", box=None)
    for arm, facts in result.items():
        shown.add_row(arm, str(facts["bytes"]), f"{facts['kl']:.1e}", f"{facts['max']:.1e}")
    console.print(shown)
    print(f"effective rank of the Fisher matrix: {values.sum() ** 2 / (values**2).sum():.1f}")
    result["rank"] = values.sum() ** 2 / (values**2).sum()
    result |= {"positions": len(held_out), "sample": len(sample), "dimensions": states.shape[1]}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
