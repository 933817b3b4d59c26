from __future__ import annotations

import math
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from schemas import SoftshardsError
from tests.trainer.report.reported import DIGEST, Reported
from trainer.report.build_report import report
from trainer.report.markdown_text import escape_cell, escape_text, is_ours, sign
from trainer.slice.slice_result import SliceResult

NASTY = "---\nlicense: mit\n---\n# <b>`x`</b> | *y* {{ z }}"


@pytest.fixture
def reported(tmp_path: Path) -> Reported:
    found = Reported(tmp_path)
    found.add("ce", ce=2.5, loss=("ce=1",), folder="ce")
    found.add("kd", ce=2.4, kl=math.inf, folder="kd")
    return found


def test_the_hub_reads_the_card(reported: Reported) -> None:
    report(reported.config(model_card=True))
    card = ModelCard.load(reported.root / "kd" / "final" / "README.md")
    assert card.data.library_name == "transformers"
    assert card.data.base_model is None  # a folder has no name on the Hub
    assert card.data.softshards["teacher"] == "teacher"
    assert card.data.softshards["label_set"] == {"content": DIGEST}
    assert card.data.softshards["recipe"]["loss"] == ["forward_kl=1", "ce=1"]
    results = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert results["perplexity"] == pytest.approx(math.exp(2.4), abs=1e-5)
    assert "kl_divergence" not in results  # it is not finite
    assert "on the stored soft labels of its teacher" in card.text
    control = ModelCard.load(reported.root / "ce" / "final" / "README.md")
    assert "on tokens alone" in control.text
    assert str(reported.root) not in control.content + card.content


def test_the_base_model_is_named_if_the_hub_has_it(reported: Reported) -> None:
    result = reported.root / "kd" / "result.json"
    text = result.read_text().replace('"student": "s"', '"student": "owner/name"')
    result.write_text(text.replace('"lr"', f'"revision": "{"c" * 40}", "lr"'))
    report(reported.config(model_card=True))
    card = ModelCard.load(reported.root / "kd" / "final" / "README.md")
    assert card.data.base_model == "owner/name"


def test_the_license_is_that_of_the_first_weights(reported: Reported) -> None:
    student, teacher = reported.root / "first", reported.root / "teacher"
    for folder in (student, teacher):
        folder.mkdir()
    link = "https://example.org/license"
    (teacher / "README.md").write_text(
        f"---\nlicense: other\nlicense_name: mine\nlicense_link: {link}\n---\n# t\n"
    )
    sliced = SliceResult(
        asked={}, layers=[0], of=2, kl=1.0, removals=[], sample_labels=1, teacher=str(teacher)
    )
    sliced.write(student / "slice.json")
    result = reported.root / "kd" / "result.json"
    result.write_text(result.read_text().replace('"student": "s"', f'"student": "{student}"'))
    report(reported.config(model_card=True))
    card = ModelCard.load(reported.root / "kd" / "final" / "README.md")
    found = (card.data.license, card.data.license_name, card.data.license_link)
    assert found == ("other", "mine", link)
    assert "The license is that of the weights" in card.text
    (student / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    report(reported.config(model_card=True))
    card = ModelCard.load(reported.root / "kd" / "final" / "README.md")
    assert (card.data.license, getattr(card.data, "license_name", None)) == ("apache-2.0", None)


def test_names_of_strangers_stay_text(tmp_path: Path) -> None:
    reported = Reported(tmp_path)
    reported.add(NASTY, ce=2.4, folder="kd")
    report(reported.config(model_card=True))
    card = ModelCard.load(tmp_path / "kd" / "final" / "README.md")
    assert card.data.license == "other"
    assert "stands for a license that is not known" in card.text
    assert card.data.model_name == NASTY.replace("\n", "\\n")
    assert "<b>" not in card.text.replace("\\<b\\>", "")


def test_a_card_of_the_user_is_kept(reported: Reported) -> None:
    card = reported.root / "kd" / "final" / "README.md"
    card.write_text("# mine\n")
    with pytest.raises(SoftshardsError, match=r"not written by(.|\n)*--model-card"):
        report(reported.config(model_card=True))
    assert card.read_text() == "# mine\n"
    assert not (reported.root / "report.html").exists()  # refused before anything is written
    assert report(reported.config()) == 0
    card.unlink()
    report(reported.config(model_card=True))
    report(reported.config(model_card=True))
    card.write_text(card.read_text().replace("Quality", "My quality"))
    with pytest.raises(SoftshardsError, match="edited since"):
        report(reported.config(model_card=True))


def test_what_is_signed_is_known_as_ours(tmp_path: Path) -> None:
    path = tmp_path / "x.md"
    assert is_ours(path)
    path.write_text(sign("# a\n\ntext\n\n"), encoding="utf-8")
    assert is_ours(path)
    path.write_bytes(b"\xff")
    assert not is_ours(path)


def test_markdown_of_others_is_text() -> None:
    assert escape_text("a*b|<c>\n# d") == r"a\*b\|\<c\>\\n\# d"
    assert escape_cell("a|b``c") == "``` a¦b``c ```"
    assert escape_cell("") == "`  `"
