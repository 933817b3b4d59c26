"""What was planted is found in a student that saw it 50 times, and not in one that never did."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.trainer.audit.planted import (
    CANARIES,
    CHAT_EMAIL,
    COPIES,
    EMAIL,
    NOISE,
    Planted,
    plant,
    train_student,
)
from trainer.audit.audit_results import AuditResults
from trainer.cli import main


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    return plant(tmp_path_factory.mktemp("planted"))


@pytest.fixture(scope="module")
def trained(planted: Planted, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_student(planted, tmp_path_factory.mktemp("run"))


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main(["audit", *map(str, arguments)])
    assert isinstance(stop.value.code, int)
    return stop.value.code


@pytest.mark.slow
def test_planted_text_is_found_in_the_student_that_saw_it(
    planted: Planted, trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "audit.json"
    flags = ["--labels", planted.labels, "--out", out, "--model", trained]
    flags += ["--control", planted.student, "--teacher", planted.teacher]
    flags += ["--canaries", planted.canaries, "--prefix", 20, "--continuation", 8, "--rows", 50]
    assert run(*flags) == 0
    printed = capfd.readouterr()
    results = AuditResults.open(out)
    assert results.text is not None
    assert results.text.rows == results.label_set.rows == NOISE + 2 * COPIES * (CANARIES + 1)
    assert results.text.kinds() == {"EMAIL_ADDRESS": 2}
    letters = {f"{kind}{n}" for kind in ("letter-", "chat-letter-") for n in range(COPIES)}
    assert {f.row.id for f in results.text.findings} == letters
    saw, teacher, never = results.models
    assert [saw.role, teacher.role, never.role] == ["model", "teacher", "control"]
    assert saw.leaks is not None
    assert never.leaks is not None
    assert saw.leaks.kinds["EMAIL_ADDRESS"].found == 2
    assert never.leaks.kinds["EMAIL_ADDRESS"].found == 0
    assert saw.leaks.values == sorted({found.value for found in results.text.findings})
    assert saw.canaries is not None
    assert never.canaries is not None
    assert saw.canaries.memorized.found == CANARIES
    assert never.canaries.memorized.found == 0
    assert [canary.rows for canary in saw.canaries.canaries] == [COPIES] * CANARIES
    assert saw.memorization.near_verbatim.found > 0
    assert never.memorization.near_verbatim.found == 0
    assert saw.memorization.longest > never.memorization.longest
    assert f"{trained} repeats, and no control does" in printed.out
    assert ", values 2, canaries 3" in printed.out
    everything = printed.out + printed.err + out.read_text() + Path(results.rules[0]).read_text()
    for secret in (EMAIL, CHAT_EMAIL, "halvorsen", *planted.digits):
        assert secret not in everything


@pytest.mark.slow
def test_canaries_in_chats_are_ranked_in_the_chat(
    planted: Planted, trained: Path, tmp_path: Path
) -> None:
    """As the student saw it: without the instructions that the teacher alone was given."""
    out = tmp_path / "audit.json"
    flags = ["--labels", planted.labels, "--out", out, "--model", trained]
    flags += ["--control", planted.student, "--canaries", planted.chats, "--scan-rows", 0]
    assert run(*flags, "--prefix", 8, "--continuation", 8, "--rows", 5) == 0
    saw, never = AuditResults.open(out).models
    assert saw.canaries is not None
    assert never.canaries is not None
    assert saw.canaries.in_rows
    assert [canary.rows for canary in saw.canaries.canaries] == [COPIES] * CANARIES
    assert saw.canaries.memorized.found == CANARIES
    assert never.canaries.memorized.found == 0
