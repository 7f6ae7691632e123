"""YAML file + dotted overrides -> Config; every mistake becomes one readable UserError."""

from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from topd_ray.config.schema import Config
from topd_ray.errors import UserError

OmegaConf.clear_resolver("oc.env")  # no environment variable changes a number


def load_config(path: Path, overrides: list[str] | None = None) -> Config:
    """Read `path`, apply `section.key=value` overrides, validate. Raises UserError."""
    return parse_config(_with_overrides(_read_yaml(path), overrides or []), source=str(path))


def parse_config(values: dict[str, Any], *, source: str) -> Config:
    """Validate plain values; `source` names them in the error."""
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{source}: {_explain(error)}") from None


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


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"{path}: no such config file; configs/ holds ones to start from")
    try:
        values = OmegaConf.to_container(OmegaConf.load(path), resolve=True, throw_on_missing=True)
    except (yaml.YAMLError, UnicodeDecodeError, OmegaConfBaseException, OSError) as error:
        raise UserError(f"{path}: not readable as YAML: {_one_line(error)}") from None
    if not isinstance(values, dict):
        raise UserError(
            f"{path}: expected sections such as `run:` and `learner:`, found {values!r}"
        )
    return cast("dict[str, Any]", values)


def _with_overrides(values: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals or not key.strip():
            raise UserError(f"override {override!r}: expected section.key=value")
    try:
        merged = OmegaConf.merge(OmegaConf.create(values), OmegaConf.from_dotlist(overrides))
        return cast("dict[str, Any]", OmegaConf.to_container(merged, resolve=True))
    except (OmegaConfBaseException, yaml.YAMLError, ValueError, TypeError) as error:
        raise UserError(f"overrides {' '.join(overrides)}: {_one_line(error)}") from None


def _explain(error: ValidationError) -> str:
    problems = []
    for problem in error.errors():
        field = ".".join(map(str, problem["loc"]))
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            message = f"unknown key (value {problem['input']!r}); check the spelling or remove it"
        elif problem["type"] == "missing":
            message = "is missing; set it"
        elif problem["type"] != "value_error":
            message = f"{message}, found {problem['input']!r}"
        problems.append(f"{field}: {message}" if field else message)
    return "; ".join(problems)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
