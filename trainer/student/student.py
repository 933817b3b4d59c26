"""A student: any Hugging Face causal LM with the teacher's tokenizer and a label head.

The head's op runs inside the head module's own forward: under FSDP the weight is whole only there.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from schemas.errors import SoftshardsError, first_line
from schemas.labelset import LabelSet
from trainer.data.collate import Batch, PackedTokens
from trainer.data.vocab_map import VocabMap, read_vocab_map
from trainer.student.attention_ways import (
    Packing,
    choose_attention,
    layer_masks,
    leaking_layers,
    set_attention,
)
from trainer.student.document_attention import suits_this_machine, use_document_attention
from trainer.student.exact_target import ExactTarget
from trainer.student.head_settings import HeadSettings
from trainer.student.label_head import convert_head
from trainer.student.layers import freeze_other_parts, model_body
from trainer.student.load_model import check_model_folder, load_model
from trainer.student.lora import LoraSettings, add_lora
from trainer.student.packing_check import settle_attention
from trainer.student.router_loss import router_loss
from trainer.student.state_matching import StateMatching
from trainer.student.student_output import StudentOutput
from trainer.student.tokenizer_check import check_tokenizer
from trainer.student.top_tokens import TopTokens, find_top_tokens

SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
"""Names that configurations have for it."""
HEAD_CHECK_TOKENS = 16
HEAD_CHECK_TOLERANCE = 2e-3


class Student(nn.Module):
    """A causal LM whose forward takes a `Batch` and returns label log-probabilities.

    Args:
        model: the causal LM; its head is turned into a `LabelHead`.
        valid_vocab: number of real token ids; the head may be padded past them.
        vocab_map: from the teacher's ids to the student's, where they differ.

    Attributes:
        attention: the way to keep documents apart.
        notes: lines for the user on how the student is run.
        with_router: also return the balance of the experts.
        teacher_layers: the layers of the teacher whose states its batches need.
        matched_layers: the pairs of hidden states that are compared, each as STUDENT:TEACHER.
        matching: the hidden states that are compared with the teacher's in training, and their
            projections; or None.
        chunk_bytes: budget of the head's op (see `linear_label_logprobs`); None for its default.
    """

    def __init__(
        self, model: PreTrainedModel, valid_vocab: int, vocab_map: VocabMap | None = None
    ) -> None:
        super().__init__()
        head = convert_head(model.get_output_embeddings())
        rows = head.weight.shape[0]
        if rows < valid_vocab:
            raise SoftshardsError(
                f"the student's head has {rows} rows, fewer than the tokenizer's {valid_vocab} ids",
                hint="resize the student's embeddings, or use a student made for this tokenizer",
            )
        self.model, self.valid_vocab, self.vocab_map = model, valid_vocab, vocab_map
        self.chunk_bytes: int | None = None
        text = model.config.get_text_config()
        softcaps = [getattr(text, name, None) for name in SOFTCAPS]
        self.softcap: float | None = next((cap for cap in softcaps if cap), None)
        # Cohere and Falcon-H1 multiply their logits, Granite divides them, and HyperCLOVA X
        # multiplies them by what has the same name.
        self.scale = float(getattr(text, "logit_scale", None) or 1.0)
        self.scale *= float(getattr(text, "lm_head_multiplier", None) or 1.0)
        scaling = float(getattr(text, "logits_scaling", None) or 1.0)
        self.scale *= scaling if text.model_type == "hyperclovax" else 1 / scaling
        self.attention = choose_attention(model)
        self.notes: list[str] = []
        self.with_router = False
        self.teacher_layers: tuple[str, ...] = ()
        self.matched_layers: tuple[str, ...] = ()
        self.matching: StateMatching | None = None

    def hidden(self, batch: Batch) -> Tensor:
        """Return the final hidden states [n, d] that predict the labeled tokens."""
        return self.states(batch)[batch.rows]

    def states(self, packed: PackedTokens) -> Tensor:
        """Return the final hidden states [tokens, d] of documents, padding included."""
        return self._run_body(packed)[0]

    def _run_body(self, packed: PackedTokens) -> tuple[Tensor, Tensor | None]:
        """Return the final hidden states [tokens, d], and the balance of the experts if wanted."""
        inputs: dict[str, Any] = {**packed.model_inputs}
        if self.attention == "layer_masks":
            inputs["attention_mask"] = layer_masks(self.model, packed.position_ids)
        if self.with_router:
            inputs["output_router_logits"] = True
        outputs = model_body(self.model)(**inputs)
        router = router_loss(self.model, outputs, packed.real) if self.with_router else None
        return outputs.last_hidden_state.flatten(0, 1), router

    def forward(
        self,
        batch: Batch,
        *,
        top_k: int = 0,
        exact: ExactTarget | None = None,
        temperature: float = 1.0,
    ) -> StudentOutput | tuple[StudentOutput, TopTokens]:
        """Return the log-probabilities at the labels of a batch.

        Args:
            batch: the packed tokens and their labels.
            top_k: also return so many of the most likely tokens of all. They are found here because
                under FSDP the weights are whole only here.
            exact: also return losses over all ids; the batch needs the teacher's states.
            temperature: also return the log-probabilities at this temperature, unless it is 1.
        """
        router: Tensor | None = None
        matched: tuple[tuple[Tensor, Tensor], ...] = ()
        matching = self.matching if self.training else None
        if matching is not None:
            matching.begin()
        if self.with_router or matching is not None:
            states, router = self._run_body(batch)
            hidden = states[batch.rows]
            if matching is not None:
                matched = matching(hidden, batch)
        else:
            hidden = self.hidden(batch)
        if batch.drawn_ids is None:
            output = self.label_logprobs(hidden, batch.topk_ids, batch.targets)
        else:
            output = self._with_drawn(hidden, batch, batch.drawn_ids)
        output = output._replace(router=router, states=matched)
        if temperature != 1:
            head = self.model.get_output_embeddings()
            logp, log_rest, *_ = head(
                hidden, batch.topk_ids, temperature=temperature, **self.head_settings
            )
            output = output._replace(tempered=(logp, log_rest))
        if exact is not None:
            assert batch.states is not None
            head = self.model.get_output_embeddings()
            values = head(hidden, exact=(exact, batch.states), **self.head_settings)
            output = output._replace(exact=values)
        if not top_k:
            return output
        head, (logp, log_rest, *_) = self.model.get_output_embeddings(), output
        return output, find_top_tokens(
            head, hidden, batch.topk_ids, logp, log_rest, top_k, **self.head_settings
        )

    def _with_drawn(self, hidden: Tensor, batch: Batch, drawn: Tensor) -> StudentOutput:
        """Compute top-k and drawn ids in one pass over the head: an id in both is passed once."""
        ids = batch.topk_ids
        known = drawn[:, :, None] == ids[:, None, :]  # [n, m, k]
        place, inside = known.byte().argmax(2), known.any(2)
        others = drawn.masked_fill(inside, -1)
        logp, log_rest, target_logp, *_ = self.label_logprobs(
            hidden, torch.cat([ids, others], 1), batch.targets
        )
        of_topk, of_others = torch.split(logp, [ids.shape[1], drawn.shape[1]], 1)
        return StudentOutput(
            logp=of_topk,
            log_rest=torch.cat([log_rest[:, None], of_others], 1).logsumexp(1),
            target_logp=target_logp,
            drawn_logp=torch.where(inside, of_topk.gather(1, place), of_others),
        )

    def label_logprobs(self, hidden: Tensor, ids: Tensor, target: Tensor) -> StudentOutput:
        """Return the head's part of `forward`. Ids must be unique within a row."""
        head = self.model.get_output_embeddings()
        return StudentOutput(*head(hidden, ids, target, **self.head_settings))

    @property
    def head_settings(self) -> HeadSettings:
        """The settings of the head's op for this model."""
        return {
            "valid_vocab": self.valid_vocab,
            "scale": self.scale,
            "softcap": self.softcap,
            "chunk_bytes": self.chunk_bytes,
            "unique_ids": True,  # `collate` checks them
        }


