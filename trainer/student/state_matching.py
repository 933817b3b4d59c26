"""The student's hidden states that are compared with the teacher's, in the teacher's width."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from schemas.errors import SoftshardsError
from trainer.data.collate import Batch
from trainer.student.attention_ways import set_attention
from trainer.student.layers import decoder_layers, model_body, text_model

PROBE_TOKENS = 8


class StateMatching(nn.Module):
    """Collects the outputs of decoder layers, and projects them where the teacher is wider or not.

    A student's state s becomes P s, with a learned P [teacher's width, student's width] for each
    pair (FitNets, arXiv 1412.6550). With equal widths there is no P.

    Args:
        model: the student's model; a hook is put on each layer that is compared.
        layers: the student's side of each pair: a decoder layer counted from 0, or None for the
            input of the head.
        places: the teacher's side of each pair, an index in `Batch.states`.
        width: dimensions of the teacher's states.
        seed: of the random P.

    Raises:
        SoftshardsError: the model has no such layer, or one that returns something else.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        layers: Sequence[int | None],
        places: Sequence[int],
        *,
        width: int,
        seed: int,
    ) -> None:
        super().__init__()
        self.layers, self.places = tuple(layers), tuple(places)
        own = int(model.config.get_text_config().hidden_size)
        generator = torch.Generator().manual_seed(seed)
        self.projections = nn.ModuleList()
        if own != width:
            for _ in self.layers:
                linear = nn.Linear(own, width, bias=False)
                nn.init.normal_(linear.weight, std=own**-0.5, generator=generator)
                self.projections.append(linear)
        self._seen: dict[int, Tensor] | None = None
        stack = decoder_layers(model)
        for layer in {n for n in self.layers if n is not None}:
            if layer >= len(stack):
                raise SoftshardsError(
                    f"--state-layers: the student has no layer {layer}: it has {len(stack)}, "
                    "counted from 0"
                )
            stack[layer].register_forward_hook(self._keep(layer))
        self._check(model, own)

    def begin(self) -> None:
        """Keep the layers' outputs from now on. Call it before the model runs."""
        self._seen = {}

    def forward(self, hidden: Tensor, batch: Batch) -> tuple[tuple[Tensor, Tensor], ...]:
        """Return the teacher's and the student's states at the labels, each [n, width].

        Args:
            hidden: [n, d], the input of the head.
            batch: of the model's run just now.
        """
        seen, teacher = self._taken(), batch.states
        assert teacher is not None
        own = [hidden if n is None else seen[n].flatten(0, -2)[batch.rows] for n in self.layers]
        if self.projections:
            own = [project(state) for project, state in zip(self.projections, own, strict=True)]
        return tuple((teacher[:, at], state) for at, state in zip(self.places, own, strict=True))

    def _taken(self) -> dict[int, Tensor]:
        """Return the outputs since `begin`. Later ones are not kept.

        Gradient checkpointing runs the layers again in the backward pass.
        """
        assert self._seen is not None
        seen, self._seen = self._seen, None
        return seen

    def _keep(self, layer: int) -> Callable[[nn.Module, object, object], None]:
        # With --compile the hook runs between compiled graphs.
        @torch.compiler.disable  # type: ignore[untyped-decorator]
        def keep(_module: nn.Module, _inputs: object, output: object) -> None:
            if self._seen is not None:
                state = output[0] if isinstance(output, tuple | list) else output
                assert isinstance(state, Tensor)
                self._seen[layer] = state

        kept: Callable[[nn.Module, object, object], None] = keep
        return kept

    @torch.no_grad()
    def _check(self, model: PreTrainedModel, width: int) -> None:
        """Check that each layer returns one state per token, once.

        Raises:
            SoftshardsError: it does not, as in models that pass a layer several times.
        """
        calls: list[nn.Module] = []
        stack = decoder_layers(model)
        wanted = {n for n in self.layers if n is not None}
        hooks = [stack[n].register_forward_hook(lambda m, *_: calls.append(m)) for n in wanted]
        ids = torch.zeros(1, PROBE_TOKENS, dtype=torch.int64)
        training = model.training
        model.eval()
        attention = model.config._attn_implementation
        if attention == "flash_attention_2":
            set_attention(model, "sdpa")  # flash attention does not run on a CPU
        self.begin()
        try:
            model_body(model)(input_ids=ids, use_cache=False)
        finally:
            if attention == "flash_attention_2":
                set_attention(model, attention)
            model.train(training)
            for hook in hooks:
                hook.remove()
        shapes = {tuple(state.shape) for state in self._taken().values()}
        if len(calls) != len(wanted) or not shapes <= {(1, PROBE_TOKENS, width)}:
            raise SoftshardsError(
                f"--state-layers: the layers of {type(text_model(model)).__name__} do not return "
                "one state per token",
                hint="compare the final states alone: --state-layers final",
            )
