"""The viewer's data, server and page; test_viewer_browser.py clicks through them."""

from __future__ import annotations

import base64
import json
import shutil
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from labeler.labelsets.common.row_matching import match_rows
from labeler.labelsets.common.selection import save_view, select_rows
from labeler.labelsets.common.vocabulary import Vocabulary, open_vocabulary
from labeler.labelsets.view.html_page import json_for_html, server_page, write_page
from labeler.labelsets.view.page_data import Viewer, open_viewer
from labeler.labelsets.view.row_list import SORTS, Query, parse_query
from labeler.labelsets.view.server import make_server
from labeler.labelsets.view.view_command import run_view
from labeler.labelsets.view.view_config import ViewConfig
from schemas import Labels, LabelSetError, SoftshardsError, decode, open_label_set, scan
from schemas.divergence import diverge
from tests.labeler.command_line import CommandLine
from tests.labeler.test_cli import assert_one_error
from tests.labeler.viewed import SCRIPT
from tests.tiny_model import make_model, make_tokenizer
from tests.trainer.build_label_set import Row, build_label_set


@pytest.fixture(scope="module")
def viewer(viewed_sets: dict[str, Path]) -> Viewer:
    return open_viewer(viewed_sets["a"])


@pytest.fixture(scope="module")
def both(viewed_sets: dict[str, Path]) -> Viewer:
    return open_viewer(viewed_sets["a"], viewed_sets["b"])


def unpacked(side: dict[str, Any]) -> Labels:
    """Unpack the labels of `Viewer.row` as its docstring describes."""

    def array(name: str, kind: str) -> Any:
        return np.frombuffer(base64.b64decode(side[name]), kind)

    shape = (len(side["at"]), side["k"])
    ids = array("topk_ids", f"<u{side['id_bytes']}").astype(np.int64)
    pad = 2 ** (8 * side["id_bytes"]) - 1
    return Labels(
        topk_ids=np.where(ids == pad, -1, ids).astype(np.int32).reshape(shape),
        topk_logprobs=array("topk_logprobs", "<f2").astype(np.float32).reshape(shape),
        tail_logprob=array("tail_logprob", "<f4"),
        token_logprob=array("token_logprob", "<f4"),
        entropy=array("entropy", "<f4"),
    )


def shown(vocabulary: Vocabulary, ids: list[int]) -> str:
    """Return a row's text as the page assembles it."""
    whole = vocabulary.join_fragments(ids)
    return "".join(whole.get(place, vocabulary.texts[token]) for place, token in enumerate(ids))


@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
@settings(max_examples=100)
def test_text_is_complete_where_tokens_cut_its_characters(
    viewer: Viewer, viewed_sets: dict[str, Path], text: str
) -> None:
    tokenizer = Tokenizer.from_file(str(viewed_sets["a"] / "tokenizer" / "tokenizer.json"))
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert shown(viewer.vocabulary, ids) == text


def test_a_fragment_alone_is_shown_as_its_bytes(
    viewer: Viewer, viewed_sets: dict[str, Path]
) -> None:
    tokenizer = Tokenizer.from_file(str(viewed_sets["a"] / "tokenizer" / "tokenizer.json"))
    ids = tokenizer.encode("\U0001f99c", add_special_tokens=False).ids
    assert len(ids) == 4
    assert [viewer.vocabulary.texts[i] for i in ids] == ["F0", "9F", "A6", "9C"]
    assert viewer.vocabulary.join_fragments(ids[:3]) == {}  # it is in no group
    joined = viewer.vocabulary.join_fragments([ids[1], *ids])
    assert joined == {1: "\U0001f99c", 2: "", 3: "", 4: ""}


