import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.tiny import make_model
from topd_ray.engines.protocols import NamedArray
from topd_ray.weights.export import export_folder


def weights_of(folder: Path, *, dtype: torch.dtype = torch.float32) -> list[NamedArray]:
    """The folder's weights, each doubled."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    doubled = {name: 2 * p.detach() for name, p in model.named_parameters()}
    if dtype == torch.bfloat16:
        return [
            (n, w.view(torch.int16).numpy().view(np.uint16)) for n, w in doubled.items()
        ]
    return [(n, w.numpy()) for n, w in doubled.items()]


def check(target: Path, weights: list[NamedArray]) -> None:
    model = AutoModelForCausalLM.from_pretrained(target)
    loaded = dict(model.named_parameters())
    assert loaded.keys() == dict(weights).keys()
    for name, array in weights:
        if array.dtype == np.uint16:
            bits = loaded[name].detach().view(torch.int16).numpy().view(np.uint16)
            np.testing.assert_array_equal(bits, array)
        else:
            np.testing.assert_array_equal(loaded[name].detach().numpy(), array)


@pytest.mark.parametrize("max_shard_bytes", [10**9, 10_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_folder_loads_with_the_weights_given(
    student_folder, tmp_path, dtype, max_shard_bytes
):
    weights, target = weights_of(student_folder, dtype=dtype), tmp_path / "model"
    export_folder(
        weights, source=student_folder, target=target, max_shard_bytes=max_shard_bytes
    )
    check(target, weights)
    assert json.loads((target / "config.json").read_text())["dtype"] == str(dtype)[6:]
    assert (len(list(target.glob("*.safetensors"))) > 1) == (max_shard_bytes == 10_000)


def test_an_untied_head_is_exported_too(teacher_folder, tmp_path):
    weights = weights_of(teacher_folder)
    assert "lm_head.weight" in dict(weights)
    export_folder(weights, source=teacher_folder, target=tmp_path / "model")
    check(tmp_path / "model", weights)


def test_the_tokenizer_and_its_chat_template_come_along(student_folder, tmp_path):
    export_folder(
        weights_of(student_folder), source=student_folder, target=tmp_path / "model"
    )
    told = [{"role": "user", "content": "1 2"}]
    source, exported = (
        AutoTokenizer.from_pretrained(folder)
        for folder in (student_folder, tmp_path / "model")
    )
    assert exported.apply_chat_template(told) == source.apply_chat_template(told)


def test_no_weight_file_of_the_source_is_kept(student_folder, tmp_path):
    source = tmp_path / "source"
    export_folder(
        weights_of(student_folder),
        source=student_folder,
        target=source,
        max_shard_bytes=10_000,
    )
    export_folder(weights_of(source), source=source, target=tmp_path / "model")
    assert [path.name for path in (tmp_path / "model").glob("model*")] == [
        "model.safetensors"
    ]


def test_a_target_that_exists_is_replaced(student_folder, tmp_path):
    target = make_model(tmp_path / "model", hidden=16, layers=1, seed=9, tied=True)
    weights = weights_of(student_folder)
    export_folder(weights, source=student_folder, target=target)
    check(target, weights)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_export_that_fails_leaves_nothing_behind(student_folder, tmp_path):
    def breaking() -> Iterator[NamedArray]:
        yield "one", np.zeros(3, np.float32)
        raise RuntimeError("the rank died")

    with pytest.raises(RuntimeError, match="the rank died"):
        export_folder(breaking(), source=student_folder, target=tmp_path / "model")
    assert list(tmp_path.iterdir()) == []
