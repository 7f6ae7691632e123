"""What a folder holds besides the weights of its model changes no engine."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.contract import oracle
from tests.contract.backends import DECODERS, THIRD_PARTY, open_decoder
from tests.contract.oracle import MAX_MODEL_LEN, named_arrays, perturbed
from topd_ray.engines.protocols import GenerationEngine

pytestmark = THIRD_PARTY

PROMPTS = oracle.prompts(11, [3, 40, 65])


@pytest.fixture(scope="module")
def folder(student_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tied student whose file holds a copy of the head and an old table.

    Beside it lies a second file with other weights under the model's own names.
    """
    folder = shutil.copytree(
        student_folder, tmp_path_factory.mktemp("more") / "student"
    )
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(16)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    others = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    save_file(others, folder / "rest.safetensors")
    return folder


@pytest.fixture(scope="module", params=DECODERS)
def engine(request: pytest.FixtureRequest, folder: Path) -> Iterator[GenerationEngine]:
    opened = open_decoder(request.param, folder, max_model_len=MAX_MODEL_LEN)
    yield opened
    opened.close()


def test_the_start_reads_the_weights_alone(engine, student_folder):
    model = oracle.load(student_folder)
    expected = [oracle.greedy(model, prompt, 32) for prompt in PROMPTS]
    assert oracle.tokens(engine, PROMPTS) == expected


def test_a_tied_head_with_a_copy_in_the_file_follows_new_weights(
    engine, student_folder
):
    for seed in (21, 22):
        model = perturbed(student_folder, seed)
        engine.load_weights(iter(named_arrays(model)))
        request = oracle.request(PROMPTS[0], temperature=1.0, num_top=1)
        got = oracle.run(engine, [request])[0]
        logp_NV = oracle.response_logp(model, PROMPTS[0], got.token_ids_N)
        rows = torch.arange(len(got.token_ids_N))
        assert abs(got.logp_N - logp_NV[rows, got.token_ids_N]).max() < 1e-4