def test_spaces_and_byte_tokens_of_a_sentencepiece_tokenizer(tmp_path: Path) -> None:
    pieces = ["<unk>", "a", "▁the", "▁cat", "s", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Tokenizer(
        models.Unigram([(piece, -1.0) for piece in pieces], unk_id=0, byte_fallback=True)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    vocabulary = open_vocabulary(tmp_path, len(pieces))
    assert vocabulary.texts[1:5] == ["a", " the", " cat", "s"]
    ids = [2, 3, *(5 + byte for byte in "é".encode())]
    assert shown(vocabulary, ids) == " the caté"


def test_a_row_has_its_labels_in_the_set(viewed_sets: dict[str, Path], viewer: Viewer) -> None:
    stored = {
        row["id"]: row for row in scan(viewed_sets["a"]).collect().to_dicts() if row["chunk"] == 0
    }
    table = pl.concat(
        [pl.DataFrame(viewer.labels.read_row_group(g, ["id"])) for g in viewer.labels.row_groups]
    )
    assert table["id"].to_list() == viewer.listing.frame["id"].to_list()
    for number in (0, viewer.listing.frame.height - 1):
        content = json.loads(json.dumps(viewer.row(number)))
        place = viewer.listing.frame.row(number, named=True)
        group = viewer.labels.read_row_group(viewer.labels.row_groups[place["group"]])
        expected = decode(group.slice(place["row"], 1)).labels
        found = unpacked(content["sides"][0])
        for name in ("topk_ids", "topk_logprobs", "tail_logprob", "token_logprob", "entropy"):
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), name)
        assert content["sides"][0]["at"] == [
            t for start, stop, _ in content["spans"] for t in range(start, stop)
        ]
        if content["chunk"] == 0:
            assert content["ids"] == stored[content["id"]]["input_ids"]


def test_a_compact_set_is_shown_like_a_plain_one(
    viewed_sets: dict[str, Path], viewer: Viewer
) -> None:
    compact = open_viewer(viewed_sets["compact"])
    assert compact.facts()["sets"][0]["codec"] == "compact/1"
    assert compact.listing.frame["id"].equals(viewer.listing.frame["id"])
    for number in range(3):
        a, b = viewer.row(number), compact.row(number)
        assert a["ids"] == b["ids"]
        ours, theirs = unpacked(a["sides"][0]), unpacked(b["sides"][0])
        np.testing.assert_array_equal(ours.topk_ids[:, 0], theirs.topk_ids[:, 0])
        assert diverge(ours, theirs).a_to_b.max() < 1e-3


def test_a_view_shows_the_rows_it_names(viewer: Viewer, tmp_path: Path) -> None:
    frame = viewer.listing.frame
    chosen = frame["n_labels"] < 40
    lengths = {name: frame[name].to_numpy() for name in ("n_labels", "n_tokens")}
    view = tmp_path / "few.view.json"
    save_view(view, select_rows(viewer.labels, chosen.to_numpy(), made={}, **lengths))
    few = open_viewer(view)
    kept = frame.filter(chosen)
    assert 0 < kept.height < frame.height
    assert few.listing.frame["id"].to_list() == kept["id"].to_list()
    assert few.facts()["sets"][0]["name"] == "few.view.json"
    for number, there in enumerate(kept["number"]):
        assert few.row(number)["ids"] == viewer.row(there)["ids"]


