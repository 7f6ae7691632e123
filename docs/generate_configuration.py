"""Write docs/configuration.md from the schema: every field, type, default, meaning.

`make docs` runs this file; a test compares the committed page with `page()`.
"""

import types
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from textwrap import fill
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from topd_ray.config import METHODS, Config
from topd_ray.config.changes import may_change

PAGE = Path(__file__).with_name("configuration.md")
WIDTH = 100
_HEAD = """\
# Configuration

<!-- `make docs` writes this page from topd_ray/config/; changes made here are lost. -->

A run is one YAML file, checked by `topd check` before anything starts. Three rules
hold everywhere:

- A key that the schema does not know is an error, and so is a value outside its range.
  The message names the field, the value and the way out.
- `section.key=value` after the file on the command line overrides the file:
  `topd train configs/local-toy.yaml learner.lr=5e-4 run.name=mine`.
- `extends: other.yaml` merges a file over another one, key by key; lists are replaced
  whole. The other file's path starts at the folder of the file that extends it. All
  other relative paths start at the folder from which `topd` is started.

Only `prompts.path`, `learner.model` and `teacher.model` (unless the student is its own
teacher) have no default. With nothing else in it, a config is TOPD with the numbers of
the paper. The files in `configs/` are the place to start from. "Paper" is arXiv
2606.00305; D1 to D9 are the [decisions](decisions.md).
"""
_KINDS = {
    int: "integer",
    float: "number",
    str: "text",
    bool: "true or false",
    date: "date",
}


def page() -> str:
    """Return the page as Markdown."""
    blocks = [_HEAD, _methods()]
    for path, model in _sections(Config):
        blocks.append(_section(path, model))
    return "\n".join(blocks)


def _methods() -> str:
    """Return the table of what `run.method` sets where the file leaves it open."""
    lines = [
        "## What a method sets",
        "",
        "`run.method` fills in these fields where the file leaves them open; see"
        " [objectives](objectives.md).",
        "",
        "| `run.method` | sets |",
        "|---|---|",
    ]
    for method, sections in METHODS.items():
        values = [
            f"`{section}.{field}: {_plain(value)}`"
            for section, fields in sections.items()
            for field, value in fields.items()
        ]
        lines.append(f"| `{method}` | {', '.join(values)} |")
    return "\n".join([*lines, ""])


def _sections(
    model: type[BaseModel],
) -> Iterator[tuple[Sequence[str], type[BaseModel]]]:
    """Yield each section once, with every path at which it stands."""
    paths_of: dict[type[BaseModel], list[str]] = {}
    _collect(model, "", paths_of)
    for section, paths in paths_of.items():
        yield paths, section


def _collect(
    model: type[BaseModel], path: str, paths: dict[type[BaseModel], list[str]]
) -> None:
    """Add the sections below `model`, which stands at `path`, to `paths`."""
    for name, field in model.model_fields.items():
        inner = _inner_section(field.annotation)
        if inner is not None:
            below = f"{path}.{name}" if path else name
            paths.setdefault(inner, []).append(below)
            _collect(inner, below, paths)


def _inner_section(annotation: Any) -> type[BaseModel] | None:
    """Return the section that a field holds, or may hold."""
    for part in (annotation, *get_args(annotation)):
        if isinstance(part, type) and issubclass(part, BaseModel):
            return part
    return None


def _section(paths: Sequence[str], model: type[BaseModel]) -> str:
    title = ", ".join(f"`{path}`" for path in paths)
    intro = " ".join((model.__doc__ or "").split())
    lines = [f"## {title}", "", fill(intro, WIDTH), ""]
    for name, field in model.model_fields.items():
        lines.append(_entry(name, field, paths[0]))
    return "\n".join([*lines, ""])


def _entry(name: str, field: FieldInfo, path: str) -> str:
    """Return one field as a list item: name, type, default, what it means."""
    what = " ".join((field.description or "").split())
    if not what:
        what = f"See `{path}.{name}` below."
    kind = _type(field.annotation, tuple(field.metadata))
    mark = " *May change on resume.*" if may_change(f"{path}.{name}") else ""
    return fill(
        f"- **`{name}`** ({kind}; {_default(field)}). {what}{mark}",
        WIDTH,
        subsequent_indent="  ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _type(annotation: Any, bounds: Sequence[Any] = ()) -> str:
    """Return a type in words, with its range."""
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *more = get_args(annotation)
        return _type(inner, [*bounds, *_flat(more)])
    if origin is Literal:
        *first, last = [f"`{_plain(value)}`" for value in get_args(annotation)]
        return f"{', '.join(first)} or {last}" if first else last
    if origin in (Union, types.UnionType):
        parts = [part for part in get_args(annotation) if part is not type(None)]
        return " or ".join(_type(part, bounds) for part in parts)
    if origin is tuple and get_args(annotation)[-1] is Ellipsis:
        return f"list of {_type(get_args(annotation)[0])}"
    if origin is tuple:
        return f"list of {len(get_args(annotation))} numbers"
    if origin is dict:
        return "mapping"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    return _KINDS[annotation] + _range(bounds)


def _flat(metadata: Sequence[Any]) -> list[Any]:
    """Return bounds, also those that pydantic keeps inside a `Field`."""
    flat: list[Any] = []
    for item in metadata:
        flat.extend(item.metadata if isinstance(item, FieldInfo) else [item])
    return flat


def _range(bounds: Sequence[Any]) -> str:
    words = []
    for bound in bounds:
        if isinstance(bound, Gt):
            words.append(f"> {bound.gt:g}")
        elif isinstance(bound, Ge):
            words.append(f">= {bound.ge:g}")
        elif isinstance(bound, Lt):
            words.append(f"< {bound.lt:g}")
        elif isinstance(bound, Le):
            words.append(f"<= {bound.le:g}")
        elif isinstance(bound, MinLen):
            continue
        elif pattern := getattr(bound, "pattern", None):
            words.append(f"matching `{pattern}`")
    return f" {' and '.join(words)}" if words else ""


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "every field has a default"
    return "not set" if value is None else f"default `{_plain(value)}`"


def _plain(value: Any) -> str:
    """Return a value as YAML spells it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(map(_plain, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE.relative_to(Path.cwd())}")
