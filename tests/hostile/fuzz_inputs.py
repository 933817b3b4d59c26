"""Fuzzers of what is labeled or imported: corpora, records, settings, chat templates, imports."""

from __future__ import annotations

import bz2
import contextlib
import functools
import gzip
import io
import itertools
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from labeler.labeling.inputs.find_inputs import find_inputs
from labeler.labeling.inputs.json_items import read_value
from labeler.labeling.inputs.read_records import Record, read_records
from labeler.labeling.label_config import LabelConfig
from labeler.labeling.rendering.render import render
from labeler.labeling.teacher.teacher import Teacher, open_teacher
from labeler.labeling.teacher.template_process import LimitedTemplates, TemplateLimit
from labeler.labelsets.exchange.exchange_config import ImportConfig
from labeler.labelsets.exchange.import_set import run_import
from schemas.yaml_settings import check_flags
from tests.hostile.fuzz import Target
from tests.hostile.mutating import mutated, mutated_value
from tests.tiny_model import CHAT_TEMPLATE, make_model, make_tokenizer

MOST_RECORDS = 5000
CHAT: list[dict[str, Any]] = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": [{"type": "text", "text": "what is it"}]},
    {"role": "assistant", "content": "a cat", "reasoning_content": "let me see", "weight": 1},
    {"role": "assistant", "content": None, "tool_calls": [
        {"type": "function", "id": "1", "function": {"name": "f", "arguments": '{"a": [1, 2.5]}'}}
    ]},
    {"role": "tool", "content": "[3]", "tool_call_id": "1", "name": "f"},
    {"role": "assistant", "content": "three"},
]  # fmt: skip
RECORDS: list[dict[str, Any]] = [
    {"id": "a", "text": "the cat sat on the mat", "score": 0.5, "deep": [{"x": [1, None]}]},
    {"messages": CHAT, "tools": [{"type": "function", "function": {"name": "f"}}]},
    {"prompt": "a dog", "completion": " ran after the cat"},
    {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "good day"}]},
    {"instruction": "say", "input": "this", "output": "that"},
    {"prompt": CHAT[:2], "completion": [CHAT[2]]},
    {"input_ids": [1, 2, 3, 4], "spans": [{"start": 1, "stop": 4, "kind": "answer"}]},
    {"messages": json.dumps(CHAT[:2]), "documents": [{"title": "t", "text": "x"}]},
    {"text": "x", "student_messages": CHAT[:2], "student_prompt": "y", "chat_template_kwargs": {}},
]
YAML = [
    "k: 8\nmodel: teacher\nout: labels\ninputs: [a.jsonl, b.jsonl]\nengine_arg:\n  x: 1\n",
    "base: &a {lr: 1e-4, epochs: 2}\ngrid:\n  lr: [1, 2]\n  other: *a\nlabels: https://h/x\n",
    "max_length: 64\nmode: score\nstop: ['\\n', \"x\"]\ntemplate_arguments: {b: 2026-01-02}\n",
]
TEMPLATES = [
    CHAT_TEMPLATE,
    "{%- if tools %}{{ tools | tojson(indent=2) }}{% endif %}{% for m in messages %}"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content | trim }}{% endgeneration %}"
    "{% else %}{{ m['content'][0:9] ~ loop.index0 }}{% endif %}{% endfor %}",
    "{% macro f(x, n=3) %}{{ x * n }}{% endmacro %}{% set ns = namespace(i=0) %}"
    "{% for m in messages %}{% set ns.i = ns.i + 1 %}{{ f(m.role) }}{% break %}{% endfor %}"
    "{{ raise_exception('no') if ns.i > 5 }}{{ strftime_now('%Y') if false }}",
]


@functools.cache
def teacher() -> Teacher:
    """Make a teacher in the current folder."""
    folder = Path("teacher").resolve()
    folder.mkdir()
    size = make_tokenizer(folder, chat_template=CHAT_TEMPLATE)
    make_model(folder, vocab_size=size)
    return open_teacher(folder, max_length=64)


def table() -> pa.Table:
    return pa.table(
        {
            "text": [f"row {i} " * i for i in range(40)],
            "chat": [[{"role": "user", "content": "x" * i}] for i in range(40)],
            "score": pa.array([i / 3 for i in range(40)], pa.float32()),
            "tag": pa.array(["a", "b"] * 20).dictionary_encode(),
            "view": pa.array(["short", "a longer text than twelve"] * 20, pa.string_view()),
            "large": pa.array([[i] * i for i in range(40)], pa.large_list(pa.int64())),
            "map": pa.array([[("k", i)] for i in range(40)], pa.map_(pa.string(), pa.int8())),
            "at": pa.array(range(40), pa.timestamp("ms", "UTC")),
            "bytes": pa.array([b"\xff" * i for i in range(40)], pa.binary()),
            "null": pa.nulls(40),
            "fixed": pa.array([[1, 2]] * 40, pa.list_(pa.int16(), 2)),
        }
    )


