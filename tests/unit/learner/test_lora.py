"""Adapters on a student: what they start as, what is trained, what travels."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.tiny import make_model
from tests.unit.learner.models import gradients, make
from tests.unit.learner.trees import Row, Window, in_one_forward
from topd_ray.config import LoraConfig
from topd_ray.engines.adapters import Adapter, outgoing_weights
from topd_ray.learner.lora import adapters_of, add_adapters
from topd_ray.learner.model import DistillationModel

LORA = LoraConfig(rank=3, alpha=7.0, targets=("q_proj", "o_proj", "down_proj"))
ROWS = [
    Row([10, 11], [12, 13, 14, 15], (Window(2, [20, 21, 22]),)),
    Row([30], [31, 32, 33]),
]


def with_adapters(
    folder: Path, *, trained: bool, gradient_checkpointing: bool = False
) -> DistillationModel:
    """The tiny student with adapters, at their start or after some training."""
    model = make(folder, gradient_checkpointing=gradient_checkpointing)
    add_adapters(model.student, LORA, seed=1)
    if trained:
        rng = torch.Generator().manual_seed(2)
        for adapter in adapters_of(model.student).values():
            with torch.no_grad():
                adapter.up_OR.normal_(std=0.1, generator=rng)
    return model


def merged_into(folder: Path, model: DistillationModel) -> DistillationModel:
    """A student without adapters that has the weights that would travel."""
    dense = make(folder)
    weights = published(model)
    with torch.no_grad():
        for name, weight in dense.student.named_parameters():
            weight.copy_(weights.pop(name))
    assert not weights
    return dense


def published(model: DistillationModel) -> dict[str, Tensor]:
    outgoing = outgoing_weights(model.student, adapters_of(model.student))
    return {weight.name: weight.value() for weight in outgoing}


@pytest.fixture(scope="module")
def untied_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("untied")
    return make_model(folder, hidden=32, layers=2, seed=4, tied=False)


@pytest.fixture(params=["tied", "untied"])
def folder(request, student_folder: Path, untied_folder: Path) -> Path:
    return student_folder if request.param == "tied" else untied_folder


def test_fresh_adapters_change_no_bit_of_the_losses(folder: Path) -> None:
    inputs = in_one_forward(ROWS)
    plain = make(folder)(*inputs)
    fresh = with_adapters(folder, trained=False)(*inputs)
    assert all(map(torch.equal, fresh, plain))


def test_only_the_adapters_of_the_targets_are_trained(folder: Path) -> None:
    student = with_adapters(folder, trained=False).student
    trained = {name for name, p in student.named_parameters() if p.requires_grad}
    assert trained == {
        f"model.layers.{layer}.{module}.lora_{part}.default.weight"
        for layer in range(2)
        for module in ("self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj")
        for part in "AB"
    }


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_the_gradient_of_the_adapters_is_that_of_the_dense_weight_by_the_chain_rule(
    folder: Path, gradient_checkpointing: bool
) -> None:
    """W' = W + s B A, so dL/dB = s dL/dW' A^T and dL/dA = s B^T dL/dW'."""
    model = with_adapters(
        folder, trained=True, gradient_checkpointing=gradient_checkpointing
    )
    inputs = in_one_forward(ROWS)
    dense = gradients(merged_into(folder, model), *inputs)
    adapters = adapters_of(model.student)
    expected = dict[str, Tensor]()
    for name, adapter in adapters.items():
        layer = f"student.{name.removesuffix('base_layer.weight')}"
        slope_OI = dense[f"{layer}weight"]
        scale = LORA.alpha / LORA.rank
        down_RI, up_OR = adapter.down_RI.detach(), adapter.up_OR.detach()
        expected[f"{layer}lora_A.default.weight"] = scale * up_OR.T @ slope_OI
        expected[f"{layer}lora_B.default.weight"] = scale * slope_OI @ down_RI.T
    got = gradients(model, *inputs)
    assert got.keys() == expected.keys()
    for name, gradient in expected.items():
        # float32 sums in another order, in the units of the largest gradient
        error = (got[name] - gradient).abs().max() / gradient.abs().max()
        assert gradient.abs().max() > 0, name
        assert error < 1e-4, (name, float(error))


def test_the_merged_weights_have_the_losses_of_the_adapters(folder: Path) -> None:
    model = with_adapters(folder, trained=True)
    inputs = in_one_forward(ROWS)
    with_them = model(*inputs)
    assert not torch.allclose(make(folder)(*inputs)[0], with_them[0], rtol=1e-3)
    torch.testing.assert_close(
        merged_into(folder, model)(*inputs), with_them, rtol=1e-4, atol=1e-5
    )


def test_weights_travel_under_their_own_names_and_the_frozen_ones_stay(
    folder: Path,
) -> None:
    plain = dict(make(folder).student.named_parameters())
    model = with_adapters(folder, trained=True)
    travelling = published(model)
    assert list(travelling) == list(plain)
    for name, weight in plain.items():
        adapted = any(f".{target}." in name for target in LORA.targets)
        assert torch.equal(travelling[name], weight) == (not adapted), name
    base = model.student.get_submodule("model.layers.0.mlp.down_proj.base_layer")
    assert torch.equal(base.weight, plain["model.layers.0.mlp.down_proj.weight"])


def test_a_small_product_is_added_before_it_is_rounded() -> None:
    weight = nn.Parameter(torch.full((1, 1), 256.0, dtype=torch.bfloat16))
    # bfloat16 would round 1.0039 to 1, and 256 + 1 stays 256 in bfloat16
    part = nn.Parameter(torch.full((1, 1), 1.0, dtype=torch.bfloat16))
    adapter = Adapter(down_RI=part, up_OR=part, scale=1.0039)
    (outgoing,) = outgoing_weights(_Holder(weight), {"weight": adapter})
    assert outgoing.value().dtype == torch.bfloat16
    assert outgoing.value().item() == 258.0


class _Holder(nn.Module):
    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight


def test_the_first_matrices_come_from_the_seed_alone(student_folder: Path) -> None:
    def downs(seed: int) -> Mapping[str, Tensor]:
        student = make(student_folder).student
        torch.manual_seed(5)
        add_adapters(student, LORA, seed=seed)
        assert torch.rand(1) == torch.rand(
            1, generator=torch.Generator().manual_seed(5)
        )
        return {name: a.down_RI.detach() for name, a in adapters_of(student).items()}

    one, again, other = downs(1), downs(1), downs(2)
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in one)
