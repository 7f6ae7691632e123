"""YAML file and dotted overrides -> Config; each mistake is one readable UserError."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from topd_ray.config.schema import Config
from topd_ray.errors import UserError

# A run must not depend on the environment of the shell that started it.
OmegaConf.clear_resolver("oc.env")


def load_config(path: Path | str, overrides: Sequence[str] | None = None) -> Config:
    """Read a config file, apply overrides, and validate the result.

    Args:
        path: A YAML file; `extends:` in it names another file that it changes.
        overrides: `section.key=value`, applied in order. A value is read as YAML.

    Returns:
        The config, frozen, with every default filled in.

    Raises:
        UserError: The file cannot be read, or a field is refused. The message names the
            field, the value seen and the way out, for every field at once.

    Example:
        >>> load_config("configs/local-toy.yaml", ["run.seed=1", "learner.lr=1e-4"])
    """
    path = Path(path)
    values = _with_overrides(read_yaml(path), list(overrides or []))
    return parse_config(values, source=str(path))


def parse_config(values: dict[str, Any], *, source: str) -> Config:
    """Validate plain values. Raises UserError, in which `source` names them."""
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{source}: {explain(error)}") from None


def dump_config(config: Config) -> str:
    """Return the resolved config as YAML that `load_config` reads back as equal."""
    # In the order of the schema, which a reader knows from the configs.
    return yaml.dump(config.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False)


class _Dumper(yaml.SafeDumper):
    """Writes YAML with quotes around text that reads as a number.

    1e5 is text to PyYAML, which would leave it bare, and a number to OmegaConf.
    """


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=_quote(text))


def _quote(text: str) -> str | None:
    try:
        float(text)
    except ValueError:
        return None
    return "'"


_Dumper.add_representer(str, _represent_text)


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the plain values of a YAML file, merged over the file that it extends.

    `extends: other.yaml` names a file beside this one, or an absolute path. Keys are
    merged one by one and lists are replaced whole. The other file may extend a third.
    Raises UserError for a file that is missing, unreadable, or extends itself.
    """
    try:
        values = OmegaConf.to_container(
            _merged(path, ()), resolve=True, throw_on_missing=True
        )
    except OmegaConfBaseException as error:
        raise UserError(f"{path}: not readable as YAML: {_one_line(error)}") from None
    return cast("dict[str, Any]", values)


def _merged(path: Path, extended_by: tuple[Path, ...]) -> DictConfig:
    """Return a file merged over what it extends.

    `extended_by` holds the files that led here, from the first one on.
    """
    if any(path.resolve() == earlier.resolve() for earlier in extended_by):
        chain = " -> ".join(map(str, (*extended_by, path)))
        raise UserError(
            f"extends goes round in a circle: {chain}; end it in a file without one"
        )
    if not path.is_file():
        extended = f", which {extended_by[-1]} extends" if extended_by else ""
        raise UserError(
            f"{path}{extended}: no such config file; configs/ holds ones to start from"
        )
    own = _load_one(path)
    if "extends" not in own:
        return own
    # Taken out: it is no field of the config, and the dumped config stands alone.
    base = own.pop("extends")
    if not isinstance(base, str):
        raise UserError(
            f"{path}: extends: expected the name of another file, found {base!r}"
        )
    below = _merged(path.parent / base, (*extended_by, path))
    return cast("DictConfig", OmegaConf.merge(below, own))


def _load_one(path: Path) -> DictConfig:
    try:
        values = OmegaConf.load(path)
    except (
        yaml.YAMLError,
        UnicodeDecodeError,
        OmegaConfBaseException,
        OSError,
    ) as error:
        raise UserError(f"{path}: not readable as YAML: {_one_line(error)}") from None
    if not isinstance(values, DictConfig):
        raise UserError(
            f"{path}: expected sections such as `run:` and `learner:`, found {values!r}"
        )
    return values


def _with_overrides(values: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    for override in overrides:
        # OmegaConf reads a key without a value as null, which some fields accept.
        key, equals, _ = override.partition("=")
        if not equals or not key.strip():
            raise UserError(f"override {override!r}: expected section.key=value")
    try:
        merged = OmegaConf.merge(
            OmegaConf.create(values), OmegaConf.from_dotlist(overrides)
        )
        return cast("dict[str, Any]", OmegaConf.to_container(merged, resolve=True))
    except (OmegaConfBaseException, yaml.YAMLError, ValueError, TypeError) as error:
        raise UserError(
            f"overrides {' '.join(overrides)}: {_one_line(error)}"
        ) from None


def explain(error: ValidationError) -> str:
    """Return every problem of a refused config in one line.

    Each problem names the field, what is wrong, and the value seen.
    """
    problems = []
    for problem in error.errors():
        field = ".".join(map(str, problem["loc"]))
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            message = (
                f"unknown key (value {problem['input']!r}); check the spelling or"
                " remove it"
            )
        elif problem["type"] == "missing":
            message = "is missing; set it"
        elif problem["type"] != "value_error":
            message = f"{message}, found {problem['input']!r}"
        problems.append(f"{field}: {message}" if field else message)
    return "; ".join(problems)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
