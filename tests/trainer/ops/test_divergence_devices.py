"""Exact divergences on every device: codes of states against the states that they stand for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from schemas.state_codec import decode_codes, encode_states, fit_basis
from tests.trainer.devices import DEVICES
from tests.trainer.ops.case import make_case
from tests.trainer.ops.test_dense_divergence import WIDTH, D, N, V, teacher
from trainer.ops.dense_divergence import TeacherHead, linear_divergence


@pytest.mark.parametrize("device", DEVICES)
def test_codes_of_a_basis_give_the_divergence_of_their_states(device: str) -> None:
    """int8 codes go into the op as they are; the basis is multiplied into the head once."""
    states, head = teacher(torch.float32)
    assert head.bias is not None
    basis = fit_basis(states.numpy(), np.eye(WIDTH))
    basis = replace(basis, step=0.05)
    table = pa.table(encode_states([states.numpy()], WIDTH, basis))
    codes = torch.from_numpy(np.array(decode_codes(table)))
    assert codes.dtype == torch.int8
    mean, synthesis = torch.from_numpy(basis.mean), torch.from_numpy(basis.synthesis) * basis.step
    folded = TeacherHead(
        weight=(head.weight @ synthesis.T).to(device),
        bias=(head.bias + head.weight @ mean).to(device), scale=head.scale, softcap=head.softcap,
    )  # fmt: skip
    case = make_case(n=N, d=D, v=V, dtype=torch.float32)
    hidden, weight = case.hidden.detach().to(device), case.weight.detach().to(device)
    by_codes = linear_divergence(hidden, weight, codes.to(device), folded)
    plain = TeacherHead(
        weight=head.weight.to(device), bias=head.bias.to(device), scale=0.5, softcap=8.0
    )
    rebuilt = torch.from_numpy(basis.states(codes.numpy())).to(device)
    torch.testing.assert_close(
        by_codes, linear_divergence(hidden, weight, rebuilt, plain), rtol=1e-4, atol=1e-5
    )
