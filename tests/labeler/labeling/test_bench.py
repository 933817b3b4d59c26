"""`labeler bench`: figures from rounds, and rounds in turns with real vLLM."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from labeler.labeling.bench import bench_turns
from labeler.labeling.bench.bench_model import require_cache
from labeler.labeling.bench.bench_table import print_results
from labeler.labeling.bench.bench_turns import measure_in_turns, require_fit, summarize_rounds
from labeler.labeling.bench.bench_workload import (
    Loaded,
    NamedModel,
    Round,
    Wave,
    Workload,
    read_prompts,
)
from labeler.labeling.label_config import LabelConfig
from labeler.labeling.runs.label_run import label
from schemas import SoftshardsError, open_label_set
from schemas.bench_results import BenchModel, BenchResults, Measured, read_bench_results
from tests.labeler.command_line import CommandLine
from tests.tiny_model import TEXT


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory, teacher: Path) -> Path:
    """Make a small label set, to take prompts from."""
    folder = tmp_path_factory.mktemp("bench")
    rows = [{"id": f"doc{i}", "text": " ".join(TEXT[i:])} for i in range(4)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = folder / "set"
    config = LabelConfig(model=teacher, out=out, engine="transformers", k=4, max_length=64)
    label([str(folder / "corpus.jsonl")], config)
    return out


def workload(labels: Path | str = "set", **changes: object) -> Workload:
    settings: dict[str, object] = {
        "labels": str(labels),
        "sequences": 2,
        "concurrency": (1, 3),
        "prompt_tokens": 8,
        "new_tokens": 4,
        "repeats": 2,
        "dtype": "float32",
        "kv_cache_gb": 0.25,
    }
    return Workload(**(settings | changes))  # type: ignore[arg-type]


def test_figures_are_the_ones_computed_by_hand() -> None:
    def wave(requests: int, seconds: float, joules: float | None = None) -> Wave:
        return Wave(
            requests=requests,
            first_token_s=seconds / 4,
            last_token_s=seconds / 2,
            reading_s=seconds / 4,
            generating=100.0 / seconds,
            seconds=seconds,
            joules=joules,
            energy_source=joules and "RAPL",
        )

    work = workload()
    assert work.levels == (1, 2, 3)
    rounds = [
        Round(waves=(wave(1, 1.0), wave(2, 2.0, 40.0), wave(3, 3.0)), peak_memory_bytes=7),
        Round(waves=(wave(1, 2.0), wave(2, 4.0, 80.0), wave(3, 6.0)), peak_memory_bytes=9),
    ]
    model = NamedModel(name="m", path=Path("m"), source="m", weights="w")
    loaded = Loaded(engine="vllm 1", device="cpu", load_seconds=3.0)
    found = summarize_rounds(model, loaded, rounds, work)
    assert found.reading.rounds == (2 * 8 / 0.5, 2 * 8 / 1.0)
    assert found.generating.rounds == (50.0, 25.0)
    assert found.joules_per_token is not None
    assert found.joules_per_token.rounds == (5.0, 10.0)  # 2 x 4 tokens
    assert (found.energy_source, found.peak_memory_bytes) == ("RAPL", 9)
    level = found.latency(3)
    assert level is not None
    assert level.first_token_s.rounds == (0.75, 1.5)
    assert level.last_token_s.rounds == (1.5, 3.0)
    assert level.tokens_per_s.rounds == (4.0, 2.0)  # 3 x 4 tokens
    rounds[0] = rounds[0].model_copy(update={"waves": tuple(wave(n, 1.0) for n in work.levels)})
    uncounted = summarize_rounds(model, loaded, rounds, work)
    assert (uncounted.joules_per_token, uncounted.energy_source) == (None, None)
    estimate = {"joules": 9.0, "energy_source": "codecarbon 3", "energy_is_estimated": True}
    estimated = rounds[1].waves[1].model_copy(update=estimate)
    rounds[0] = rounds[1].model_copy(update={"waves": (wave(1, 1.0), estimated, wave(3, 3.0))})
    mixed = summarize_rounds(model, loaded, rounds, work)  # one counted, one estimated
    assert (mixed.joules_per_token, mixed.energy_is_estimated) == (None, False)
    alike = summarize_rounds(model, loaded, [rounds[0]] * 2, work)
    assert alike.joules_per_token == Measured.of([9 / 8] * 2)
    assert (alike.energy_source, alike.energy_is_estimated) == ("codecarbon 3", True)


def test_a_short_set_gives_prompts_again(labels: Path) -> None:
    tokens = open_label_set(labels).tokens
    prompts = read_prompts(workload(labels, prompt_tokens=40, concurrency=(500,)))
    assert len(prompts) == 500
    assert {len(prompt) for prompt in prompts} == {40}
    assert prompts[0] == prompts[tokens // 40]
    with pytest.raises(SoftshardsError, match=f"has {tokens} tokens, a prompt needs 99999"):
        read_prompts(workload(labels, prompt_tokens=99_999))


def test_figures_that_are_not_stable_are_marked(capsys: pytest.CaptureFixture[str]) -> None:
    def model(name: str, speeds: list[float]) -> BenchModel:
        figure = Measured.of(speeds)
        return BenchModel(name=name, model=name, reading=figure, generating=figure)

    print_results(BenchResults(models=(model("a", [10.0, 10.5]), model("b", [20.0, 21.0]))))
    printed = capsys.readouterr()
    assert "?" not in printed.out
    assert not printed.err
    assert "2.00x \u00b10%" in printed.out
    print_results(BenchResults(models=(model("a", [10.0, 20.0]), model("b", [20.0, 40.0]))))
    printed = capsys.readouterr()
    assert "10.0 to 20.0 ?" in printed.out
    assert "2.00x \u00b10%" in printed.out  # both were slowed alike
    assert "? not stable" in printed.err


def test_an_estimate_of_energy_is_marked(capsys: pytest.CaptureFixture[str]) -> None:
    figure = Measured.of([0.5, 0.5])
    settings = {"reading": figure, "generating": figure, "joules_per_token": figure}
    counted = BenchModel(name="a", model="a", **settings, energy_source="RAPL")
    print_results(BenchResults(models=(counted,)))
    printed = capsys.readouterr()
    assert "J/token" in printed.out
    assert "est." not in printed.out + printed.err
    facts = {"energy_source": "codecarbon 3", "energy_is_estimated": True}
    print_results(BenchResults(models=(counted.model_copy(update=facts),)))
    printed = capsys.readouterr()
    assert "0.5 \u00b10% est." in printed.out
    assert "estimated from constants by codecarbon 3, not measured" in " ".join(printed.err.split())


def test_models_that_the_load_does_not_fit_are_refused(teacher: Path, tmp_path: Path) -> None:
    """Before anything is loaded: a table of positions would end, and ids would be unknown."""
    config = json.loads((teacher / "config.json").read_text())
    work = workload(prompt_tokens=128, new_tokens=64)
    for context, hint in ((192, None), (191, "128 --new-tokens 63"), (6, "4 --new-tokens 2")):
        (tmp_path / "config.json").write_text(
            json.dumps(config | {"max_position_embeddings": context})
        )
        if hint is None:
            require_fit(tmp_path, work, highest=config["vocab_size"] - 1)
            continue
        with pytest.raises(SoftshardsError, match=f"model's context of {context} tokens") as caught:
            require_fit(tmp_path, work, highest=0)
        assert f"--prompt-tokens {hint} fit" in str(caught.value.hint)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(SoftshardsError, match=f"token {config['vocab_size']}, and the model knows"):
        require_fit(tmp_path, workload(), highest=config["vocab_size"])


@pytest.mark.vllm
@pytest.mark.usefixtures("quick_children")
def test_models_run_in_turns_and_are_measured_once(
    labeler: CommandLine, teacher: Path, labels: Path
) -> None:
    work = ("--sequences", "3", "--prompt-tokens", "16", "--new-tokens", "6", "--repeats", "2")
    more = ("--concurrency", "1", "--concurrency", "4", "--kv-cache-gb", "0.25")
    models = (f"tiny={teacher}", f"again={teacher}")
    given = ("bench", *models, "--labels", labels, "--out", "bench.json", *work, *more)
    done = labeler(*given)
    assert done.code == 0, done.err
    turns = [line.partition(": ") for line in done.err.splitlines() if line.startswith("round")]
    assert [(at[6], name) for at, _, name in turns] == [
        *(("1", "tiny"), ("1", "again")),
        *(("2", "tiny"), ("2", "again")),
    ]
    results = read_bench_results(Path("bench.json"))
    assert results.engine["concurrency"] == "1, 4"
    for model in results.models:
        assert model.device is not None
        assert [level.concurrency for level in model.latencies] == [1, 3, 4]
        figures = [model.reading, model.generating]
        for level in model.latencies:
            figures += [level.first_token_s, level.last_token_s, level.tokens_per_s]
            assert level.first_token_s.median < level.last_token_s.median
        assert all(len(figure.rounds) == 2 for figure in figures)
        assert all(math.isfinite(figure.median) for figure in figures)
        assert model.peak_memory_bytes is not None
        assert model.peak_memory_bytes > 100 << 20  # Python with torch and vLLM takes more
        # Counted, or estimated by codecarbon, which the tests have.
        assert model.joules_per_token is not None
        assert model.energy_is_estimated == str(model.energy_source).startswith("codecarbon")
    generating = results.models[0].generating
    shown = generating.median if generating.is_stable else min(generating.rounds)
    assert f"{shown:.1f}" in done.out
    again = labeler(*given, "--json")
    assert "bench.json: reusing its figures" in again.err
    assert again.json == json.loads(Path("bench.json").read_bytes())


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.usefixtures("quick_children")
def test_models_that_do_not_fit_together_are_loaded_for_each_round(
    teacher: Path, labels: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench_turns, "SHARE_USED", 0.0)
    model = NamedModel(name="tiny", path=teacher, source=str(teacher), weights="")
    (found,) = measure_in_turns([model], workload(labels))
    assert len(found.generating.rounds) == 2
    assert "each is loaded again for each round" in capsys.readouterr().err


def test_a_cache_that_is_too_small_is_refused() -> None:
    work = workload(concurrency=(64,), prompt_tokens=128, new_tokens=64, kv_cache_gb=1.0)
    require_cache(64 * 208, 16, work)  # 193 tokens are 13 blocks of 16
    with pytest.raises(
        SoftshardsError, match="holds 13311 tokens; 64 sequences at once need 13312"
    ):
        require_cache(64 * 208 - 1, 16, work)
    with pytest.raises(SoftshardsError) as caught:
        require_cache(5000, 16, work)
    assert str(caught.value.hint).startswith("--kv-cache-gb 2.7,")  # 13,312 / 5,000


@pytest.mark.parametrize(
    "flag",
    [
        "--sequences",
        "--prompt-tokens",
        "--new-tokens",
        "--repeats",
        "--concurrency",
        "--kv-cache-gb",
    ],
)
def test_workloads_without_work_are_refused(labeler: CommandLine, flag: str) -> None:
    done = labeler("bench", "x", "--labels", "set", flag, "0")
    assert done.code == 2
    assert flag in done.err + done.out
