"""Model folders: found, judged fit for a run, and compared, before anything is loaded.

Needs neither torch nor ray: `topd check` runs it on a laptop.
"""

import json
import math
import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from topd_ray.errors import UserError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
HUB_PATTERNS = [
    "*.safetensors",
    "*.json",
    "*.jinja",
    "tokenizer*",
    "merges.txt",
    "vocab.*",
]
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
CONTEXT_CHARS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorFact:
    """What a safetensors header says of one tensor."""

    file: Path
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What a run needs to know of a model without loading it."""

    num_parameters: int
    """A head tied to the embedding counts once."""
    vocab_size: int
    """Rows of the embedding, which may be more than the tokenizer has entries."""
    hidden_size: int
    layers: int
    max_position_embeddings: int
    eos_ids: frozenset[int]
    """Of config.json and generation_config.json together."""
    dtype: str
    """That most parameters are stored in, e.g. "bfloat16"."""
    tied: bool


def resolve_model(name: str) -> Path:
    """The folder `name`, or the hub's model of that name, downloaded if need be.

    Raises UserError where it is neither, or where the hub cannot be reached.
    """
    folder = _local_folder(name)
    return folder if folder is not None else _download(name)


def find_model(name: str) -> Path | None:
    """The folder `name`, or the hub's model if this machine has it already; no
    network.
    """
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    if (folder := _local_folder(name)) is not None:
        return folder
    try:
        return _snapshot(name, local_files_only=True)
    except (LocalEntryNotFoundError, HFValidationError):
        return None


def check_folder(folder: Path, *, role: str) -> None:
    """Raise UserError unless `folder` is a whole safetensors model with its
    tokenizer.
    """
    try:
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder")
        config = _read_json(folder / "config.json")
        if "auto_map" in config:
            raise UserError(
                f"{folder / 'config.json'}: `auto_map` asks for code that came with the"
                " model; it is never run (trust_remote_code is off); use a model that"
                " transformers knows"
            )
        tensor_facts(folder)
        if not (folder / "tokenizer.json").is_file():
            raise UserError(
                f"{folder}: no tokenizer.json; save the model's tokenizer beside it"
            )
    except UserError as error:
        raise UserError(f"{role}: {error}") from None


def read_facts(folder: Path) -> ModelFacts:
    """Read config.json, generation_config.json and the headers of the weights."""
    config = _read_json(folder / "config.json")
    tensors = tensor_facts(folder)
    tied = bool(config.get("tie_word_embeddings", "lm_head.weight" not in tensors))
    sizes: Counter[str] = Counter()
    for name, fact in tensors.items():
        if not (tied and name == "lm_head.weight"):
            sizes[fact.dtype] += math.prod(fact.shape)
    return ModelFacts(
        num_parameters=sizes.total(),
        vocab_size=_whole_number(folder, config, "vocab_size"),
        hidden_size=_whole_number(folder, config, "hidden_size"),
        layers=_whole_number(folder, config, "num_hidden_layers"),
        max_position_embeddings=_whole_number(
            folder, config, "max_position_embeddings"
        ),
        eos_ids=_eos_ids(folder, config),
        dtype=sizes.most_common(1)[0][0],
        tied=tied,
    )


def check_context(facts: ModelFacts, needed: int, role: str) -> None:
    """Raise UserError where the model was not made for sequences of `needed` tokens."""
    if facts.max_position_embeddings < needed:
        raise UserError(
            f"{role}: max_position_embeddings={facts.max_position_embeddings} in its"
            f" config.json, but a run of this config needs {needed}; lower"
            " prompts.max_tokens or rollout.max_response_tokens"
        )


def compare_models(student: Path, teacher: Path) -> None:
    """Raise UserError with the first thing in which two models' tokens differ.

    Distillation compares distributions id by id: the vocabulary, its size, the EOS ids
    and the chat template must be the same.
    """
    for difference in (
        _vocabulary_difference(student, teacher),
        _size_difference(student, teacher),
        _eos_difference(student, teacher),
        _template_difference(student, teacher),
    ):
        if difference is not None:
            raise UserError(
                f"student {student} and teacher {teacher} do not fit: {difference}"
            )


def tensor_facts(folder: Path) -> dict[str, TensorFact]:
    """Every tensor of the folder, from the headers alone. Raises UserError for a broken
    file.
    """
    if (folder / INDEX).is_file():
        return _sharded_facts(folder)
    if (folder / SINGLE).is_file():
        return _header_facts(folder / SINGLE)
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if pickles:
        raise UserError(
            f"{folder}: weights as {pickles[0]} (pickle), safetensors only; convert"
            " with transformers' save_pretrained"
        )
    raise UserError(f"{folder}: no weights; expected {SINGLE} or {INDEX}")


def _sharded_facts(folder: Path) -> dict[str, TensorFact]:
    weight_map = _read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(
            f"{folder / INDEX}: expected a `weight_map` from tensors to shards"
        )
    shards = sorted({str(shard) for shard in weight_map.values()})
    missing = [
        name
        for name in shards
        if Path(name).name != name or not (folder / name).is_file()
    ]
    if missing:
        raise UserError(
            f"{folder / INDEX}: names {len(shards)} shards, {len(missing)} of them"
            f" missing, first {missing[0]!r}; download the model again"
        )
    facts = {
        name: fact
        for shard in shards
        for name, fact in _header_facts(folder / shard).items()
    }
    for name, shard in weight_map.items():
        if name not in facts or facts[name].file.name != shard:
            raise UserError(f"{folder / INDEX}: tensor {name!r} is not in {shard}")
    return facts


def _header_facts(file: Path) -> dict[str, TensorFact]:
    """Parse a safetensors header: 8 bytes of length, JSON, then exactly the bytes it
    promises.
    """
    header, data_bytes = _read_header(file)
    facts, promised_bytes = {}, 0
    try:
        for name, entry in header.items():
            if name != "__metadata__":
                shape = tuple(int(axis) for axis in entry["shape"])
                dtype = DTYPES.get(entry["dtype"], str(entry["dtype"]))
                facts[name] = TensorFact(file=file, shape=shape, dtype=dtype)
                promised_bytes = max(promised_bytes, int(entry["data_offsets"][1]))
    except (KeyError, IndexError, TypeError, ValueError):
        raise UserError(f"{file}: header entry of {name!r} is malformed") from None
    if promised_bytes != data_bytes:
        raise UserError(
            f"{file}: truncated or overlong: {data_bytes} bytes of weights, its header"
            f" promises {promised_bytes}; download it again"
        )
    if not facts:
        raise UserError(f"{file}: holds no tensors")
    return facts


def _read_header(file: Path) -> tuple[dict[str, Any], int]:
    size = file.stat().st_size
    with file.open("rb") as stream:
        prefix = stream.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
        header_bytes = stream.read(length) if length <= size - 8 else b""
    try:
        header = json.loads(header_bytes)
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict):
        raise UserError(
            f"{file}: truncated or no safetensors file ({size} bytes, header"
            " unreadable); download it again (with git: `git lfs pull`)"
        )
    return header, size - 8 - length


def _vocabulary_difference(student: Path, teacher: Path) -> str | None:
    token_S, token_T = _vocabulary(student), _vocabulary(teacher)
    for token_id in sorted(token_S.keys() | token_T.keys()):
        if token_S.get(token_id) != token_T.get(token_id):
            return (
                f"vocabulary: id {token_id} is {_named(token_S.get(token_id))} in the"
                f" student's tokenizer.json and {_named(token_T.get(token_id))} in the"
                f" teacher's ({len(token_S)} and {len(token_T)} entries); take models"
                " of one family"
            )
    return None


def _size_difference(student: Path, teacher: Path) -> str | None:
    size_S, size_T = (
        _whole_number(folder, _read_json(folder / "config.json"), "vocab_size")
        for folder in (student, teacher)
    )
    if size_S == size_T:
        return None
    return (
        f"vocab_size: {size_S} in the student's config.json, {size_T} in the teacher's;"
        " pad the smaller embedding and head"
    )


def _eos_difference(student: Path, teacher: Path) -> str | None:
    eos_S, eos_T = (
        sorted(_eos_ids(folder, _read_json(folder / "config.json")))
        for folder in (student, teacher)
    )
    if eos_S == eos_T:
        return None
    return (
        f"EOS token ids: {eos_S} for the student, {eos_T} for the teacher (config.json"
        " and generation_config.json together); set `eos_token_id` alike in both"
        " generation_config.json"
    )


def _template_difference(student: Path, teacher: Path) -> str | None:
    text_S, text_T = _chat_template(student), _chat_template(teacher)
    if text_S is None or text_T is None:
        role = "student" if text_S is None else "teacher"
        return (
            f"chat template: the {role} has none (chat_template.jinja or"
            " tokenizer_config.json)"
        )
    if text_S == text_T:
        return None
    pairs = enumerate(zip(text_S, text_T, strict=False))
    shorter = min(len(text_S), len(text_T))
    place = next((index for index, (a, b) in pairs if a != b), shorter)
    return (
        f"chat template: differs from character {place} on: student"
        f" {_around(text_S, place)!r}, teacher {_around(text_T, place)!r}; copy"
        " chat_template.jinja from one to the other"
    )


def _vocabulary(folder: Path) -> dict[int, str]:
    """Token of every id in tokenizer.json, added tokens included."""
    path = folder / "tokenizer.json"
    tokenizer = _read_json(path)
    try:
        vocab = tokenizer["model"]["vocab"]
        if isinstance(vocab, dict):
            tokens = {int(token_id): str(token) for token, token_id in vocab.items()}
        else:  # Unigram: [piece, score] in the order of ids
            tokens = {token_id: str(piece[0]) for token_id, piece in enumerate(vocab)}
        added = tokenizer.get("added_tokens") or []
        return tokens | {int(token["id"]): str(token["content"]) for token in added}
    except (KeyError, IndexError, TypeError, ValueError):
        raise UserError(f"{path}: expected `model.vocab` and `added_tokens`") from None


def _chat_template(folder: Path) -> str | None:
    if (folder / "chat_template.jinja").is_file():
        return _read_text(folder / "chat_template.jinja")
    if not (folder / "tokenizer_config.json").is_file():
        return None
    template = _read_json(folder / "tokenizer_config.json").get("chat_template")
    if isinstance(template, list):  # several, by name
        named = [entry for entry in template if isinstance(entry, dict)]
        template = next(
            (t.get("template") for t in named if t.get("name") == "default"), None
        )
    return template if isinstance(template, str) else None


def _eos_ids(folder: Path, config: dict[str, Any]) -> frozenset[int]:
    generation = folder / "generation_config.json"
    found: set[int] = set()
    for values in (config, _read_json(generation) if generation.is_file() else {}):
        value = values.get("eos_token_id")
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(token_id, int) for token_id in ids):
            raise UserError(
                f"{folder}: eos_token_id={value!r}: expected a token id or a list"
            )
        found.update(ids)
    return frozenset(found)


def _whole_number(folder: Path, config: dict[str, Any], field: str) -> int:
    value = config.get(field)
    if not isinstance(value, int) or value < 1:
        raise UserError(
            f"{folder / 'config.json'}: {field}={value!r}: expected a whole number"
        )
    return value


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(_read_text(path))
    except (ValueError, RecursionError):
        raise UserError(f"{path}: not readable as JSON (truncated?)") from None
    if not isinstance(values, dict):
        raise UserError(
            f"{path}: expected a JSON object, found {type(values).__name__}"
        )
    return cast("dict[str, Any]", values)


def _read_text(path: Path) -> str:
    if not path.is_file():
        raise UserError(f"{path.parent}: no {path.name}")
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError:
        raise UserError(f"{path}: expected UTF-8 text, found other bytes") from None
    except OSError as error:
        raise UserError(f"{path}: not readable: {error.strerror}") from None


def _around(text: str, place: int) -> str:
    return text[max(0, place - CONTEXT_CHARS) : place + CONTEXT_CHARS]


def _named(token: str | None) -> str:
    return "missing" if token is None else repr(token)


def _local_folder(name: str) -> Path | None:
    try:
        folder = Path(name).expanduser()
        return folder if name and folder.is_dir() else None
    except (OSError, RuntimeError):  # a name too long for a path; the ~home of nobody
        return None


def _download(name: str) -> Path:
    from httpx import HTTPError
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
    )

    try:
        return _snapshot(name, local_files_only=False)
    except HFValidationError:
        raise UserError(
            f"{name}: no such folder, and no name the hub could have"
        ) from None
    except GatedRepoError:
        raise UserError(
            f"{name}: the hub wants its terms accepted first; do so on the model's"
            " page, then `hf auth login`"
        ) from None
    except RepositoryNotFoundError:
        raise UserError(
            f"{name}: no such folder, and the hub knows no such model; check the"
            " spelling, or log in with `hf auth login` if it is private"
        ) from None
    except (HTTPError, OSError) as error:
        raise UserError(
            f"{name}: no such folder, not in the local hub cache, and the hub cannot be"
            f" reached ({type(error).__name__}); go online, or give the path of a"
            " folder"
        ) from None


def _snapshot(name: str, *, local_files_only: bool) -> Path:
    from huggingface_hub import snapshot_download

    folder = snapshot_download(
        name, allow_patterns=HUB_PATTERNS, local_files_only=local_files_only
    )
    return Path(folder)
