"""YAML file + dotted overrides -> Config; every mistake becomes one readable
UserError.
"""

from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from topd_ray.config.schema import Config
from topd_ray.errors import UserError

OmegaConf.clear_resolver("oc.env")  # no environment variable changes a number


def load_config(path: Path, overrides: list[str] | None = None) -> Config:
    """Read `path`, apply `section.key=value` overrides, validate. Raises UserError."""
    return parse_config(
        _with_overrides(read_yaml(path), overrides or []), source=str(path)
    )


def parse_config(values: dict[str, Any], *, source: str) -> Config:
    """Validate plain values; `source` names them in the error."""
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{source}: {explain(error)}") from None


def dump_config(config: Config) -> str:
    """The resolved config as YAML that `load_config` reads back to an equal one."""
    return yaml.dump(config.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False)


class _Dumper(yaml.SafeDumper):
    """Quotes text such as 1e5: no number to PyYAML, but one to the loader."""


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
    """Plain values of a YAML file of sections, over those that it extends. Raises
    UserError.

    `extends: other.yaml` at the top (beside this file, unless it is a whole path)
    merges this file into that one, key by key, lists whole; that one may extend
    another.
    """
    try:
        values = OmegaConf.to_container(
            _merged(path, ()), resolve=True, throw_on_missing=True
        )
    except OmegaConfBaseException as error:
        raise UserError(f"{path}: not readable as YAML: {_one_line(error)}") from None
    return cast("dict[str, Any]", values)


def _merged(path: Path, extended_by: tuple[Path, ...]) -> DictConfig:
    """The file over what it extends; `extended_by` leads from the first file to this
    one.
    """
    if any(path.resolve() == earlier.resolve() for earlier in extended_by):
        chain = " -> ".join(map(str, (*extended_by, path)))
        raise UserError(
            f"extends goes round in a circle: {chain}; end it in a file without one"
        )
    if not path.is_file():
        asked = f", which {extended_by[-1]} extends" if extended_by else ""
        raise UserError(
            f"{path}{asked}: no such config file; configs/ holds ones to start from"
        )
    own = _load_one(path)
    if "extends" not in own:
        return own
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
    """Every problem of a refused config in one line: field, what is wrong, value
    seen.
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
