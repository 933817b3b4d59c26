"""Label sets as a stranger could forge them: every hash is right, the content is not."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from schemas import LabelSetError, SoftshardsError, open_label_set
from schemas.arrow import FOOTER_KEY
from schemas.file_names import hidden_name
from schemas.fingerprint import sha256_bytes, sha256_file, sha256_json, tokenizer_digest
from schemas.journal import ByteRange, read_entry, write_entry
from schemas.manifest import FileDigest, read_manifest, write_manifest
from schemas.validate import examine
from tests.schemas.state_sets import close_set
from trainer.data.collate import collate
from trainer.data.dataset import LabelDataset

Json = dict[str, Any]


def findings(path: Path | str) -> list[str]:
    """Return what `labeler verify` finds wrong in files and rows; all other errors are raised."""
    try:
        return [str(f) for f in examine(open_label_set(path, allow_partial=True)) if not f.note]
    except LabelSetError as error:
        return [str(error)]


def trained_on(path: Path | str) -> str | None:
    """Read a set as a training run does; return why it is refused, None if it is not."""
    try:
        for pack in LabelDataset(open_label_set(path, allow_partial=True), pack_tokens=4096):
            collate(pack)
    except SoftshardsError as error:
        return str(error)
    return None


def read_json(path: Path) -> Json:
    content: Json = json.loads(path.read_bytes())
    return content


def write_json(path: Path, content: Json) -> None:
    """Write a file that has a digest of itself, which is made right."""
    content = content | {"self_digest": ""}
    try:
        content["self_digest"] = sha256_json(content)
    except (ValueError, UnicodeEncodeError):  # nothing that can be sealed
        content["self_digest"] = "0" * 64
    path.write_text(json.dumps(content), encoding="utf-8")


def write_index_page(path: Path, rows: list[Json], schema: pa.Schema | None = None) -> None:
    page = path / "index" / "page-000000.parquet"
    schema = schema or pq.read_schema(page)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), page, compression="zstd")


def reseal(path: Path, *, manifest: Callable[[Json], Json] = lambda content: content) -> None:
    """Make every hash of a set right again for the files as they are now.

    Args:
        path: the set's folder.
        manifest: changes the manifest before it is sealed.
    """
    page = path / "index" / "page-000000.parquet"
    content = read_json(path / "manifest.json")
    try:
        rows = pq.read_table(page).to_pylist()
    except (pa.ArrowException, OSError):
        rows = []
    if rows and set(rows[0]) >= {"shard", "start", "stop", "sha256"}:
        for row in rows:
            shard = path / str(row["shard"])
            if shard.is_file():
                data = shard.read_bytes()
                row["stop"] = len(data) if row["row_group"] == -1 else row["stop"]
                row["sha256"] = sha256_bytes(data[row["start"] : row["stop"]])
        write_index_page(path, rows)
        if content["totals"]:
            content["totals"]["bytes"] = sum(r["stop"] for r in rows if r["row_group"] == -1)
        if content.get("content_digest"):
            hashes = [row["sha256"] for row in rows if row["row_group"] != -1]
            content["content_digest"] = sha256_json(hashes)
        for unit in {row["unit"] for row in rows}:
            _reseal_entry(path, unit, [row for row in rows if row["unit"] == unit])
    named = [content.get(name) or [] for name in ("tokenizer_files", "index_pages", "plan_rejects")]
    for files in (*named, (content.get("states") or {}).get("files") or []):
        for file in files:
            if (path / file["path"]).is_file():
                file["sha256"] = sha256_bytes((path / file["path"]).read_bytes())
    if content["plan"] and (path / content["plan"]["path"]).is_file():
        content["plan"]["sha256"] = sha256_bytes((path / content["plan"]["path"]).read_bytes())
    write_json(path / "manifest.json", manifest(content))


def _reseal_entry(path: Path, unit: int, rows: list[Json]) -> None:
    file = path / "journal" / f"unit-{unit:06d}.json"
    if not file.is_file():
        return
    content = read_json(file)
    names = ("start", "stop", "sha256", "rows", "labels", "tokens")
    ranges = [{n: row[n] for n in names if n in row} for row in rows]
    content["row_groups"], content["footer"] = ranges[:-1], ranges[-1]
    rejects = path / "journal" / f"unit-{unit:06d}.rejects.parquet"
    if rejects.is_file():
        content["rejects_sha256"] = sha256_bytes(rejects.read_bytes())
    write_json(file, content)


def reidentify(path: Path, **identity: Any) -> None:
    """Change the identity of a set in its manifest and in the footers of all its shards."""
    content = read_json(path / "manifest.json")
    changed = content["identity"] | identity
    if "tokenizer" in identity:
        changed["tokenizer"] = tokenizer_digest(path / "tokenizer")
    digest = sha256_json(changed)
    for shard in (path / "shards").iterdir():

        def facts(facts: Json) -> Json:
            return facts | {
                "identity": changed,
                "identity_digest": digest,
                "vocab_size": changed["vocab_size"],
            }

        refoot(shard, facts)
    reseal(path, manifest=lambda m: m | {"identity": changed, "identity_digest": digest})


def refoot(shard: Path, change: Callable[[Json], Json]) -> None:
    """Change the JSON object in a shard's footer; its data and their offsets stay."""
    data = shard.read_bytes()
    length = int.from_bytes(data[-8:-4], "little")
    start = len(data) - 8 - length
    facts = json.loads(pq.read_metadata(shard).metadata[FOOTER_KEY])
    footer = data[start:-8]
    old = json.dumps(facts, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    new = json.dumps(change(facts), sort_keys=True, separators=(",", ":")).encode()
    at = footer.index(old)
    before = len(_varint(len(old)))
    assert footer[at - before : at] == _varint(len(old))
    footer = footer[: at - before] + _varint(len(new)) + new + footer[at + len(old) :]
    shard.write_bytes(data[:start] + footer + len(footer).to_bytes(4, "little") + b"PAR1")


def rewrite_rows(path: Path, change: Callable[[pa.Table], pa.Table], *, shard: int = 0) -> None:
    """Rewrite a shard with other rows in its row groups, of any schema, and seal the set."""
    file = path / "shards" / f"part-{shard:06d}.parquet"
    with pq.ParquetFile(file) as old:
        tables = [old.read_row_group(n) for n in range(old.num_row_groups)]
        metadata = old.metadata.metadata[FOOTER_KEY]
    tables = [change(table).replace_schema_metadata({FOOTER_KEY: metadata}) for table in tables]
    with pq.ParquetWriter(file, tables[0].schema, compression="zstd") as writer:
        for table in tables:
            writer.write_table(table, row_group_size=max(1, table.num_rows))
    reindex(path, shard)


def reindex(path: Path, shard: int = 0) -> None:
    """Write the byte ranges of a shard into the index anew, and seal the set."""
    file = path / "shards" / f"part-{shard:06d}.parquet"
    page = path / "index" / "page-000000.parquet"
    schema, rows = pq.read_schema(page), pq.read_table(page).to_pylist()
    metadata, size, start, new = pq.read_metadata(file), file.stat().st_size, 0, []
    with pq.ParquetFile(file) as opened:
        for number in range(metadata.num_row_groups):
            group = metadata.row_group(number)
            stop = max(_chunk_end(group.column(i)) for i in range(group.num_columns))
            new.append(
                _row(shard, number, start, stop)
                | {"rows": group.num_rows}
                | _counts(opened, number)
            )
            start = stop
    new.append(_row(shard, -1, start, size))
    others = [row for row in rows if row["unit"] != shard]
    rows = sorted([*new, *others], key=lambda r: (r["unit"], r["row_group"] % (1 << 31)))
    write_index_page(path, rows, schema)
    reseal(path)


def reseal_head(path: Path, name: str) -> None:
    """Write the digest of a forged file of `head/` into the manifest, as a forger would."""
    manifest = read_manifest(path)
    assert manifest.states is not None
    digest = FileDigest(path=name, sha256=sha256_file(path / name))
    files = tuple(digest if f.path == name else f for f in manifest.states.files)
    states = manifest.states.model_copy(update={"files": files})
    write_manifest(path, manifest.model_copy(update={"states": states}))


def reseal_part(path: Path, data: bytes) -> None:
    """Write other bytes as the hidden states of unit 0, with hashes that fit as far as they can."""
    entry = read_entry(path, 0)
    assert entry is not None
    assert entry.hidden is not None
    (path / hidden_name(0)).write_bytes(data)
    size = len(data)
    stops = [min(g.stop, size - 1) for g in entry.hidden.row_groups]
    starts = [0, *stops]

    def cut(known: ByteRange, start: int, stop: int) -> ByteRange:
        digest = sha256_bytes(data[start:stop])
        return known.model_copy(update={"start": start, "stop": stop, "sha256": digest})

    groups = tuple(
        cut(g, a, b) for g, a, b in zip(entry.hidden.row_groups, starts, stops, strict=False)
    )
    footer = cut(entry.hidden.footer, stops[-1], size)
    hidden = entry.hidden.model_copy(update={"row_groups": groups, "footer": footer})
    write_entry(path, entry.model_copy(update={"hidden": hidden}))
    close_set(path, read_manifest(path))


def _row(unit: int, row_group: int, start: int, stop: int) -> Json:
    facts = {"unit": unit, "shard": f"shards/part-{unit:06d}.parquet", "row_group": row_group}
    counts = {"rows": 0, "labels": 0, "tokens": 0, "sha256": "0" * 64}
    return facts | {"start": start, "stop": stop} | counts


def _counts(file: pq.ParquetFile, number: int) -> Json:
    try:
        sums = file.read_row_group(number, columns=["n_labels", "n_tokens"]).to_pydict()
        return {name: max(0, sum(sums[f"n_{name}"])) for name in ("labels", "tokens")}
    except (KeyError, TypeError, pa.ArrowException):
        return {}


def _chunk_end(chunk: pq.ColumnChunkMetaData) -> int:
    starts = [chunk.data_page_offset, chunk.dictionary_page_offset or chunk.data_page_offset]
    return min(starts) + int(chunk.total_compressed_size)


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])


def files_of(path: Path) -> Iterator[Path]:
    """Yield the regular files of a set, sorted."""
    return (file for file in sorted(path.rglob("*")) if file.is_file() and not file.is_symlink())
