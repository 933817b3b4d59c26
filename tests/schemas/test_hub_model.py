"""Names of models: folders, repositories of the Hub, and what is neither."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from huggingface_hub import constants

from schemas import SoftshardsError
from schemas.hub_files import small_files, weight_files
from schemas.hub_model import ModelSource, locate_model
from tests.labeler.hub import TOKEN, Hub
from tests.model_hub import downloads, models, publish

__all__ = ["models"]

NAME = "lab/tiny-1B"
SMALL = {"config.json": b"{}", "tokenizer.json": b"{ }", "generation_config.json": b"{  }"}
FILES = SMALL | {
    "model.safetensors": b"w" * 1_500_000,
    "consolidated.safetensors": b"the same",
    "pytorch_model.bin": b"the same",
    "original/consolidated.00.pth": b"the same",
    "tiny.gguf": b"the same",
    "README.md": b"#",
}
WANTED = sorted([*SMALL, "model.safetensors"])
INDEX = json.dumps(
    {"weight_map": {"a": "model-2.safetensors", "b": "model-1.safetensors"}}
).encode()


class Said(list[str]):
    def __call__(self, line: str) -> None:
        self.append(line)


@pytest.fixture
def said() -> Said:
    return Said()


def refused(model: Path | str, revision: str | None = None) -> SoftshardsError:
    with pytest.raises(SoftshardsError) as caught:
        locate_model(model, say=Said(), revision=revision)
    return caught.value


def test_needed_files_are_downloaded_once_and_their_size_told(models: Hub, said: Said) -> None:
    (commit,) = publish(models, NAME, FILES)
    found = locate_model(NAME, say=said)
    cache = constants.HF_HUB_CACHE
    assert found == ModelSource(folder=found.folder, name=NAME, commit=commit)
    assert str(found) == f"{NAME}@{commit}"
    assert found.folder == Path(cache, "models--lab--tiny-1B", "snapshots", commit)
    assert downloads(models) == WANTED == sorted(path.name for path in found.folder.iterdir())
    assert said == [f"{NAME}@{commit}: downloading 4 files, 1.5 MB, to {cache}"]
    models.log.clear()
    assert locate_model(Path(NAME), say=said) == found
    assert downloads(models) == []
    assert len(said) == 1


def test_without_weights(models: Hub, said: Said) -> None:
    (commit,) = publish(models, NAME, FILES)
    found = locate_model(NAME, say=said, weights=False)
    assert downloads(models) == sorted(SMALL)
    assert found.missing_bytes == 1_500_000
    assert said[1] == f"{NAME}@{commit}: 1.5 MB of weights are not downloaded yet"
    locate_model(NAME, say=said)
    assert downloads(models) == WANTED
    assert locate_model(NAME, say=said, weights=False).missing_bytes == 0


def test_revisions(models: Hub, said: Said) -> None:
    old, new = publish(models, NAME, FILES, FILES | {"model.safetensors": b"new"})
    models.repos[NAME].branches["v1"] = models.repos[NAME].branches["main"][:1]
    for model, revision, commit in (
        (NAME, None, new),
        (NAME, old, old),
        (f"{NAME}@{old}", None, old),
        (f"{NAME}@v1", "v1", old),
        (NAME, "v1", old),
    ):
        assert locate_model(model, say=said, revision=revision).commit == commit
    recorded = {"name": NAME, "commit": old}
    assert locate_model(NAME, say=said, recorded=recorded).commit == old
    assert locate_model(NAME, say=said, recorded=recorded, revision="main").commit == new
    assert locate_model(NAME, say=said, recorded=recorded | {"name": "a/b"}).commit == new


def test_a_folder_of_that_name_wins(
    models: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    publish(models, NAME, FILES)
    monkeypatch.chdir(tmp_path)
    Path(NAME).mkdir(parents=True)
    assert locate_model(NAME, say=Said()) == ModelSource(folder=Path(NAME))
    assert models.log == []
    assert "leave out --revision" in str(refused(NAME, "main"))


@pytest.mark.parametrize("model", ["gpt2", "./a/b/c", "/no/model", "a b/c", "../x/y", "a/b/c"])
def test_what_is_no_name_stays_a_folder(models: Hub, model: str) -> None:
    assert locate_model(model, say=Said()) == ModelSource(folder=Path(model))
    assert models.log == []


@pytest.mark.parametrize(
    ("address", "hint"),
    [
        ("https://huggingface.co/Qwen/Qwen3-8B", "give its name: Qwen/Qwen3-8B"),
        ("https://huggingface.co/Qwen/Qwen3-8B/", "give its name: Qwen/Qwen3-8B"),
        ("http://hf.co/Qwen/Qwen3-8B?x=1#files", "give its name: Qwen/Qwen3-8B"),
        ("huggingface.co/Qwen/Qwen3-8B", "give its name: Qwen/Qwen3-8B"),
        ("hf://Qwen/Qwen3-8B", "give its name: Qwen/Qwen3-8B"),
        ("https://hf.co/Qwen/Qwen3-8B/tree/v2", "give its name: Qwen/Qwen3-8B --revision v2"),
        ("https://huggingface.co/a/b/blob/main/config.json", "give its name: a/b --revision main"),
        (
            "https://huggingface.co/datasets/a/b",
            "give OWNER/NAME, as the Hub shows it, or a folder",
        ),
        ("https://example.org/model.tar", "give OWNER/NAME, as the Hub shows it, or a folder"),
    ],
)
def test_pasted_addresses_get_the_name(models: Hub, address: str, hint: str) -> None:
    for typed in (address, Path(address)):
        assert refused(typed).hint == hint
    assert models.log == []


def test_refusals(models: Hub) -> None:
    publish(models, NAME, FILES)
    for model, revision, what, hint in (
        ("lab/tinny-1B", None, "neither such a folder here nor such a model", "check the name"),
        (NAME, "v9", "no such revision", "check --revision"),
        (f"{NAME}@", None, "names no revision", "@REVISION"),
        (f"{NAME}@a", "b", "differ", "one revision"),
    ):
        error = refused(model, revision)
        assert what in error.what
        assert hint in str(error.hint)


def test_repositories_without_a_model(models: Hub) -> None:
    publish(models, "a/gguf", SMALL | {"x.gguf": b"", "y.gguf": b""})
    publish(models, "a/lora", {"adapter_config.json": b"{}", "adapter_model.safetensors": b""})
    publish(models, "a/broken", SMALL | {"model.safetensors.index.json": INDEX})
    assert "only other .gguf files" in refused("a/gguf").what
    assert "not of its adapters" in str(refused("a/lora").hint)
    assert "missing: model-1.safetensors, model-2.safetensors" in refused("a/broken").what
    assert not any(line.startswith("GET") and "gguf/resolve" in line for line in models.log)


def test_gated_and_private(models: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(models, NAME, FILES)
    models.repos[NAME].gated = True
    error = refused(NAME)
    assert error.what == "access to this model must be asked for"
    assert f"{models.url}/{NAME}" in str(error.hint)
    models.repos[NAME].private = True
    assert "if the model is private, log in" in str(refused(NAME).hint)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert locate_model(NAME, say=Said()).name == NAME


def test_offline(models: Hub, monkeypatch: pytest.MonkeyPatch, said: Said) -> None:
    old, new = publish(models, NAME, FILES, FILES | {"model.safetensors": b"new"})
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "hf download lab/tiny-1B" in str(refused(NAME).hint)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    found = locate_model(NAME, say=said)
    locate_model(NAME, say=said, revision=old, weights=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert locate_model(NAME, say=said) == found
    assert said[-1] == f"{NAME}@{new}: from the cache, because HF_HUB_OFFLINE is set"
    assert locate_model(f"{NAME}@{new}", say=said) == found
    assert "not whole" in refused(NAME, old).what  # its weights are not here
    assert locate_model(NAME, say=said, revision=old, weights=False).commit == old
    (found.folder / "model.safetensors").unlink()
    assert "not whole" in refused(NAME).what


def test_without_a_network(models: Hub, monkeypatch: pytest.MonkeyPatch, said: Said) -> None:
    (commit,) = publish(models, NAME, FILES)
    found = locate_model(NAME, say=said)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert locate_model(NAME, say=said) == found
    assert said[-1] == f"{NAME}@{commit}: from the cache, because the Hub cannot be reached"
    shutil.rmtree(constants.HF_HUB_CACHE)
    error = refused(NAME)
    assert "not a folder here, and the Hub does not give it" in error.what
    assert "check the network" in str(error.hint)


def test_the_disk_must_have_room(models: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(models, NAME, FILES)
    usage = shutil.disk_usage(".")._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert "set HF_HOME" in str(refused(NAME).hint)
    assert downloads(models) == []


def test_weights_are_taken_once() -> None:
    def weights(*names: str) -> list[str]:
        return weight_files(names, lambda _: INDEX)

    index = "model.safetensors.index.json"
    shards = ["model-1.safetensors", "model-2.safetensors"]
    assert weights(index, *shards, "model-3.safetensors", "consolidated.safetensors") == shards
    assert weights("model.safetensors", "model.fp16.safetensors") == ["model.safetensors"]
    assert weights("part.safetensors", "original/x.safetensors") == ["part.safetensors"]
    assert weights("pytorch_model.bin", "training_args.bin") == ["pytorch_model.bin"]
    assert weights("model.safetensors", "pytorch_model.bin") == ["model.safetensors"]
    assert weights("x.gguf", "consolidated.safetensors", "adapter_model.safetensors") == []


def test_small_files() -> None:
    wanted = ["config.json", "merges.txt", "tokenizer.model", "chat_template.jinja", "model.py"]
    wanted += ["additional_chat_templates/tools.jinja", "qwen.tiktoken", "code/layers.py"]
    assert small_files([*wanted, "README.md", "original/params.json", "onnx/c.json"]) == wanted