def arrow(new: Callable[..., Any], **options: Any) -> bytes:
    sink = io.BytesIO()
    with new(sink, table().schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table(), max_chunksize=15)
    return sink.getvalue()


def parquet(**options: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table(), sink, row_group_size=15, **options)
    return sink.getvalue()


@functools.cache
def corpora() -> list[tuple[str, bytes]]:
    lines = "".join(json.dumps(row) + "\n" for row in RECORDS).encode()
    text = 'id,text\n1,"a ""b""\nc"\n2,d\n3,"é😀"\n'.encode()
    plain = [
        ("a.jsonl", lines),
        ("a.json", json.dumps(RECORDS, indent=1).encode()),
        ("a.csv", text),
        ("a.txt", text),
    ]
    packs: dict[str, Callable[[bytes], bytes]] = {
        "gz": gzip.compress, "zst": zstandard.compress, "bz2": bz2.compress, "xz": lzma.compress,
    }  # fmt: skip
    found = plain + [(f"{n}.{p}", pack(d)) for n, d in plain for p, pack in packs.items()]
    found += [("a.arrow", arrow(pa.ipc.new_file)), ("a.arrow", arrow(pa.ipc.new_stream))]
    found += [("a.arrow", arrow(pa.ipc.new_file, compression=c)) for c in ("lz4", "zstd")]
    found += [("a.parquet", parquet()), ("a.parquet", parquet(compression="zstd"))]
    found += [("a.parquet", parquet(use_dictionary=False, data_page_version="2.0"))]
    return found + found[-7:] * 3


def fuzz_corpora(random: Random) -> str:
    name, data = random.choice(corpora())
    path = Path(name)
    path.write_bytes(mutated(data, random))
    (file,) = find_inputs([str(path)])
    count = sum(1 for _ in itertools.islice(read_records(file), MOST_RECORDS))
    return "records" if count else "no record"


def fuzz_records(random: Random) -> str:
    columns = mutated_value(random.choice(RECORDS), random)
    for _ in range(random.randrange(3)):
        columns = mutated_value(columns, random)
    columns = read_value(json.dumps(columns))  # lone surrogates are rejected as JSON is read
    if not isinstance(columns, dict):
        return "no record"
    modes: dict[str, Any] = {"mode": random.choice(("score", "generate")), "max_tokens": 8}
    spans = random.choice(("assistant", "completion", "everything"))
    config = LabelConfig(model=teacher().path, out=Path("out"), max_length=64, spans=spans, **modes)
    record = Record(id="r", source="s", columns=columns)
    return type(next(iter(render([record], teacher(), config)), None)).__name__


def fuzz_settings(random: Random) -> str:
    path = Path("settings.yaml")
    path.write_bytes(mutated(random.choice(YAML).encode(), random))
    check_flags(path)
    return "read"


@functools.cache
def renderer() -> LimitedTemplates:
    return LimitedTemplates()


def fuzz_templates(random: Random) -> str:
    template = mutated(random.choice(TEMPLATES).encode(), random).decode(errors="replace")
    messages = mutated_value(CHAT, random) if random.random() < 0.5 else CHAT
    try:
        renderer()(
            [messages], tools=None, documents=None, chat_template=template,
            add_generation_prompt=True, return_assistant_tokens_mask="generation" in template,
        )  # fmt: skip
    except TemplateLimit:
        return "limit"
    except ValueError:
        return "refused"
    return "rendered"


@functools.cache
def imports() -> list[dict[str, Any]]:
    from tests.labeler.labelsets.test_interchange import HAND

    return [json.loads(json.dumps(row())) for row in HAND.values()]


def fuzz_imports(random: Random) -> str:
    row = mutated_value(random.choice(imports()), random)
    path = Path("rows.jsonl")
    data = f"{json.dumps(row)}\n".encode() * 2
    path.write_bytes(mutated(data, random) if random.random() < 0.3 else data)
    with contextlib.suppress(
        pa.ArrowException, TypeError, AttributeError, ValueError, OverflowError
    ):
        if random.random() < 0.5:
            pq.write_table(pa.Table.from_pylist([row] * 2), Path("rows.parquet"))
            path = Path("rows.parquet")
    known = {"tokenizer": teacher().path, "teacher": "unknown", "allow": ("shift", "renormalized")}
    with contextlib.redirect_stdout(io.StringIO()):
        run_import(ImportConfig(inputs=(path,), dry_run=True, as_json=True, **known))
    return "read"


TARGETS = {
    "corpora": Target(fuzz_corpora, corpora),
    "records": Target(fuzz_records, teacher),
    "settings": Target(fuzz_settings),
    "templates": Target(fuzz_templates),
    "imports": Target(fuzz_imports, lambda: (teacher(), imports())),
}
