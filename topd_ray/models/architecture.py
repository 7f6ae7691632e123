"""Tensors of a model folder against the model that its config.json describes.

transformers and vLLM build a model from config.json and fill it from the files. What
the files lack stays random, and what they hold besides is left out, by one engine in
silence and by the other with an error. So names and shapes are compared here, before
anything starts, and transformers itself says what the model holds.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from topd_ray.errors import UserError, first_line
from topd_ray.models.checkpoint_names import CheckpointNames
from topd_ray.models.facts import EMBEDDING_NAMES, HEAD, Shapes, read_facts
from topd_ray.models.files import CONFIG, read_config
from topd_ray.models.headers import TensorFact, stray_files, tensor_facts

# Tables that a model computes by itself and that older files hold; both engines leave
# them out.
_TABLES = re.compile(
    r"rotary_emb\.(inv_freq|cos_cached|sin_cached)$|\.masked_bias$|position_ids$"
)
QUANTIZED = "quantization_config"
_COMPARED_ROWS = 8192
"""Rows of a head that are in memory at a time while it is compared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """What a model of some config.json holds, by transformers."""

    parameters: Shapes
    """Shapes of the trainable tensors, as they are saved; a tied head is left out."""
    state: Shapes
    """Shapes of all tensors that a file should hold, a tied head included."""
    tied: Mapping[str, str]
    """Names that share the tensor of another name."""
    sources: Mapping[str, tuple[str, bool]]
    """Name in the files -> name in the model, and whether the tensor is changed on the
    way: transformers joins the experts of a layer.
    """
    linears: Shapes
    """Shapes (outputs, inputs) of the linear layers, by their names in the model."""
    optional: tuple[str, ...]
    """Patterns of names that the files may lack."""
    ignored: tuple[str, ...]
    """Patterns of names that are left out, such as layers for multi-token prediction.
    """


def weight_shapes(folder: Path) -> Shapes:
    """Return the shape of every weight that an engine of this model takes.

    These are the parameters of the model, by name and shape as transformers saves them.
    A tied head and tables that the files happen to hold are none. Raises UserError
    where transformers knows no such model.
    """
    return dict(_architecture(folder).parameters)


def linear_shapes(folder: Path) -> Shapes:
    """Return the shapes (outputs, inputs) of a model's linear layers, by name.

    Raises UserError where transformers knows no such model.
    """
    return dict(_architecture(folder).linears)


def check_tensors(folder: Path, *, role: str) -> list[str]:
    """Return notes on what is left out of a folder whose tensors fit its config.json.

    Reads the headers of the weights, and the head where it should be a copy of the
    embedding. A quantized model is not compared: its tensors are those of its format.

    Raises:
        UserError: A tensor is missing, has another shape or is unknown to the model; or
            a head that config.json calls tied differs from the embedding.
    """
    notes = [
        f"{role}: {name} beside the model's weights is left out"
        for name in stray_files(folder)
    ]
    if QUANTIZED in read_config(folder):
        return [*notes, f"{role}: quantized, so its tensors were not compared"]
    try:
        architecture = _architecture(folder)
        held = tensor_facts(folder)
        _refuse_missing(folder, architecture, held)
        _refuse_shapes(folder, architecture, held)
        notes += [f"{role}: {note}" for note in _left_out(folder, architecture, held)]
        _refuse_unread_names(folder, architecture)
        if HEAD in held and HEAD in architecture.tied:
            _refuse_other_head(folder, held)
            notes.append(f"{role}: {HEAD} is a copy of the embedding and is left out")
    except UserError as error:
        raise UserError(f"{role}: {error}") from None
    return notes


def config_of_text_model(folder: Path) -> dict[str, Any]:
    """Return the config of a folder's language model, with the defaults of its kind.

    A config.json leaves fields out that have the default of its `model_type`, such as
    Gemma 2's soft cap. Raises UserError where transformers cannot read it.
    """
    values: dict[str, Any] = loaded_config(folder).get_text_config().to_dict()
    return values


def check_names(folder: Path, *, field: str) -> None:
    """Raise UserError for a student whose weights have other names when it is saved.

    Engines and exports take the names of the files, so the first weights that the
    learner publishes would fit nowhere. transformers holds the experts of a layer in
    one tensor, for example, and takes it apart again (`CheckpointNames`). A teacher
    publishes nothing. A quantized student is refused too: it has no weights that could
    be trained.
    """
    if QUANTIZED in read_config(folder):
        raise UserError(
            f"{field}: {folder} is quantized ({QUANTIZED} in {CONFIG}), so it can be a"
            " teacher but no student; take the model that it was made from"
        )
    architecture = _architecture(folder)
    renamed = [
        name
        for name, (target, is_converted) in architecture.sources.items()
        if name not in architecture.parameters
        and (is_converted or not target.endswith(name))
    ]
    if renamed:
        name = renamed[0]
        raise UserError(
            f"{field}: {folder} holds {name}{_and_more(renamed)}, which the learner"
            f" holds as {architecture.sources[name][0]}, and transformers does not"
            " save it under its first name: the weights that it publishes would not"
            " fit the engines. Such a model can be a teacher but no student; take"
            " another student"
        )


