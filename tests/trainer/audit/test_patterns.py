"""Personal data and secrets, without a network."""

from __future__ import annotations

import base64
import socket
from pathlib import Path

import pytest

from schemas import SoftshardsError
from trainer.audit.audit_config import PII, AuditConfig
from trainer.audit.audit_models import load_patterns
from trainer.audit.patterns import find_all

pytestmark = pytest.mark.slow  # the import of Presidio alone takes seconds


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        pytest.fail(f"the network was asked: {arguments}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def found(text: str, **settings: object) -> list[tuple[str, str]]:
    config = AuditConfig(labels="L", model=(), out=Path("O"), **settings)  # type: ignore[arg-type]
    matches = find_all(text, load_patterns(config))
    return [(match.kind, text[match.start : match.stop]) for match in matches]


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("EMAIL_ADDRESS", "jane.doe+x@mail.example.co.uk"),
        ("EMAIL_ADDRESS", "müller@bücher.de"),
        ("EMAIL_ADDRESS", "王@例子.cn"),
        ("CREDIT_CARD", "4111 1111 1111 1111"),
        ("IBAN_CODE", "DE89370400440532013000"),
        ("IP_ADDRESS", "192.168.13.77"),
        ("MAC_ADDRESS", "00:1B:44:11:3A:B7"),
        ("PHONE_NUMBER", "+1 212 555 0187"),
        ("US_SSN", "536-90-4399"),
    ],
)
def test_personal_data(kind: str, value: str) -> None:
    assert kind in PII
    assert found(f"Größe 🎉 siehe {value} und so weiter") == [(kind, value)]


def secrets() -> dict[str, str]:
    """Return secrets of their kinds, made here so that no scanner of this repository finds them."""
    part = base64.urlsafe_b64encode(b'{"alg":"HS256","typ":"JWT"}').decode().rstrip("=")
    return {
        "AWS Access Key": "AKIA" + "IOSFODNN7EXAMPLQ",
        "GitHub Token": "ghp_" + "a1B2" * 9,
        "JSON Web Token": f"{part}.{part}.",  # the signature is not part of the pattern
        "Slack Token": "xoxb-" + "123456789012-1234567890123-" + "aB" * 12,
    }


@pytest.mark.parametrize("kind", list(secrets()))
def test_secrets(kind: str) -> None:
    value = secrets()[kind]
    assert found(f"ghp: set it to {value} and go") == [(kind, value)]


def test_the_value_of_an_assignment_and_a_short_password() -> None:
    value = "wJalrXUtnFEMI/K7MDENG/bPxRfiCY" + "EXAMPLEKEY"
    assert found(f"aws_secret_key = '{value}' # mine") == [("AWS Access Key", value)]
    assert found("see https://ann:pw12@host/x") == [("Basic Auth Credentials", "://ann:pw12@")]


def test_the_first_line_of_a_key_goes_with_its_body() -> None:
    head, body = "BEGIN RSA " + "PRIVATE KEY", "MIIEow" * 10
    ((kind, value),) = found(f"-----{head}-----\n{body}\nmore")
    assert kind == "Private Key"
    assert head in value
    assert value.endswith(body)


def test_plain_text_and_domains_that_do_not_exist() -> None:
    assert found("meet at 5 pm; a@b, x@y.notadomain; the password is important; v1.2.3") == []


def test_texts_longer_than_a_parser_reads() -> None:
    assert found("word " * 250_000 + "a.b@example.com") == [("EMAIL_ADDRESS", "a.b@example.com")]


def test_other_kinds() -> None:
    text = "NIF 12345678Z, mail a.b@example.com"
    assert found(text, pii=("ES_NIF",)) == [("ES_NIF", "12345678Z")]
    assert found(text, pii=("EMAIL_ADDRESS",), pii_score=1.0)[0][0] == "EMAIL_ADDRESS"


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(SoftshardsError, match="no pattern of this name") as caught:
        found("x", pii=("EMAIL",))
    assert "EMAIL_ADDRESS" in str(caught.value.hint)


def test_names_need_a_pipeline_that_is_installed(tmp_path: Path) -> None:
    with pytest.raises(SoftshardsError, match="nothing is downloaded") as caught:
        found("x", names="en_core_web_none")
    assert "python -m spacy download" in str(caught.value.hint)
    with pytest.raises(SoftshardsError, match="spaCy cannot load it"):
        found("x", names=str(tmp_path))


def test_names_by_a_pipeline_of_the_users(tmp_path: Path) -> None:
    import spacy

    pipeline = spacy.blank("de")
    ruler = pipeline.add_pipe("entity_ruler")
    ruler.add_patterns([{"label": "PERSON", "pattern": "Ingrid Halvorsen"}])  # type: ignore[attr-defined]
    pipeline.to_disk(tmp_path / "names")
    text = "Frau Ingrid Halvorsen, i.h@example.com"
    assert found(text, names=str(tmp_path / "names")) == [
        ("PERSON", "Ingrid Halvorsen"),
        ("EMAIL_ADDRESS", "i.h@example.com"),
    ]
    assert found(text) == [("EMAIL_ADDRESS", "i.h@example.com")]
