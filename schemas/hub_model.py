"""A model named on the command line: a folder, or a repository of the Hugging Face Hub."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from schemas.errors import SoftshardsError, first_line
from schemas.hub_files import small_files, weight_files

if TYPE_CHECKING:
    from huggingface_hub import HfApi

Say = Callable[[str], None]

NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
COMMIT = re.compile(r"[0-9a-f]{40}")
URL = re.compile(
    r"(?:hf:/+|(?:https?:/+)?(?:www\.)?(?:huggingface\.co|hf\.co)/)(?:models/)?"
    rf"(?P<name>{NAME.pattern})(?:/(?:tree|blob|resolve|commit)/(?P<revision>[^/?#]+).*)?/?(?:[?#].*)?"
)
ADDRESS = re.compile(r"(?:https?|hf):/|(?:www\.)?(?:huggingface\.co|hf\.co)/")
OTHER_WEIGHTS = (".gguf", ".pth", ".pt", ".h5", ".bin", ".safetensors", ".msgpack")
LOGIN = "log in with `hf auth login`, or set HF_TOKEN"


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """The folder of a model, and where it comes from.

    Attributes:
        folder: the local folder: as given, or a snapshot in the Hub's cache.
        name: OWNER/NAME on the Hub; None for a folder of the user's.
        commit: the commit of the snapshot.
        missing_bytes: weights that are not downloaded, because nothing needs them yet.
    """

    folder: Path
    name: str | None = None
    commit: str | None = None
    missing_bytes: int = 0

    def __str__(self) -> str:
        return str(self.folder) if self.name is None else f"{self.name}@{self.commit}"

    def as_json(self) -> dict[str, str]:
        """Return name and commit, as results record them; empty for a folder."""
        if self.name is None or self.commit is None:
            return {}
        return {"name": self.name, "commit": self.commit}


def locate_model(
    model: Path | str,
    *,
    say: Say,
    revision: str | None = None,
    weights: bool = True,
    recorded: dict[str, str] | None = None,
) -> ModelSource:
    """Return a model's folder; a model of the Hub is downloaded, unless the cache has it.

    A folder or file of that name comes first. Respects HF_HOME, HF_TOKEN and HF_HUB_OFFLINE.

    Args:
        model: a folder, OWNER/NAME, or OWNER/NAME@REVISION.
        say: prints a line before a download starts.
        revision: branch, tag or commit of the repository.
        weights: False downloads configuration and tokenizer only.
        recorded: name and commit of an earlier call, which is used where no revision is given.

    Raises:
        SoftshardsError: there is no such repository or revision, access is refused, the Hub cannot
            be reached, or the repository holds no weights that can be loaded.
    """
    path = Path(model)
    if path.exists():
        if revision is not None:
            raise SoftshardsError(
                f"--revision {revision} is for models of the Hub, and this is a folder here",
                path=path,
                hint="leave out --revision, or run the command where no such folder exists",
            )
        return ModelSource(folder=path)
    text = str(model)
    _refuse_address(text)
    name, at, named = text.partition("@")
    if not NAME.fullmatch(name):
        return ModelSource(folder=path)  # the caller knows what a folder must hold
    if at and (not named or revision not in (None, named)):
        raise SoftshardsError(
            f"{text} and --revision {revision} differ" if named else f"{text} names no revision",
            hint=f"name one revision: {name}@REVISION",
        )
    revision = named or revision
    if revision is None and recorded and recorded["name"] == name:
        revision = recorded["commit"]
    return _HubModel(name, revision, say).locate(weights=weights)


def _refuse_address(text: str) -> None:
    """Refuse the address of a model's page, which people paste.

    Raises:
        SoftshardsError: with the model's name in the hint.
    """
    if ADDRESS.match(text):
        found = URL.fullmatch(text)
        hint = "give OWNER/NAME, as the Hub shows it, or a folder"
        if found and found["name"].split("/")[0] not in ("datasets", "spaces", "collections"):
            hint = f"give its name: {found['name']}"
            hint += f" --revision {found['revision']}" if found["revision"] else ""
        raise SoftshardsError("a model is not given by its address", path=text, hint=hint)


class _HubModel:
    """A repository at a revision."""

    def __init__(self, name: str, revision: str | None, say: Say) -> None:
        self.name, self.revision, self.say = name, revision, say

    @property
    def _api(self) -> HfApi:
        from huggingface_hub import HfApi

        return HfApi(library_name="softshards")

    @property
    def _place(self) -> str:
        return self.name + (f"@{self.revision}" if self.revision else "")

    def locate(self, *, weights: bool) -> ModelSource:
        """Return the snapshot: from the cache alone if the commit is known, else by the Hub."""
        from huggingface_hub import errors

        if self.revision and COMMIT.fullmatch(self.revision) and (found := self._cached(weights)):
            return found
        with self._errors():
            try:
                info = self._api.model_info(self.name, revision=self.revision, files_metadata=True)
            except (
                errors.HTTPError,  # type: ignore[attr-defined]
                errors.OfflineModeIsEnabled,
                ConnectionError,
            ) as error:
                response = getattr(error, "response", None)
                answered = response is not None and response.status_code < 500
                if not answered and (found := self._cached(weights)):
                    offline = isinstance(error, errors.OfflineModeIsEnabled)
                    why = "HF_HUB_OFFLINE is set" if offline else "the Hub cannot be reached"
                    self.say(f"{found}: from the cache, because {why}")
                    return found
                raise
            sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
            return self._download(sizes, str(info.sha), weights)

    def _download(self, sizes: dict[str, int], commit: str, weights: bool) -> ModelSource:
        """Download the files that the cache lacks."""
        if "config.json" not in sizes:
            raise SoftshardsError(
                "this repository holds no model for transformers: config.json is missing",
                path=self._place,
                hint="name the repository of the original model"
                + (", not of its adapters" if "adapter_config.json" in sizes else ""),
            )

        def read(name: str) -> bytes:
            file = self._api.hf_hub_download(self.name, name, revision=commit)
            return Path(file).read_bytes()

        heavy = weight_files(sizes, read)
        if not heavy:
            suffixes = {Path(name).suffix for name in sizes}.intersection(OTHER_WEIGHTS)
            raise SoftshardsError(
                "this repository holds no weights that transformers loads: no model*.safetensors"
                + (f", only other {', '.join(sorted(suffixes))} files" if suffixes else ""),
                path=self._place,
                hint="name the repository of the original model",
            )
        if absent := [name for name in heavy if name not in sizes]:
            raise SoftshardsError(
                f"the index of the weights names files that are missing: {', '.join(absent[:3])}",
                path=self._place,
                hint="choose another --revision, or ask the repository's owner",
            )
        wanted = small_files(sizes) + (heavy if weights else [])
        lacking = [name for name in wanted if not self._is_cached(name, commit)]
        total = sum(sizes[name] for name in lacking)
        missing = 0 if weights else sum(sizes[n] for n in heavy if not self._is_cached(n, commit))
        place = f"{self.name}@{commit}"
        if lacking:
            self._require_space(total)
            files = f"{len(lacking)} file{'s' if len(lacking) > 1 else ''}"
            self.say(f"{place}: downloading {files}, {_megabytes(total)}, to {_cache()}")
        if missing:
            self.say(f"{place}: {_megabytes(missing)} of weights are not downloaded yet")
        # By the name of the revision, so that the cache knows its commit without a network.
        folder = Path(
            self._api.snapshot_download(self.name, revision=self.revision, allow_patterns=wanted)
        )
        if folder.name != commit:  # the branch moved in between
            folder = Path(
                self._api.snapshot_download(self.name, revision=commit, allow_patterns=wanted)
            )
        return ModelSource(folder=folder, name=self.name, commit=commit, missing_bytes=missing)

    def _cached(self, weights: bool) -> ModelSource | None:
        """Return the snapshot in the cache if it is complete."""
        root = Path(_cache()) / f"models--{self.name.replace('/', '--')}"
        commit = self.revision or "main"
        if not COMMIT.fullmatch(commit):
            reference = root / "refs" / commit
            commit = reference.read_text().strip() if reference.is_file() else ""
        folder = root / "snapshots" / commit
        if not commit or not (folder / "config.json").is_file():
            return None
        names = [path.relative_to(folder).as_posix() for path in folder.rglob("*")]
        heavy = weight_files(names, lambda name: (folder / name).read_bytes())
        if weights and not (heavy and all((folder / name).is_file() for name in heavy)):
            return None
        if not any("token" in name or name == "vocab.json" for name in names):
            return None
        return ModelSource(folder=folder, name=self.name, commit=commit)

    def _is_cached(self, name: str, commit: str) -> bool:
        from huggingface_hub import try_to_load_from_cache

        return isinstance(try_to_load_from_cache(self.name, name, revision=commit), str)

    def _require_space(self, needed: int) -> None:
        folder = Path(_cache())
        while not folder.exists():
            folder = folder.parent
        free = shutil.disk_usage(folder).free
        if needed > free:
            raise SoftshardsError(
                f"the download needs {_megabytes(needed)}, the disk of {_cache()} has "
                f"{_megabytes(free)} free",
                path=self._place,
                hint="free some space, or set HF_HOME to a folder on another disk",
            )

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Translate the library's errors.

        Raises:
            SoftshardsError: names the repository, and what to do.
        """
        from huggingface_hub import errors

        try:
            yield
        except SoftshardsError:
            raise
        except errors.GatedRepoError as error:
            what = "access to this model must be asked for"
            hint = f"accept its terms at {self._api.endpoint}/{self.name}, then {LOGIN}"
            raise SoftshardsError(what, path=self._place, hint=hint) from error
        except errors.RevisionNotFoundError as error:
            what = "this model has no such revision"
            hint = "check --revision: a branch, a tag, or a whole commit"
            raise SoftshardsError(what, path=self._place, hint=hint) from error
        except errors.RepositoryNotFoundError as error:
            what = "there is neither such a folder here nor such a model on the Hub"
            hint = f"check the name; if the model is private, {LOGIN}"
            raise SoftshardsError(what, path=self._place, hint=hint) from error
        except errors.OfflineModeIsEnabled as error:
            what = "not a folder here, and not (or not whole) in the Hub's cache"
            hint = f"unset HF_HUB_OFFLINE, or download it first: `hf download {self.name}`"
            raise SoftshardsError(what, path=self._place, hint=hint) from error
        except (errors.HTTPError, OSError, ValueError, RuntimeError) as error:  # type: ignore[attr-defined]
            response = getattr(error, "response", None)
            hint = "check the network, and run the same command again: it resumes"
            if getattr(response, "status_code", None) in (401, 403):
                hint = LOGIN
            raise SoftshardsError(
                "not a folder here, and the Hub does not give it: "
                f"{getattr(error, 'server_message', None) or first_line(error)}",
                path=self._place,
                hint=hint,
            ) from error


def _cache() -> str:
    from huggingface_hub import constants

    return str(constants.HF_HUB_CACHE)


def _megabytes(size: int) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"
