"""What is true of the transformers back end alone."""

import numpy as np
import pytest
from transformers import Qwen3Config, Qwen3ForCausalLM

from tests.contract import oracle
from tests.contract.backends import engine_config
from tests.contract.oracle import MAX_MODEL_LEN
from tests.tiny import VOCAB, make_tokenizer
from topd_ray.engines.open import open_generation, open_teacher
from topd_ray.errors import UserError


def test_a_model_that_forgets_is_refused_by_its_kind_of_layer(tmp_path):
    config = Qwen3Config(
        vocab_size=len(VOCAB),
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=8,
        layer_types=["full_attention", "sliding_attention"],
        sliding_window=4,
        use_sliding_window=True,
        eos_token_id=1,
    )
    Qwen3ForCausalLM(config).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(
        UserError, match="layers of sliding_attention, which backend hf cannot"
    ):
        open_generation(tmp_path, engine_config("hf"), max_model_len=16)


def test_bfloat16_computes_in_bfloat16_and_reports_in_float32(student_folder):
    config = engine_config("hf").model_copy(update={"dtype": "bfloat16"})
    model, prompts = oracle.load(student_folder), oracle.prompts(1, [3, 40, 40, 90])
    engine = open_generation(student_folder, config, max_model_len=MAX_MODEL_LEN)
    scoring = open_teacher(student_folder, config, max_model_len=MAX_MODEL_LEN)
    requests = [
        oracle.request(p, request_id=f"r{i}", temperature=1.0, seed=i, num_top=4)
        for i, p in enumerate(prompts)
    ]
    errors = []
    for prompt, got in zip(prompts, oracle.run(engine, requests), strict=True):
        logp_NV = oracle.response_logp(model, prompt, got.token_ids_N)
        errors += (
            got.logp_N - logp_NV[np.arange(len(got.logp_N)), got.token_ids_N]
        ).tolist()
        assert got.top_logp_NM.dtype == np.float32
    # Log-probabilities down to -20 with 8 bits: well below what another token would be
    # off by.
    assert 1e-4 < np.abs(errors).mean() < 0.1
    for prompt, states in zip(prompts, scoring.hidden_states(prompts), strict=True):
        assert states.dtype == np.float32
        assert 1e-4 < np.abs(states - oracle.hidden(model, prompt)).mean() < 0.05
