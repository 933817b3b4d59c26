"""`trainer export`: check a student, write it for another runtime, and measure it there."""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import torch
from rich.table import Table
from transformers import PreTrainedModel

from schemas import LabelSet, SoftshardsError, __version__, open_label_set
from schemas.atomic import atomic_directory
from schemas.bench_results import UNSTABLE
from schemas.hub_model import locate_model
from trainer.console import message_console, number, number_table, percent, size, table_console
from trainer.evaluate.results import model_digest
from trainer.evaluate.teacher_facts import weight_bytes
from trainer.export.export_config import ExportConfig, Format
from trainer.export.export_record import EXPORT, ExportRecord, Measurement
from trainer.export.gguf_file import Bits, check_gguf, finish_gguf
from trainer.export.held_out_rows import measure_student, quality, row_texts
from trainer.export.int8_checkpoint import check_compressed_tensors, write_int8
from trainer.export.llama_converter import Converter, convert, find_converter
from trainer.export.llama_cpp import check_xllamacpp, has_xllamacpp, run_llama_cpp
from trainer.export.provenance import Provenance, read_provenance
from trainer.export.same_function import (
    Probe,
    check_same_function,
    probe,
    refuse_known_differences,
)
from trainer.export.speed_load import speed_load
from trainer.export.vllm_commands import check_vllm, run_vllm
from trainer.file_digests import check_digests, digest_files
from trainer.run_files import FINAL
from trainer.student.context_check import context_length
from trainer.student.load_model import load_model, read_config
from trainer.student.student import count_parameters

INT8 = "int8"
BITS: dict[Format, Bits] = {"gguf:f16": "f16", "gguf:q8_0": "q8_0", "gguf:q4_0": "q4_0"}


def export(model: Path, config: ExportConfig) -> int:
    """Export a student, or reuse an export of it; return the exit code.

    Raises:
        SoftshardsError: the student or the runtime refuses; nothing is left in OUT.
    """
    console = message_console()
    config = replace(config, out=config.out.absolute())  # "." has no name
    folder = locate_model(model, say=lambda line: console.print(line)).folder
    _check_is_student(folder)
    labels = None
    if config.labels is not None:
        _check_runtime(config)
        labels = open_label_set(config.labels, allow_partial=config.allow_partial)
    record = _find_finished(folder, config)
    if record is None:
        record = _make(folder, config, labels)
    elif labels is not None and _asks_more(record, labels, config):
        console.print(f"{config.out}: reused, and measured")
        record.measured = _measure(folder, config.out, record, labels, config)
        record.write(config.out / EXPORT)
    else:
        console.print(f"{config.out}: reused")
    if config.json:
        sys.stdout.write(record.to_json())
    else:
        table_console().print(_table(record))
    return 0


def _check_is_student(folder: Path) -> None:
    """Refuse the folders that are nearly a student's, with the way to one."""
    if (folder / "config.json").is_file():
        return
    if (folder / FINAL / "config.json").is_file():
        raise SoftshardsError(
            "this is a run, not a model", path=folder, hint=f"give {folder / FINAL}"
        )
    if (folder / "adapter_config.json").is_file():
        raise SoftshardsError(
            "these are LoRA adapters alone, without the model that they change",
            path=folder,
            hint="give the run's final/: there they are merged into the weights",
        )


def _check_runtime(config: ExportConfig) -> None:
    if config.to == INT8:
        check_vllm()
    else:
        check_xllamacpp()


def _find_finished(folder: Path, config: ExportConfig) -> ExportRecord | None:
    """Return the record of the same export in OUT; None if OUT is free.

    Raises:
        SoftshardsError: OUT holds something else, or the export was altered.
    """
    out = config.out
    if out.is_file():
        raise SoftshardsError("--out is a file", path=out, hint="give a folder")
    if not out.exists() or not any(out.iterdir()):
        return None
    if not (out / EXPORT).is_file():
        raise SoftshardsError(
            f"the folder is not empty and holds no {EXPORT}", path=out, hint="give a new --out"
        )
    record = ExportRecord.open(out)
    if (record.weights, record.format) != (model_digest(folder), config.to):
        raise SoftshardsError(
            f"here is the export of another student or format ({record.model}, {record.format})",
            path=out,
            hint="give another --out",
        )
    check_digests(out, record.files, hint="delete the folder and export again")
    return record


def _asks_more(record: ExportRecord, labels: LabelSet, config: ExportConfig) -> bool:
    found = record.measured
    if found is None or found.label_digests != labels.digests:
        return True
    return found.exported.labels < min(config.sample_labels, labels.labels)