def test_filters_and_orders_agree_with_a_plain_loop(viewer: Viewer) -> None:
    rows = viewer.listing.page(Query(), 0, 1000)["rows"]
    assert [row["number"] for row in rows] == list(range(viewer.labels.rows))
    middle = sorted(row["mean_entropy"] for row in rows)[len(rows) // 2]
    query = parse_query({"min_mean_entropy": repr(middle), "sort": "mean_nll", "descending": "1"})
    kept = [row for row in rows if row["mean_entropy"] >= middle]
    assert 0 < len(kept) < len(rows)
    found = viewer.listing.page(query, 0, 1000)
    assert found["rows"] == sorted(kept, key=lambda row: -row["mean_nll"])
    pages = [viewer.listing.page(query, start, 3)["rows"] for start in range(0, len(kept), 3)]
    assert [row for page in pages for row in page] == found["rows"]
    assert viewer.listing.page(Query(source="<b>.jsonl"), 0, 1)["total"] == len(rows)
    assert viewer.listing.page(Query(source="other"), 0, 1)["total"] == 0
    for sort in SORTS[:-1]:
        values = [row[sort] for row in viewer.listing.page(Query(sort=sort), 0, 1000)["rows"]]
        assert values == sorted(values)


@pytest.mark.parametrize(
    ("search", "expected"),
    [("DOC11", {"doc11"}), ("naïve 日本", {"whole"}), (".*", set()), ("<B>BOLD", {SCRIPT})],
)
def test_search_finds_ids_and_the_text_of_tokens(
    viewer: Viewer, search: str, expected: set[str]
) -> None:
    found = viewer.listing.page(Query(search=search), 0, 1000)["rows"]
    assert {row["id"] for row in found} == expected


@pytest.mark.parametrize("asked", [{"sort": "price"}, {"min_coverage": "much"}])
def test_a_bad_query_is_refused(asked: dict[str, str]) -> None:
    with pytest.raises(SoftshardsError):
        parse_query(asked)


def test_two_sets_have_the_divergence_of_their_labels(both: Viewer) -> None:
    assert both.matched == both.labels.rows
    content = both.row(1)
    a, b = map(unpacked, content["sides"])
    assert content["diverges_at"] is None
    assert content["sides"][0]["at"] == content["sides"][1]["at"]
    found = np.frombuffer(base64.b64decode(content["sides"][1]["a_to_b"]), "<f4")
    np.testing.assert_allclose(found, diverge(a, b).a_to_b, rtol=1e-3, atol=1e-5)
    assert found.max() > 1e-3


def test_rows_are_compared_up_to_where_they_diverge(teacher: Path, tmp_path: Path) -> None:
    """Where the first tokens differ, the teacher still has the same context."""
    size = len(open_vocabulary(teacher, 100).texts)
    start, rest = [5, 6, 7, 8], [9, 10, 11]
    for name, more in (("one", rest), ("two", [20, *rest])):
        ids = [*start, *more]
        row = Row(id="r", input_ids=ids, spans=[(1, len(ids), "answer")])
        build_label_set(tmp_path / name, teacher, [row], vocab_size=size)
    content = open_viewer(tmp_path / "one", tmp_path / "two").row(0)
    assert content["diverges_at"] == 4
    assert content["sides"][0]["at"] == [1, 2, 3, 4, 5, 6]
    assert content["sides"][1]["at"] == [1, 2, 3, 4]
    kl = np.frombuffer(base64.b64decode(content["sides"][1]["a_to_b"]), "<f4")
    np.testing.assert_allclose(kl, 0, atol=1e-6)  # the same teacher
    alone = open_viewer(tmp_path / "two", tmp_path / "one").row(0)
    assert alone["diverges_at"] == 4


def test_a_set_labeled_again_is_matched_by_the_origin_of_its_rows() -> None:
    ours = pl.DataFrame({"number": [0, 1, 2], "id": ["x", "x", "y"], "chunk": [0, 1, 0]})
    theirs = pl.DataFrame({"id": ["x/1/0", "x", "z"], "chunk": [0, 0, 0]})
    found = match_rows(
        ours.with_columns(sample=0, parent_id=pl.lit(None, pl.String)),
        theirs.with_columns(
            sample=0,
            parent_id=pl.Series(["x/1/0", "x/0/0", None]),
            group=0,
            row=pl.Series([0, 1, 2]),
            mean_nll=1.0,
        ),
    )
    assert dict(found.sort("number").select("number", "row_b").rows()) == {0: 1, 1: 0}


@pytest.fixture(scope="module")
def server(viewer: Viewer) -> Iterator[str]:
    with make_server(viewer) as one:
        threading.Thread(target=one.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{one.server_port}"
        one.shutdown()


def ask(
    url: str, *, method: str = "GET", host: str | None = None
) -> tuple[int, bytes, dict[str, str]]:
    headers = {} if host is None else {"Host": host}
    request = urllib.request.Request(url, method=method, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=300) as answer:
            return answer.status, answer.read(), dict(answer.headers)
    except urllib.error.HTTPError as error:
        return error.code, error.read(), dict(error.headers)


def test_the_server_answers_with_the_same_data(server: str, viewer: Viewer) -> None:
    rows = json.loads(ask(f"{server}/api/rows?limit=5&offset=2&sort=n_labels&descending=1")[1])
    assert rows == viewer.listing.page(Query(sort="n_labels", descending=True), 2, 5)
    assert json.loads(ask(f"{server}/api/row?number=3")[1]) == json.loads(json.dumps(viewer.row(3)))
    start = json.loads(ask(f"{server}/api/start")[1])
    assert len(start["vocabulary"]["texts"]) == viewer.labels.manifest.identity.vocab_size
    assert start["facts"]["sets"][0]["identity_digest"] == viewer.labels.manifest.identity_digest
    status, body, headers = ask(f"{server}/")
    assert (status, body.decode()) == (200, server_page())
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert "Access-Control-Allow-Origin" not in headers


@pytest.mark.parametrize("host", ["evil.example", "evil.example:{port}", "127.0.0.1:1", ""])
def test_a_foreign_name_is_refused(server: str, host: str) -> None:
    """A page of another site whose name was rebound to 127.0.0.1 sends its own Host."""
    port = server.rsplit(":", 1)[1]
    for path in ("/", "/api/row?number=0"):
        status, body, _ = ask(server + path, host=host.format(port=port))
        assert status == 403
        assert b"topk" not in body
    assert ask(f"{server}/", host=f"localhost:{port}")[0] == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"])
def test_only_get_is_answered(server: str, method: str) -> None:
    assert ask(f"{server}/api/start", method=method)[0] == 405


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/row?number=100000", 400),
        ("/api/row?number=-1", 400),
        ("/api/rows?limit=many", 400),
        ("/api/rows?sort=price", 400),
        ("/api/other", 404),
        ("/../manifest.json", 404),
        ("/manifest.json", 404),
    ],
)
def test_missing_paths_are_errors(server: str, path: str, status: int) -> None:
    found, body, _ = ask(server + path)
    assert found == status
    assert json.loads(body)["error"]


