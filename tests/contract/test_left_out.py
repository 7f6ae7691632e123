"""What a folder holds besides ids and weights of its model changes no engine."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy.special import log_softmax

from tests.contract import oracle
from tests.contract.backends import DECODERS, THIRD_PARTY, open_decoder
from tests.contract.oracle import MAX_MODEL_LEN, named_arrays, perturbed
from tests.tiny import VOCAB, pad_model
from topd_ray.engines.protocols import GenerationEngine
from topd_ray.messages import PAD

pytestmark = THIRD_PARTY

PROMPTS = oracle.prompts(11, [3, 40, 65])


@pytest.fixture(scope="module")
def folder(student_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tied student whose file holds padding, a copy of the head and an old table.

    Beside it lies a second file with other weights under the model's own names.
    """
    target = tmp_path_factory.mktemp("more") / "student"
    folder = pad_model(student_folder, target, rows=24)
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


def test_padding_is_never_sampled_and_no_part_of_a_distribution(engine, student_folder):
    model = oracle.load(student_folder)
    requests = [
        oracle.request(
            prompt, request_id=f"r{i}", temperature=2.0, seed=i, num_top=len(VOCAB) + 4
        )
        for i, prompt in enumerate(PROMPTS)
    ]
    answers = oracle.run(engine, requests)
    for prompt, got in zip(PROMPTS, answers, strict=True):
        assert got.token_ids_N.max() < len(VOCAB)
        logp_NV = oracle.response_logp(model, prompt, got.token_ids_N)
        rows = np.arange(len(got.token_ids_N))
        np.testing.assert_allclose(
            got.logp_N, logp_NV[rows, got.token_ids_N], atol=1e-4
        )
        assert (got.top_ids_NM[:, len(VOCAB) :] == PAD).all()
        assert (np.sort(got.top_ids_NM[:, : len(VOCAB)]) == np.arange(len(VOCAB))).all()


def test_a_tied_head_with_a_copy_in_the_file_follows_new_weights(engine, folder):
    for seed in (21, 22):
        model = perturbed(folder, seed)
        engine.load_weights(iter(named_arrays(model)))
        request = oracle.request(PROMPTS[0], temperature=1.0, num_top=1)
        got = oracle.run(engine, [request])[0]
        with_padding_NR = oracle.response_logp(model, PROMPTS[0], got.token_ids_N)
        logp_NV = log_softmax(with_padding_NR[:, : len(VOCAB)], axis=1)
        rows = np.arange(len(got.token_ids_N))
        np.testing.assert_allclose(
            got.logp_N, logp_NV[rows, got.token_ids_N], atol=1e-4
        )
