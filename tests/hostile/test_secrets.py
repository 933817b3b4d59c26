"""Passwords and tokens in URLs: in no message, no output, and no file that is stored or shared."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from labeler.labeling.inputs.locations import open_location
from schemas import SoftshardsError, open_label_set
from schemas.errors import first_line
from schemas.redact import redacted
from schemas.remote import Remote
from schemas.terminal import DataConsole
from tests.hostile.test_terminal_output import printed
from tests.labeler.command_line import CommandLine
from tests.labeler.web import served
from tests.schemas.sets import GOLDEN

SECRET = "s3cr3tPASSWORD"
TEXTS = {
    "user": f"https://user:{SECRET}@host/a.jsonl: cannot be read",
    "token as user": f"https://{SECRET}@host:80/x",
    "at in the password": f"https://u:{SECRET}@{SECRET}@host/x",
    "slash in the password": f"s3://u:{SECRET}/{SECRET}@bucket/x",
    "signed": f"https://b.s3.amazonaws.com/x?X-Amz-Signature={SECRET}&X-Amz-Expires=9",
    "shared access": f"abfs://c@a.dfs.core.windows.net/x?sv=1&sig={SECRET}: 403",
    "any parameter": f"https://host/x?q={SECRET}",
    "fragment": f"https://host/x#access_token={SECRET}",
    "chain": f"zip://in.jsonl::https://u:{SECRET}@host/x.zip?sig={SECRET}",
    "quoted": f"ClientError(404, url=URL('https://h/x?token={SECRET}'), 'y')",
    "without scheme": f"Max retries exceeded with url: /v1/models?api_key={SECRET}&x=1 (Caused by",
    "settings": f"token={SECRET}, password={SECRET}; secret={SECRET}",
    "header": f"{{'Authorization': 'Bearer {SECRET}'}}",
    "basic": f"Authorization: Basic {SECRET}==",
    "key of the Hub": f"401 for hf_{SECRET}{SECRET}",
    "capitals": f"HTTPS://u:{SECRET}@HOST/X?SIG={SECRET}",
    "two": f"https://u:{SECRET}@h/x and https://h/y?t={SECRET}, https://h/z",
}
PLAIN = [
    "http://127.0.0.1:8000/v1: no such file",
    "https://medium.com/@user/post",
    "id=5 tokens=7, num_tokens=9, keys=3, monkey=4",
    "is this a question? yes (https://host/a.b), really",
    "the basic problem of a bearer",
    "/a/b?c.jsonl, me@example.org, a@b:c",
    "https://huggingface.co/datasets/o/n",
]


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_secrets_are_hidden(text: str) -> None:
    error = SoftshardsError(text, path=text, hint=text)
    shown = [redacted(text), str(error), str(error.path), error.what, str(error.hint)]
    shown += [first_line(OSError(text)), printed(text), str(SoftshardsError("x", path=Path(text)))]
    for each in shown:
        assert SECRET not in each
        assert "***" in each
    assert redacted(redacted(text)) == redacted(text)


@pytest.mark.parametrize("text", PLAIN)
def test_other_text_is_untouched(text: str) -> None:
    assert redacted(text) == text
    assert isinstance(DataConsole().render_str(text).plain, str)


def holds_secret(folder: Path) -> list[str]:
    return [str(p) for p in folder.rglob("*") if p.is_file() and SECRET.encode() in p.read_bytes()]


def with_user(url: str) -> str:
    return url.replace("://", f"://user:{SECRET}@")


def test_a_corpus_behind_a_signed_url(labeler: CommandLine, teacher: Path, tmp_path: Path) -> None:
    web = tmp_path / "web"
    web.mkdir()
    (web / "a.jsonl").write_text('{"text": "some words to read"}\n{"text"\n')
    (web / "bad.json").write_text('[{"text": "x"')
    flags = ("--model", teacher, "--engine", "transformers", "--max-length", 64, "--k", 4)
    flags = (*flags, "--max-reject-share", 1.0)
    with served(web) as url:
        query = f"?token={SECRET}"
        ran = labeler("label", f"{url}/a.jsonl{query}", *flags, "--out", "set", "--json")
        assert ran.code == 0, ran.err
        for name in ("gone.jsonl", "bad.json"):
            for at, more in ((url, query), (with_user(url), "")):
                lost = labeler("label", f"{at}/{name}{more}", *flags, "--out", "other")
                assert lost.code == 2
                assert SECRET not in ran.out + ran.err + lost.out + lost.err
    assert holds_secret(tmp_path) == []
    rejects = labeler("inspect", "set", "--rejects", "--json").out
    assert json.loads(rejects)["id"] == "a.jsonl:1"


def test_a_server_of_a_teacher_that_does_not_answer(
    labeler: CommandLine, teacher: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "some words to read"}\n')
    for url in (f"http://u:{SECRET}@127.0.0.1:9/v1", f"http://127.0.0.1:9/v1?api_key={SECRET}"):
        flags = ("--engine", "served", "--server-url", url, "--retries", 0, "--max-length", 64)
        lost = labeler("label", "a.jsonl", "--model", teacher, "--out", "set", *flags)
        assert lost.code == 2
        assert SECRET not in lost.out + lost.err
    assert holds_secret(tmp_path) == []


def test_a_set_behind_a_url_with_a_password() -> None:
    with pytest.raises(SoftshardsError) as caught:
        open_label_set(f"http://user:{SECRET}@127.0.0.1:9/set")
    assert SECRET not in str(caught.value)
    with pytest.raises(SoftshardsError) as caught:
        open_location(f"nosuch://user:{SECRET}@host/set")
    assert SECRET not in str(caught.value)
    labels = open_label_set(GOLDEN)
    object.__setattr__(labels, "remote", Remote(f"https://user:{SECRET}@host/set?sig={SECRET}"))
    assert labels.place == "https://***@host/set?***"