def _make(folder: Path, config: ExportConfig, labels: LabelSet | None) -> ExportRecord:
    """Write the export and its record; with `labels` only if its runtime runs it."""
    if config.to == INT8:
        check_compressed_tensors()
    else:
        check_gguf()
    model = load_model(folder)
    _check_finite(model, folder)
    if config.to != INT8:
        refuse_known_differences(model.config, folder)
    converter = None if config.to == INT8 else find_converter(config.llama_cpp)
    weights = model_digest(folder)
    origin = read_provenance(folder, weights)
    parameters = count_parameters(model)["parameters"]
    with atomic_directory(config.out) as tmp:
        if converter is None:
            write_int8(model, folder, tmp, origin)
            made_by = f"compressed-tensors {version('compressed-tensors')}"
        else:
            probed = probe(model)
            del model  # the converter reads the weights itself
            _write_gguf(folder, tmp, config, converter, origin, probed)
            made_by = converter.version
        files = digest_files(tmp)
        record = ExportRecord(
            softshards=__version__,
            format=config.to,
            model=str(folder),
            weights=weights,
            parameters=parameters,
            student_bytes=weight_bytes(folder),
            bytes=sum(path.stat().st_size for path in tmp.glob("*.gguf")) or weight_bytes(tmp),
            files=files,
            converter=made_by,
            teacher=origin.teacher,
            label_set=origin.label_set,
            license=origin.license,
        )
        if labels is not None:
            record.measured = _measure(folder, tmp, record, labels, config)
        record.write(tmp / EXPORT)
    return record


def _write_gguf(
    folder: Path,
    out: Path,
    config: ExportConfig,
    converter: Converter,
    origin: Provenance,
    probed: Probe,
) -> None:
    """Convert in 16 bits, compare that with the student where llama.cpp is installed, quantize."""
    bits = BITS[config.to]
    console = message_console()
    console.print("converting to GGUF")
    with tempfile.TemporaryDirectory(dir=out) as temporary:  # removed with `out` after a kill
        converted = Path(temporary) / "converted.gguf"
        convert(converter, folder, converted, name=origin.name)
        if has_xllamacpp():
            found = run_llama_cpp(converted, [probed.row], [], threads=config.threads, timed=None)
            check_same_function(probed, found.answers[0], folder)
        else:
            console.print(
                "warning: nothing shows that llama.cpp computes the student's function: the "
                "package xllamacpp, which runs it, is not installed"
            )
        finish_gguf(converted, out / f"{origin.name}-{bits}.gguf", origin, bits)


def _check_finite(model: PreTrainedModel, folder: Path) -> None:
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise SoftshardsError(f"the weight {name} is not finite", path=folder)


def _measure(
    folder: Path, out: Path, record: ExportRecord, labels: LabelSet, config: ExportConfig
) -> Measurement:
    """Run the student, then what was exported to `out`, on the same rows."""
    student, rows, notes = measure_student(
        folder, labels, sample_labels=config.sample_labels, map_vocab=config.vocab_map
    )
    for note in notes:
        message_console().print(f"{folder}: {note}")
    texts = []
    if config.to == INT8:
        found = run_vllm(out, rows)
    else:
        texts = row_texts(folder, rows)
        (name,) = (name for name in record.files if name.endswith(".gguf"))
        timed = speed_load(context_length(read_config(folder)))
        found = run_llama_cpp(out / name, rows, texts, threads=config.threads, timed=timed)
    if found.tokenizer_differs:
        message_console().print(
            f"warning: the file's tokenizer reads {found.tokenizer_differs} of {len(texts)} rows "
            "as other ids than the student's: prompts given as text will not be what the student "
            "was trained on"
        )
    return Measurement(
        runtime=found.runtime,
        labels=labels.place,
        label_digests=labels.digests,
        rows=len(rows),
        exported=quality(rows, found.answers),
        student=student,
        speed=found.speed,
        tokenizer_rows=len(texts) if found.tokenizer_differs is not None else None,
        tokenizer_differs=found.tokenizer_differs,
    )


def _table(record: ExportRecord) -> Table:
    measured = record.measured
    title = f"on {measured.exported.labels:,} held-out labels" if measured else "not measured"
    table = number_table(title, "model", "size", "ppl", "top-1", "read/s", "generate/s")
    student = measured.student if measured else None
    exported = measured.exported if measured else None
    speed = measured.speed if measured else None
    table.add_row(
        "student",
        size(record.student_bytes, "B"),
        number(student.ppl if student else None, 3),
        percent(student.agreement if student else None),
        *("–", "–"),
    )
    table.add_row(
        record.format,
        size(record.bytes, "B"),
        number(exported.ppl if exported else None, 3),
        percent(exported.agreement if exported else None),
        number(speed.score_tokens_per_s if speed else None, 0),
        number(speed.generate_tokens_per_s if speed else None, 0),
    )
    if speed is not None and not speed.is_stable:
        table.caption = "speeds are not stable: their repeats differ by more than "
        table.caption += f"{UNSTABLE:.0%} (see {EXPORT})"
    return table