def joins_weights(folder: Path) -> bool:
    """Return whether transformers joins several tensors of the files in one weight.

    It does so with the experts of a layer.
    """
    sources = _architecture(folder).sources.values()
    return any(is_converted for _, is_converted in sources)


def stored_names(folder: Path) -> dict[str, str]:
    """Return the name in the files of each weight that they hold as the model does.

    A weight that transformers joins from several tensors has none. Raises UserError
    where the files lack a weight.
    """
    architecture = _architecture(folder)
    _refuse_missing(folder, architecture, architecture.sources)
    return {
        target: name
        for name, (target, is_converted) in architecture.sources.items()
        if not is_converted
    }


def load_causal_lm(folder: Path, **options: Any) -> Any:
    """Return the transformers model of a folder, on the CPU.

    Args:
        folder: Hugging Face folder with safetensors.
        options: Further arguments of `from_pretrained`.

    Raises:
        UserError: The files lack a weight, which transformers would draw at random.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # a run says itself what it waits for
    model, info = AutoModelForCausalLM.from_pretrained(
        folder,
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=True,
        output_loading_info=True,
        **options,
    )
    if info["missing_keys"]:
        raise UserError(_missing(folder, sorted(info["missing_keys"])))
    return model


def _architecture(folder: Path) -> Architecture:
    # The config and the names decide, so a folder that changed is read again.
    config = folder / CONFIG
    return _read_architecture(
        folder, config.read_bytes(), tuple(sorted(tensor_facts(folder)))
    )


@lru_cache(maxsize=4)  # student and teacher; a model of 64 layers takes a second
def _read_architecture(
    folder: Path, _config: bytes, held: tuple[str, ...]
) -> Architecture:
    model = _empty_model(folder)
    state = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    return Architecture(
        parameters=_saved_shapes(folder, model),
        state=state,
        tied=dict(model.all_tied_weights_keys),
        sources=_sources(model, held),
        linears=_linears(model),
        optional=tuple(model._keys_to_ignore_on_load_missing or ()),
        ignored=tuple(model._keys_to_ignore_on_load_unexpected or ()),
    )


def _linears(model: Any) -> Shapes:
    from torch.nn import Linear

    return {
        name: (layer.out_features, layer.in_features)
        for name, layer in model.named_modules()
        if isinstance(layer, Linear)
    }


def _saved_shapes(folder: Path, model: Any) -> Shapes:
    with _as_user_error(folder):
        names = CheckpointNames(model)
        return {
            name: tuple(weight.shape)
            for parameter, held in model.named_parameters()
            for name, weight in names.of(parameter, held)
        }


def _empty_model(folder: Path) -> Any:
    """Return the model without memory for its weights."""
    import torch
    from transformers import AutoModelForCausalLM

    with _as_user_error(folder), torch.device("meta"):
        return AutoModelForCausalLM.from_config(loaded_config(folder))


def loaded_config(folder: Path) -> Any:
    """Return transformers' config of a folder; raise UserError where it reads none."""
    from transformers import AutoConfig

    with _as_user_error(folder):
        return AutoConfig.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )


@contextmanager
def _as_user_error(folder: Path) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    # transformers raises what its validators and layers happen to raise.
    except Exception as error:
        raise UserError(
            f"{folder / CONFIG}: transformers makes no causal language model of it"
            f" ({type(error).__name__}: {first_line(error)}); take another"
            " model"
        ) from None


