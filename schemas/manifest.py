"""`manifest.json`: the identity, provenance and state of a label set."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_serializer,
    model_validator,
)

from schemas.asked_ids import ASKED, asked_count
from schemas.atomic import write_atomic
from schemas.errors import IdentityError, LabelSetError
from schemas.file_names import (
    FINAL,
    HEAD_FILE,
    LAYER,
    basis_name,
    is_hidden_page,
    is_index_page,
    is_plan,
    is_plan_rejects,
    is_tokenizer_file,
)
from schemas.fingerprint import sha256_json
from schemas.kept_positions import KEPT, parse_rule
from schemas.set_paths import inside_name, set_file
from schemas.size_limits import (
    LARGEST_COUNT,
    LARGEST_UNITS,
    LARGEST_VOCABULARY,
    LARGEST_WIDTH,
)
from schemas.tempered_tails import LARGEST_TEMPERATURE, MOST_TEMPERATURES
from schemas.version import (
    COMPACT_1,
    FORMAT_MAJOR,
    FORMAT_VERSION,
    KNOWN_CODECS,
    LATEST_MINOR,
    PLAIN_1,
    STATES_2,
    STATES_FORMAT_VERSION,
)

MANIFEST = "manifest.json"
ROUNDED_BY = "rounded_by"
"""Key in `provenance.derived` of a plain set that has labels of a compact one: its codec."""
URL_START = re.compile("[a-z][a-z0-9+.-]+:/")
"""What a URL begins with once it was taken for a path."""


class Model(BaseModel):
    """Frozen, and strict about unknown fields: a misspelled setting must not pass unnoticed."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ExtensibleModel(BaseModel):
    """Frozen, and open to unknown fields: for files that later versions may extend."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class LateFields(Model):
    """A model that has gained fields since the first sets were written.

    A late field defaults to None and is left out of the JSON while it is None. So the files and
    digests of settings that do not use it stay the same.
    """

    late: ClassVar[tuple[str, ...]] = ()

    @model_serializer(mode="wrap")
    def _without_unused(self, dump: Callable[[LateFields], dict[str, Any]]) -> dict[str, Any]:
        return {n: v for n, v in dump(self).items() if v is not None or n not in self.late}


class Sampling(LateFields):
    """Sampling settings of generations. Labels are temperature-1 distributions in any case."""

    late: ClassVar[tuple[str, ...]] = ("min_p", "structured")

    n: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 256
    seed: int = 0
    stop: tuple[str, ...] = ()
    min_p: float | None = None
    structured: dict[str, Any] | None = None


Temperature = Annotated[float, Field(gt=0, le=LARGEST_TEMPERATURE, allow_inf_nan=False)]


def _further_temperatures(values: tuple[float, ...]) -> tuple[float, ...]:
    """Refuse 1, at which the labels are, and temperatures that are there twice."""
    if 1.0 in values or len(set(values)) != len(values):
        raise ValueError("a temperature is 1, or there twice")
    return values


def _as_rule(text: str) -> str:
    """Refuse a rule of kept positions that is none, or is spelled in another way."""
    if str(parse_rule(text)) != text:
        raise ValueError(f"{text!r} is not how a rule of kept positions is spelled")
    return text


class Identity(LateFields):
    """The settings that decide what the labels are. Sets of equal identity may be joined.

    Attributes:
        weights: digest of the teacher's weights.
        weights_scope: what that digest covers: all bytes (`full`), the headers (`header`), a
            server's description of its model (`served`), or the teacher that the user of an import
            named (`stated`).
        model_config_digest: digest of the teacher's `config.json`; of an import, of the teacher
            that the user named.
        tokenizer: digest of the tokenizer (`schemas.fingerprint.tokenizer_digest`).
        vocab_size: number of real token ids, `len(tokenizer)`; higher ids never occur.
        chat_template: digest of the chat template and its arguments; None where none applies.
        dtype: dtype that the teacher ran in.
        head_dtype: dtype of its output projection.
        mode: `score` (teacher-forced) or `generate`.
        k: number of top logprobs stored per position.
        max_length: length of the longest sequence, in tokens.
        overlap: tokens shared by neighboring chunks.
        top_p_labels: mass of the stored ids, where fewer than k suffice.
        min_k: minimum ids per position under `top_p_labels`.
        draws: ids drawn per position from the full distribution (sampled labels), if any.
        spans: the tokens of chats to label, where not the default.
        rendering: other rules of rendering (truncation, EOS, the student's context), where not
            the default.
        engine_args: engine arguments that can change labels.
        template_time: the time that the chat template prints, if it prints one.
        states: layers and codec of hidden states (`StatesRecord.identity`), if any are stored.
        ids_from: COLUMN:N, the input's column of ids that were labeled beside the top k, and how
            many per position, at most.
        label_temperatures: temperatures besides 1 at which the tail is stored.
        keep_positions: the rule that chose the stored labels, where not all are stored.
    """

    late: ClassVar[tuple[str, ...]] = (
        *("top_p_labels", "min_k", "draws", "spans", "rendering", "engine_args"),
        *("template_time", "states", "ids_from", "label_temperatures"),
        "keep_positions",
    )

    weights: str
    weights_scope: Literal["full", "header", "served", "stated"] = "full"
    model_config_digest: str
    tokenizer: str
    vocab_size: Annotated[int, Field(ge=1, le=LARGEST_VOCABULARY)]
    chat_template: str | None
    dtype: str
    head_dtype: str
    quantization: str | None = None
    mode: Literal["score", "generate"]
    k: Annotated[int, Field(ge=0, le=LARGEST_VOCABULARY)]
    max_length: int
    overlap: int
    sampling: Sampling | None = None
    top_p_labels: float | None = None
    min_k: int | None = None
    draws: Annotated[int, Field(ge=0, lt=1 << 16)] | None = None
    spans: str | None = None
    rendering: dict[str, Any] | None = None
    engine_args: dict[str, Any] | None = None
    template_time: str | None = None
    states: str | None = None
    ids_from: Annotated[str, Field(pattern=ASKED)] | None = None
    label_temperatures: (
        Annotated[
            tuple[Temperature, ...],
            Field(max_length=MOST_TEMPERATURES),
            AfterValidator(_further_temperatures),
        ]
        | None
    ) = None
    keep_positions: Annotated[str, Field(pattern=KEPT), AfterValidator(_as_rule)] | None = None

    @property
    def late_settings(self) -> dict[str, str]:
        """What is stored besides or instead of the top k of all positions, for people to read."""
        temperatures = ", ".join(f"{value:g}" for value in self.label_temperatures or ())
        found = {
            "further ids": self.ids_from,
            "tails at temperatures": temperatures,
            "kept positions": self.keep_positions,
        }
        return {name: text for name, text in found.items() if text}

    @property
    def has_weights(self) -> bool:
        """True if the stored labels were sampled, and have weights."""
        rule = None if self.keep_positions is None else parse_rule(self.keep_positions)
        return rule is not None and rule.largest_weight is not None

    @property
    def width(self) -> int:
        """Most ids per position: the top k, and the ones that the input asked for."""
        return self.k + asked_count(self.ids_from)

    @property
    def digest(self) -> str:
        """Hex SHA-256 over all fields."""
        return sha256_json(self.model_dump(mode="json"))


Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
"""A hex SHA-256. It also names files of the cache, so it must not be anything else."""
Count = Annotated[int, Field(ge=0, le=LARGEST_COUNT)]
"""A number of things, which every JSON parser keeps."""


class FileDigest(Model):
    """A file of the set, by its path relative to the set's folder and inside it."""

    path: Annotated[str, AfterValidator(inside_name)]
    sha256: Digest


class StatesRecord(LateFields):
    """The hidden states of a set, and the files in `head/` that they are read with.

    Attributes:
        layers: their names, in order; `schemas.file_names.LAYER` has the form.
        codec: `states/1` or `states/2`.
        dimensions: of a state.
        files: the teacher's head (always there with layer `final`); of `states/2`, the bases.
        kl_asked: mean KL in nats that the step of `states/2` aimed at.
        kl_measured: mean KL on positions that the basis was not fitted to.
        positions_measured: number of these.
    """

    late: ClassVar[tuple[str, ...]] = ("kl_asked", "kl_measured", "positions_measured")

    layers: tuple[str, ...]
    codec: Literal["states/1", "states/2"]
    dimensions: Annotated[int, Field(ge=1, le=LARGEST_WIDTH)]
    files: tuple[FileDigest, ...]
    kl_asked: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    kl_measured: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    positions_measured: Count | None = None

    @property
    def identity(self) -> str:
        """What the identity of a set states: `final,layer_12 states/2`."""
        return f"{','.join(self.layers)} {self.codec}"

    def file(self, name: str) -> FileDigest | None:
        """Return the file of this name, if the record has it."""
        return next((file for file in self.files if file.path == name), None)

    @model_validator(mode="after")
    def _fits(self) -> StatesRecord:
        """Refuse layers that are not ones, and files that do not fit them."""
        if not self.layers or len(set(self.layers)) != len(self.layers):
            raise ValueError("layers are missing, or named twice")
        for layer in self.layers:
            if not LAYER.fullmatch(layer):
                raise ValueError(f"{layer!r} is not the name of a layer")
        names = [file.path for file in self.files]
        required = {HEAD_FILE} if FINAL in self.layers else set()
        if self.codec == STATES_2:
            required |= {basis_name(layer) for layer in self.layers}
        if len(set(names)) != len(names) or not required <= set(names) <= required | {HEAD_FILE}:
            raise ValueError(f"its files must be {', '.join(sorted(required)) or 'none'}")
        return self


class Totals(LateFields):
    """Sums over all shards, counted when the set is finalized; `hidden_bytes` over `hidden/`."""

    late: ClassVar[tuple[str, ...]] = ("hidden_bytes",)

    units: Count
    rows: Count
    tokens: Count
    labels: Count
    rejects: Count
    bytes: Count
    hidden_bytes: Count | None = None


class Manifest(LateFields):
    """The first file that a reader opens; everything else is found and checked from here.

    A derived set (`provenance.derived`) has no plan: nothing is left to label.
    """

    late: ClassVar[tuple[str, ...]] = ("plan_rejects", "content_digest", "states", "hidden_pages")

    format_version: str = FORMAT_VERSION
    codec: str = PLAIN_1
    status: Literal["running", "complete"]
    identity: Identity
    identity_digest: str
    plan: FileDigest | None
    planned_units: Annotated[int, Field(ge=0, le=LARGEST_UNITS)]
    tokenizer_files: tuple[FileDigest, ...]
    index_pages: tuple[FileDigest, ...] = ()
    states: StatesRecord | None = None
    hidden_pages: tuple[FileDigest, ...] | None = None
    plan_rejects: tuple[FileDigest, ...] | None = None
    content_digest: Digest | None = None
    totals: Totals | None = None
    provenance: dict[str, Any]
    self_digest: str = ""

    @model_validator(mode="after")
    def _right_names(self) -> Manifest:
        """Refuse files under the name of another one: writers replace files by these names."""
        for names, fits in (
            ([file.path for file in self.tokenizer_files], is_tokenizer_file),
            ([file.path for file in self.index_pages], is_index_page),
            ([file.path for file in self.hidden_pages or ()], is_hidden_page),
            ([file.path for file in self.plan_rejects or ()], is_plan_rejects),
            ([] if self.plan is None else [self.plan.path], is_plan),
        ):
            for name in names:
                if not fits(name):
                    raise ValueError(f"{name!r} is not the name of such a file")
            if len(set(names)) != len(names):
                raise ValueError("a file is named twice")
        found = None if self.states is None else self.states.identity
        is_begun = self.status == "running" and found is None  # the first teacher that runs adds it
        if self.identity.states != found and not is_begun:
            raise ValueError("the identity and the manifest differ in hidden states")
        if self.hidden_pages and self.states is None:
            raise ValueError("there is an index of hidden states, and there are none")
        return self

    @property
    def rounding_codec(self) -> str:
        """The codec whose rounding the labels have: that of a `compact/1` source stays."""
        derived = self.provenance.get("derived")
        rounded = derived.get(ROUNDED_BY) if isinstance(derived, dict) else None
        return COMPACT_1 if rounded == COMPACT_1 else self.codec

    @property
    def written_version(self) -> str:
        """The format version under which this version writes such a set."""
        identity = self.identity
        late = (
            *(identity.states, identity.ids_from, identity.label_temperatures),
            identity.keep_positions,
        )
        return STATES_FORMAT_VERSION if any(late) else FORMAT_VERSION

    def sealed(self) -> Manifest:
        """Return the same manifest with its own digest filled in."""
        content = self.model_dump(mode="json") | {"self_digest": ""}
        return self.model_copy(update={"self_digest": sha256_json(content)})


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write the manifest atomically, sealed with its own digest."""
    write_atomic(directory / MANIFEST, manifest.sealed().model_dump_json(indent=2) + "\n")


def read_manifest(directory: Path) -> Manifest:
    """Read and check a manifest.

    Raises:
        LabelSetError: it is missing, not JSON, altered, or of an unknown version or codec.
    """
    path = set_file(directory, MANIFEST)
    if not path.is_file():
        if URL_START.match(str(directory)):
            raise LabelSetError(
                "this is a URL in a path", path=directory, hint="give the URL as a string"
            )
        raise LabelSetError(
            "no label set here: "
            + ("manifest.json is missing" if directory.is_dir() else "the folder does not exist"),
            path=directory,
            hint="give the folder that `labeler label --out` wrote",
        )
    try:
        content = Manifest.model_validate_json(path.read_bytes())
        digests = content.sealed().self_digest, content.identity.digest
    except (ValueError, RecursionError) as error:  # digests print numbers of any length
        _refuse_unknown_version(path)
        raise LabelSetError(
            f"the manifest cannot be read: {_first_line(error)}",
            path=path,
            hint="run the same `labeler label` command again, or restore the file from a copy",
        ) from error
    _check_version(content.format_version, content.codec, path)
    if content.self_digest != digests[0]:
        raise LabelSetError(
            "the manifest was altered: its digest differs",
            path=path,
            hint="restore the file from a copy; never edit a manifest by hand",
        )
    if content.identity_digest != digests[1]:
        raise LabelSetError("the identity and its digest differ", path=path)
    return content


def require_same_identity(
    expected: Identity, found: Identity, *, path: Path | str, hint: str
) -> None:
    """Refuse two identities that differ, and name every field that does.

    Raises:
        IdentityError: one line per field that differs.
    """
    ours, theirs = expected.model_dump(mode="json"), found.model_dump(mode="json")
    if lines := differences(found=theirs, asked=ours):
        raise IdentityError(
            f"the label set was made with different settings:{lines}", path=path, hint=hint
        )


def differences(*, found: dict[str, Any], asked: dict[str, Any]) -> str:
    """Return one line per setting that differs, for an error message."""
    names = [name for name in {**found, **asked} if found.get(name) != asked.get(name)]
    return "".join(f"\n  {n}: here {found.get(n)!r}, asked {asked.get(n)!r}" for n in names)


def check_version(format_version: str, path: Path) -> None:
    """Refuse a file of another major format version.

    Raises:
        LabelSetError: with the version to install.
    """
    major = format_version.split(".")[0]
    if major != str(FORMAT_MAJOR):
        raise LabelSetError(
            f"format version {format_version}; this softshards reads {FORMAT_MAJOR}.x",
            path=path,
            hint=f"install a softshards that reads format {major}.x",
        )


def _check_version(format_version: str, codec: str, path: Path) -> None:
    check_version(format_version, path)
    if codec not in KNOWN_CODECS:
        raise LabelSetError(
            f"unknown codec {codec!r}; this softshards reads {', '.join(KNOWN_CODECS)}",
            path=path,
            hint="install a newer softshards",
        )


def _refuse_unknown_version(path: Path) -> None:
    """Report an unknown version as such: a later format may have fields unknown here."""

    class Head(BaseModel):
        format_version: str
        codec: str

    try:
        head = Head.model_validate_json(path.read_bytes())
    except ValidationError:
        return
    _check_version(head.format_version, head.codec, path)
    minor = head.format_version.removeprefix(f"{FORMAT_MAJOR}.")
    if minor.isdecimal() and int(minor) > LATEST_MINOR:
        raise LabelSetError(
            f"format version {head.format_version}, which has fields that this softshards does not "
            f"know; it reads up to {FORMAT_MAJOR}.{LATEST_MINOR}",
            path=path,
            hint="install a newer softshards",
        )


def _first_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return str(error).splitlines()[0]
