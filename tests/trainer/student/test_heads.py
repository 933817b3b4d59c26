"""The head of a real model class, plain and with a LoRA adapter of peft."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PhiConfig,
    PhiForCausalLM,
)

from schemas import SoftshardsError
from trainer.ops import linear_label_logprobs
from trainer.student.label_head import LabelHead, convert_head
from trainer.student.lora_head import LoraLabelHead
from trainer.student.student import Student, check_head

V, D, N, K = 40, 16, 6, 5


def tiny(**settings: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = {"vocab_size": V, "hidden_size": D, "intermediate_size": 32, "num_hidden_layers": 1}
    shape |= {"num_attention_heads": 2, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**shape, **settings))


def with_lora(*, targets: list[str], seed: int = 1, **settings: Any) -> Any:
    """Return a model whose adapters are not zero, as after some training."""
    model = get_peft_model(
        tiny(tie_word_embeddings=False), LoraConfig(r=3, target_modules=targets, **settings)
    )
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    return model


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    gen = torch.Generator().manual_seed(2)
    hidden = torch.randn(N, D, generator=gen, requires_grad=True)
    ids = torch.rand(N, V, generator=gen).argsort(1)[:, :K]
    return hidden, ids, torch.randint(V, (N,), generator=gen)


def assert_same(got: tuple[Tensor, ...], want: tuple[Tensor, ...], leaves: list[Tensor]) -> None:
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, atol=1e-5, rtol=1e-5)
    sums = [x[0].sum() - 2 * x[1].sum() + 3 * x[2].sum() for x in (got, want)]
    for g, w in zip(*(torch.autograd.grad(s, leaves) for s in sums), strict=True):
        assert w.abs().max() > 1e-3
        torch.testing.assert_close(g, w, atol=1e-4, rtol=1e-4)


def dense(logits: Tensor, ids: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    log_p = logits.log_softmax(1)
    rest = log_p.scatter(1, ids, -torch.inf).logsumexp(1)
    return log_p.gather(1, ids), rest, log_p.gather(1, target[:, None])[:, 0]


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True, "lora_alpha": 4}])
def test_adapter_on_the_head_equals_its_own_logits(settings: dict[str, Any]) -> None:
    """Compare with peft's own forward, W x + s B A x: values, gradients of A, B and hidden."""
    model = with_lora(targets=["lm_head"], **settings)
    head = convert_head(model.get_output_embeddings())
    assert isinstance(head, LoraLabelHead)
    hidden, ids, target = inputs()
    want = dense(head(hidden), ids, target)
    got = head(hidden, ids, target)
    leaves = [hidden, head.lora_A["default"].weight, head.lora_B["default"].weight]
    assert_same(got, want, leaves)
    assert not head.get_base_layer().weight.requires_grad
    plain = linear_label_logprobs(hidden, head.get_base_layer().weight, ids)
    assert (plain[0] - got[0]).abs().max() > 0.1  # the adapter matters


def test_two_adapters_dropout_and_switching_off() -> None:
    model = with_lora(targets=["lm_head"], lora_dropout=0.5)
    model.add_adapter("second", LoraConfig(r=2, target_modules=["lm_head"]))
    model.base_model.set_adapter(["default", "second"])
    head = convert_head(model.get_output_embeddings())
    nn.init.normal_(head.lora_B["second"].weight)
    hidden, ids, target = inputs()
    head.eval()
    leaves = [hidden, head.lora_B["default"].weight, head.lora_B["second"].weight]
    assert_same(head(hidden, ids, target), dense(head(hidden), ids, target), leaves)
    head.train()
    torch.manual_seed(3)
    want = dense(head(hidden), ids, target)
    torch.manual_seed(3)  # the same units dropped
    torch.testing.assert_close(head(hidden, ids, target)[0], want[0], atol=1e-5, rtol=1e-5)
    with model.disable_adapter():
        got = head(hidden, ids, target)
        torch.testing.assert_close(got, dense(head(hidden), ids, target), atol=1e-5, rtol=1e-5)


def test_adapters_elsewhere_leave_the_head_unchanged() -> None:
    model = with_lora(targets=["q_proj"])
    assert type(convert_head(model.get_output_embeddings())) is LabelHead


def test_a_tied_head_trains_the_embeddings_too() -> None:
    model = tiny(tie_word_embeddings=True)
    head = convert_head(model.get_output_embeddings())
    assert head.weight is model.get_input_embeddings().weight
    tokens = torch.arange(N)
    _, ids, target = inputs()

    def states() -> Tensor:
        return model.model(input_ids=tokens[None]).last_hidden_state[0]

    assert_same(head(states(), ids, target), dense(head(states()), ids, target), [head.weight])


SHAPE: dict[str, Any] = {
    **{"vocab_size": V, "hidden_size": D, "intermediate_size": 32, "num_hidden_layers": 1},
    **{"num_attention_heads": 2, "num_key_value_heads": 2, "pad_token_id": 0},
}
ARCHITECTURES = {
    "softcap, tied": lambda: Gemma2ForCausalLM(
        Gemma2Config(**SHAPE, head_dim=8, final_logit_softcapping=0.5)
    ),
    "scale, tied": lambda: CohereForCausalLM(CohereConfig(**SHAPE, logit_scale=0.25)),
    "divisor": lambda: GraniteForCausalLM(GraniteConfig(**SHAPE, logits_scaling=4.0)),
    "bias": lambda: PhiForCausalLM(PhiConfig(**SHAPE)),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_heads_of_real_architectures_equal_their_own_logits(name: str) -> None:
    """Soft cap, scale, bias and a padded vocabulary match those of the model class."""
    torch.manual_seed(0)
    model: Any = ARCHITECTURES[name]()
    with torch.no_grad():
        for parameter in model.get_output_embeddings().parameters():
            parameter.normal_(std=0.5)
    student = Student(model, V - 3)
    check_head(student)
    tokens = torch.arange(N)[None] + 1
    gen = torch.Generator().manual_seed(2)
    ids = torch.rand(N, V - 3, generator=gen).argsort(1)[:, :K]
    target = torch.randint(V - 3, (N,), generator=gen)
    want = dense(model(tokens).logits[0, :, : V - 3], ids, target)
    got = student.label_logprobs(model.base_model(tokens).last_hidden_state[0], ids, target)
    leaves = [*model.get_output_embeddings().parameters()]
    assert len(leaves) == (2 if name == "bias" else 1)
    assert_same(got[:3], want, [*leaves, next(model.base_model.layers.parameters())])


def test_unsupported_heads_are_refused() -> None:
    with pytest.raises(SoftshardsError, match="Sequential, not a plain linear layer"):
        convert_head(nn.Sequential())
    for settings in ({"use_dora": True}, {"lora_bias": True}):
        model = with_lora(targets=["lm_head"], **settings)
        if settings.get("lora_bias"):
            assert model.get_output_embeddings().lora_B["default"].bias is not None
        with pytest.raises(SoftshardsError, match="adapter on the output head"):
            convert_head(model.get_output_embeddings())