def load_student(
    path: Path,
    labels: LabelSet,
    *,
    from_config: bool = False,
    seed: int = 0,
    map_vocab: bool = False,
    lora: LoraSettings | None = None,
    packing: Packing = "auto",
) -> Student:
    """Load a student in float32 and check that it fits the label set.

    Args:
        path: a checkpoint folder; with `from_config` a folder with at least a `config.json`.
        labels: the label set to train or measure the student on.
        from_config: draw random weights from `seed` instead of loading any.
        map_vocab: accept a tokenizer that shares almost all tokens with the teacher's.
        lora: adapters to add to the model.
        packing: pack documents ("on"), pad them ("off"), or pad where packing is not possible.

    Raises:
        IdentityError: its tokenizer is not the teacher's.
        SoftshardsError: it cannot be loaded or given batches, or its head cannot be fused.
    """
    check_model_folder(path)
    vocab_map = read_vocab_map(labels, path) if map_vocab else None
    if vocab_map is None:
        check_tokenizer(path, labels, required=not from_config)
    model = load_model(path, from_config=from_config, seed=seed)
    vocab = vocab_map.student_vocab if vocab_map else labels.manifest.identity.vocab_size
    return make_student(model, vocab, vocab_map, lora=lora, packing=packing)


def make_student(
    model: PreTrainedModel,
    vocab: int,
    vocab_map: VocabMap | None = None,
    *,
    lora: LoraSettings | None = None,
    packing: Packing = "auto",
) -> Student:
    """Make a model a student, and check that it gives the plain model's values.

    Raises:
        SoftshardsError: it cannot be given batches, or its head cannot be fused.
    """
    if packing == "off" or leaking_layers(model):
        if model.config._attn_implementation == "flash_attention_2":
            set_attention(model, "sdpa")  # padding is checked, and flash attention has no CPU
    elif choose_attention(model) == "mask" and suits_this_machine():
        use_document_attention(model)
    if lora is not None:
        add_lora(model, lora)
    student = Student(model, vocab, vocab_map)
    check_head(student)
    student.notes = settle_attention(student, packing)
    if frozen := freeze_other_parts(model):
        student.notes.append(f"only the text part is trained: {', '.join(frozen)} stay as they are")
    return student