def test_the_server_listens_on_this_machine_only(server: str) -> None:
    port = int(server.rsplit(":", 1)[1])
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", port), timeout=5)


def is_refused(viewer: Viewer, number: int, shard: str) -> bool:
    try:
        viewer.row(number)
    except LabelSetError as error:
        return shard in str(error)
    return False


def test_an_altered_shard_is_never_shown(viewed_sets: dict[str, Path], tmp_path: Path) -> None:
    copy = shutil.copytree(viewed_sets["a"], tmp_path / "copy")
    shard = open_label_set(copy).shards[0]
    data = bytearray((copy / shard).read_bytes())
    data[len(data) // 4] ^= 1
    (copy / shard).write_bytes(data)
    viewer = open_viewer(copy)
    damaged = {n for n in range(viewer.labels.rows) if is_refused(viewer, n, shard)}
    assert 0 < len(damaged) < viewer.labels.rows
    with pytest.raises(LabelSetError):
        write_page(tmp_path / "page.html", viewer, rows=viewer.labels.rows, seed=0)
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize(
    "text",
    [SCRIPT, "<!-- <script>", "\ud800 alone", "\u2028\u2029\x00\x1b", "]]>&lt;", "{{ data }}"],
)
def test_json_in_a_page_cannot_end_its_element(text: str) -> None:
    written = json_for_html({text: [text]})
    assert json.loads(written) == {text: [text]}
    assert written.isascii()
    assert not set("<>&\n") & set(written)


def test_the_page_holds_its_sample_and_names_no_folder(
    viewed_sets: dict[str, Path], labeler: CommandLine, tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    done = labeler("view", viewed_sets["a"], viewed_sets["b"], "--out", page, "--rows", 5, "--json")
    assert done.json == {
        "path": str(page),
        "rows": 5,
        "bytes": page.stat().st_size,
    }
    text = page.read_text()
    assert str(viewed_sets["a"].parent) not in text
    assert "{{" not in text.replace("{{ script }}", "")  # a text of the corpus
    assert text.count("</script>") == 2
    assert "http" not in text.replace("http-equiv", "")


def test_no_set_is_one_error(labeler: CommandLine, tmp_path: Path) -> None:
    assert_one_error(labeler("view", tmp_path), "no label set here")


@pytest.mark.parametrize(
    ("rows", "out_file", "message"),
    [(0, "page.html", "--rows is less than 1"), (5, ".", "this is a folder")],
)
def test_a_page_that_cannot_be_written_is_refused(
    rows: int, out_file: str, message: str, viewed_sets: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(SoftshardsError, match=message):
        run_view(
            ViewConfig(
                viewed_sets["a"], out_file=tmp_path / out_file, rows=rows, open_browser=False
            )
        )
    assert not (tmp_path / "page.html").exists()


def test_sets_of_two_tokenizers_are_refused(viewed_sets: dict[str, Path], tmp_path: Path) -> None:
    size = make_tokenizer(tmp_path / "teacher", vocab_size=280)
    make_model(tmp_path / "teacher", vocab_size=size)
    row = Row(id="r", input_ids=[1, 2, 3], spans=[(1, 3, "text")])
    build_label_set(tmp_path / "strange", tmp_path / "teacher", [row], vocab_size=size)
    with pytest.raises(SoftshardsError, match="different tokenizers"):
        open_viewer(viewed_sets["a"], tmp_path / "strange")


def test_a_taken_port_is_one_error(server: str, viewer: Viewer) -> None:
    with pytest.raises(SoftshardsError, match="cannot be used"):
        make_server(viewer, int(server.rsplit(":", 1)[1]))
