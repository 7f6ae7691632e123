"""`topd convert` against a GGUF file that the test writes, tensor by tensor."""

import json
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from topd_ray.commands import convert as command
from topd_ray.errors import UserError
from topd_ray.models.folder import check_folder

WIDTH, HEADS, INNER, LAYERS = 32, 2, 48, 2
LETTERS = [chr(code) for code in range(ord("a"), ord("z") + 1)]
TOKENS = ["<|endoftext|>", "<|im_end|>", *LETTERS, "ab"]
NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
SHAPES = {
    "attn_norm": (WIDTH,),
    "ffn_norm": (WIDTH,),
    "ffn_gate": (INNER, WIDTH),
    "ffn_up": (INNER, WIDTH),
    "ffn_down": (WIDTH, INNER),
}

Arrays = dict[str, np.ndarray]


@pytest.fixture
def write_gguf(tmp_path: Path) -> Callable[[bool], tuple[Path, Arrays]]:
    """Writes a Qwen2 of two layers. `own_head`: whether it has an output head."""

    def write(own_head: bool) -> tuple[Path, Arrays]:
        draw = np.random.default_rng(0)
        shapes = {"token_embd": (len(TOKENS), WIDTH), "output_norm": (WIDTH,)}
        if own_head:
            shapes["output"] = (len(TOKENS), WIDTH)
        for layer in range(LAYERS):
            for part in NAMES:
                shapes[f"blk.{layer}.{part}"] = SHAPES.get(part, (WIDTH, WIDTH))
        arrays = {
            f"{name}.weight": draw.standard_normal(shape, np.float32)
            for name, shape in shapes.items()
        }
        for layer in range(LAYERS):
            for part in ("attn_q", "attn_k", "attn_v"):
                arrays[f"blk.{layer}.{part}.bias"] = np.zeros(WIDTH, np.float32)
        path = tmp_path / "tiny.gguf"
        writer = gguf.GGUFWriter(path, "qwen2")
        writer.add_block_count(LAYERS)
        writer.add_context_length(64)
        writer.add_embedding_length(WIDTH)
        writer.add_feed_forward_length(INNER)
        writer.add_head_count(HEADS)
        writer.add_head_count_kv(HEADS)
        writer.add_layer_norm_rms_eps(1e-6)
        writer.add_rope_freq_base(10_000.0)
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("qwen2")
        writer.add_token_list(TOKENS)
        writer.add_token_types([3, 3, *[1] * (len(TOKENS) - 2)])  # 3: control token
        writer.add_token_merges(["a b"])
        writer.add_eos_token_id(1)
        writer.add_pad_token_id(0)
        for name, array in arrays.items():
            writer.add_tensor(name, array)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path, arrays

    return write


@pytest.mark.parametrize("own_head", [False, True])
def test_every_tensor_arrives_and_the_head_is_tied_where_there_is_none(
    write_gguf, tmp_path: Path, own_head: bool
) -> None:
    file, arrays = write_gguf(own_head)
    folder = tmp_path / "model"
    command.convert(file, folder)
    weights = load_file(folder / "model.safetensors")
    wanted = {
        "model.embed_tokens.weight": arrays["token_embd.weight"],
        "model.norm.weight": arrays["output_norm.weight"],
    }
    if own_head:
        wanted["lm_head.weight"] = arrays["output.weight"]
    for layer in range(LAYERS):
        for part, name in NAMES.items():
            array = arrays[f"blk.{layer}.{part}.weight"]
            wanted[f"model.layers.{layer}.{name}.weight"] = array
    for name, array in wanted.items():
        expected = torch.from_numpy(array).to(torch.bfloat16)
        assert torch.equal(weights.pop(name), expected), name
    assert all(name.endswith("_proj.bias") for name in weights)
    config = json.loads((folder / "config.json").read_text())
    assert config["tie_word_embeddings"] is not own_head
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    assert torch.equal(model.state_dict()["lm_head.weight"], _head(wanted))


def test_two_tables_become_one_where_that_is_asked_for(
    write_gguf, tmp_path: Path
) -> None:
    file, arrays = write_gguf(True)
    folder = tmp_path / "model"
    command.convert(file, folder, tie=True)
    weights = load_file(folder / "model.safetensors")
    assert "lm_head.weight" not in weights
    head = torch.from_numpy(arrays["output.weight"]).to(torch.bfloat16)
    assert torch.equal(weights["model.embed_tokens.weight"], head)
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"]


def _head(wanted: Arrays) -> torch.Tensor:
    name = "lm_head.weight" if "lm_head.weight" in wanted else None
    return torch.from_numpy(wanted[name or "model.embed_tokens.weight"]).bfloat16()


def test_the_folder_is_one_that_a_run_takes(write_gguf, tmp_path: Path) -> None:
    file, _ = write_gguf(False)
    folder = tmp_path / "model"
    command.convert(file, folder)
    check_folder(folder, role="student")
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("abc")) == ["ab", "c"]
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation == {"eos_token_id": 1, "pad_token_id": 0}


def test_a_file_that_is_no_gguf_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"PK\3\4")
    with pytest.raises(UserError, match="begins with"):
        command.convert(file, tmp_path / "model")
    with pytest.raises(UserError, match="no such file"):
        command.convert(tmp_path / "absent.gguf", tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]


def test_a_file_that_is_cut_leaves_no_folder(write_gguf, tmp_path: Path) -> None:
    file, _ = write_gguf(False)
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(UserError, match=r"tiny\.gguf"):
        command.convert(file, tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.gguf"]


def test_a_folder_with_something_in_it_is_kept(write_gguf, tmp_path: Path) -> None:
    file, _ = write_gguf(False)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    with pytest.raises(UserError, match="is not empty"):
        command.convert(file, folder)
    assert [path.name for path in folder.iterdir()] == ["config.json"]


def test_what_is_missing_is_named(
    write_gguf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, _ = write_gguf(False)
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"gguf and accelerate.*topd_ray\[real\]"):
        command.convert(file, tmp_path / "model")


def test_an_exception_without_a_message_is_named_by_its_class(
    write_gguf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise KeyError  # str(KeyError()) is empty

    file, _ = write_gguf(False)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", fail)
    with pytest.raises(UserError, match="cannot read it: KeyError"):
        command.convert(file, tmp_path / "model")