@torch.no_grad()
def check_head(student: Student) -> None:
    """Check that the label head reproduces the model's own logits from its last hidden states.

    Raises:
        SoftshardsError: the model transforms its logits in a way that is not supported.
    """
    if student.attention == "varlen":
        return  # flash attention runs neither on the CPU nor in float32
    model, vocab = student.model, student.valid_vocab
    ids = torch.arange(HEAD_CHECK_TOKENS)[None] * 7919 % vocab
    states: list[Tensor] = []
    hook = model_body(model).register_forward_hook(
        lambda _module, _inputs, output: states.append(output.last_hidden_state)
    )
    training = model.training
    model.eval()
    try:
        logits = model(input_ids=ids, use_cache=False).logits[0, :, :vocab].float()
        if not states:  # OPT goes past its body
            model_body(model)(input_ids=ids, use_cache=False)
        found = student.label_logprobs(states[0][0], ids[0, :, None], ids[0]).target_logp
        expected = logits.log_softmax(-1).gather(1, ids[0, :, None])[:, 0]
        gap = float((found - expected).abs().max())
    except Exception as error:  # code of any architecture
        raise SoftshardsError(
            f"the student, a {type(model).__name__}, fails on {len(ids[0])} tokens with "
            f"{type(error).__name__}: {first_line(error)}",
            hint="use a student of an architecture in docs/students.md",
        ) from error
    finally:
        hook.remove()
        model.train(training)
    if not math.isfinite(gap):
        raise SoftshardsError("the student's logits are not finite: its weights are broken")
    if not gap < HEAD_CHECK_TOLERANCE:
        raise SoftshardsError(
            f"{type(model).__name__} transforms its logits in a way that is not supported "
            f"(log-probabilities differ by {gap:.2g})",
            hint="use a different student architecture, or report this one",
        )


def count_parameters(model: PreTrainedModel) -> dict[str, int]:
    """Count parameters (tied ones once), with and without the embeddings and head."""
    total = sum(p.numel() for p in model.parameters())
    tables = (model.get_input_embeddings(), model.get_output_embeddings())
    outer = {id(p): p.numel() for table in tables for p in table.parameters()}
    return {"parameters": total, "non_embedding": total - sum(outer.values())}