def _sources(model: Any, held: Iterable[str]) -> dict[str, tuple[str, bool]]:
    """Return what transformers makes of each name in the files, as it loads them."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import (
        WeightConverter,
        WeightRenaming,
        rename_source_key,
    )

    transforms = get_model_conversion_mapping(model)
    renamings = [t for t in transforms if isinstance(t, WeightRenaming)]
    converters = [t for t in transforms if isinstance(t, WeightConverter)]
    state = model.state_dict()
    sources: dict[str, tuple[str, bool]] = {}
    for name in held:
        target, converter = rename_source_key(
            name, renamings, converters, model.base_model_prefix, state
        )
        sources[name] = (target, converter is not None)
    return sources


def _refuse_missing(
    folder: Path, architecture: Architecture, held: Iterable[str]
) -> None:
    given = {architecture.sources[name][0] for name in held}
    # A tied tensor is there under either name.
    for name, other in architecture.tied.items():
        if name in given or other in given:
            given |= {name, other}
    missing = [
        name
        for name in architecture.state
        if name not in given and not _matches(architecture.optional, name)
    ]
    if missing:
        raise UserError(_missing(folder, missing))


def _missing(folder: Path, names: list[str]) -> str:
    return (
        f"{folder}: its weights lack {names[0]}{_and_more(names)}, which its"
        f" {CONFIG} asks for and which would stay random; download the model again, or"
        f" correct {CONFIG}"
    )


def _refuse_shapes(
    folder: Path, architecture: Architecture, held: Mapping[str, TensorFact]
) -> None:
    for name, fact in held.items():
        target, is_converted = architecture.sources[name]
        expected = architecture.state.get(target)
        if expected is not None and not is_converted and fact.shape != expected:
            raise UserError(
                f"{fact.file}: {name} has shape {list(fact.shape)}, but {CONFIG} asks"
                f" for {list(expected)}; the two files are not of one model, or the"
                " vocabulary was resized and `vocab_size` was not"
            )
    for target, sizes in _joined_sizes(architecture, held).items():
        expected = architecture.state.get(target)
        if expected is not None and sum(sizes) != math.prod(expected):
            raise UserError(
                f"{folder}: the {len(sizes)} tensors that make up {target} hold"
                f" {sum(sizes):,} numbers, and {CONFIG} asks for"
                f" {math.prod(expected):,}; one is missing, or has another shape;"
                " download the model again"
            )


def _joined_sizes(
    architecture: Architecture, held: Mapping[str, TensorFact]
) -> dict[str, list[int]]:
    """Return the sizes of the tensors that transformers joins, by the joined name."""
    sizes: dict[str, list[int]] = {}
    for name, fact in held.items():
        target, is_converted = architecture.sources[name]
        if is_converted:
            sizes.setdefault(target, []).append(math.prod(fact.shape))
    return sizes


def _left_out(
    folder: Path, architecture: Architecture, held: Iterable[str]
) -> list[str]:
    """Return notes on tensors that no engine reads. Raises UserError for others."""
    unexpected = [
        name for name in held if architecture.sources[name][0] not in architecture.state
    ]
    tables = [name for name in unexpected if _TABLES.search(name)]
    ignored = [
        name
        for name in unexpected
        if name not in tables and _matches(architecture.ignored, name)
    ]
    unknown = [name for name in unexpected if name not in {*tables, *ignored}]
    if unknown:
        raise UserError(
            f"{folder}: its weights hold {unknown[0]}{_and_more(unknown)}, which the"
            f" model of its {CONFIG} has no place for, so a run would be of another"
            " model; merge adapters into the weights, or remove these tensors"
        )
    return [
        f"{names[0]}{_and_more(names)} in its weights {what} and is left out"
        for names, what in (
            (tables, "is a table that the model computes"),
            (ignored, "is no part of the causal language model"),
        )
        if names
    ]


def _refuse_unread_names(folder: Path, architecture: Architecture) -> None:
    """Raise UserError where embedding and head have names that a run does not read."""
    for names, what in ((EMBEDDING_NAMES, "embedding"), ((HEAD,), "output head")):
        if not any(name in architecture.state for name in names):
            raise UserError(
                f"{folder}: its {what} is not called {names[0]}, the only name by which"
                " a run finds it; take a model of the Llama, Qwen or Mistral kind"
            )


def _refuse_other_head(folder: Path, held: Mapping[str, TensorFact]) -> None:
    embedding = next(name for name in EMBEDDING_NAMES if name in held)
    row = _first_other_row(held[HEAD].file, held[embedding].file, embedding)
    if row is not None:
        raise UserError(
            f"{folder}: tie_word_embeddings is true, but {HEAD} in its weights is no"
            f" copy of {embedding} (first in row {row}); set tie_word_embeddings to"
            f" false in {CONFIG} if the head was trained apart, or remove {HEAD}"
        )
    if not read_facts(folder).tied:
        raise UserError(
            f"{folder}: {CONFIG} does not set tie_word_embeddings, which is true for"
            f" its model_type, and its weights hold {HEAD} too; set it in {CONFIG}"
        )


def _first_other_row(head_file: Path, embedding_file: Path, name: str) -> int | None:
    """Return the first row in which head and embedding differ; None where none does."""
    import torch
    from safetensors import safe_open

    with (
        safe_open(head_file, framework="pt") as head_shard,
        safe_open(embedding_file, framework="pt") as embedding_shard,
    ):
        head = head_shard.get_slice(HEAD)
        embedding = embedding_shard.get_slice(name)
        for start in range(0, head.get_shape()[0], _COMPARED_ROWS):
            rows = slice(start, start + _COMPARED_ROWS)
            differs = (head[rows] != embedding[rows]).any(1)
            if bool(differs.any()):
                return start + int(torch.nonzero(differs)[0])
    return None


def _matches(patterns: Iterable[str], name: str) -> bool:
    return any(re.search(pattern, name) for pattern in patterns)


def _and_more(names: list[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""


__all__ = [
    "check_names",
    "check_tensors",
    "config_of_text_model",
    "joins_weights",
    "linear_shapes",
    "load_causal_lm",
    "loaded_config",
    "stored_names",
    "weight_shapes",
]
