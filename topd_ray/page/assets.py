"""The page's HTML: a template, its style, and its modules joined into one script."""

import base64
import hashlib
import json
import re
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

MODULES = (
    "dom",
    "data",
    "tokens",
    "charts",
    "takeovers",
    "overview",
    "figures",
    "rows",
    "list",
    "filters",
    "plan",
    "rollout",
    "reader",
    "time",
    "compare",
    "main",
)
"""Modules of static/ in the order of their imports."""

_IMPORT = re.compile(r'^import (\{[^}]*\}) from "\./([a-z]+)\.js";$', re.MULTILINE)
_EXPORT = re.compile(
    r"^export (?=(?:async )?(?:function|const|class) (\w+))", re.MULTILINE
)
_ESCAPES = {
    "<": "\\u003c",
    ">": "\\u003e",
    "&": "\\u0026",
    "\u2028": "\\u2028",
    "\u2029": "\\u2029",
}
"""Characters that could end a script element, or a line of JavaScript, inside JSON."""


def page_html(
    *, title: str, values: Any, blocks: dict[str, bytes], is_live: bool
) -> str:
    """Return the whole page.

    Args:
        title: name of the run.
        values: the overview, plain values for JSON.
        blocks: compressed blocks by name, such as `list/12`.
        is_live: whether the page follows a server that has the blocks.
    """
    script = _script()
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(
        _static("page.html.jinja")
    )
    return template.render(
        title=title,
        style=Markup(_static("page.css")),
        script=Markup(script),
        policy=_policy(script, is_live=is_live),
        values=json_in_html(values),
        blocks=[
            (name, base64.b64encode(block).decode("ascii"))
            for name, block in blocks.items()
        ],
        is_live=is_live,
    )


def json_in_html(values: Any) -> Markup:
    """Return JSON in which no text can end the script element around it."""
    text = json.dumps(values, separators=(",", ":"), allow_nan=False)
    for character, escape in _ESCAPES.items():
        text = text.replace(character, escape)
    return Markup(text)


def _policy(script: str, *, is_live: bool) -> str:
    """Return the content security policy: this script alone, and no other address."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    rules = [
        "default-src 'none'",
        f"script-src 'sha256-{digest}'",
        "style-src 'unsafe-inline'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
    ]
    if is_live:
        rules.append("connect-src 'self'")
    return "; ".join(rules)


@cache
def _script() -> str:
    """Return the modules as one: a page on disk cannot import another file.

    Each becomes a function that returns what it exports, so that two of them may use
    the same name.
    """
    return "\n" + "\n".join(map(_as_function, MODULES))


def _as_function(name: str) -> str:
    source = _static(f"{name}.js")
    exported = ", ".join(_EXPORT.findall(source))
    body = _EXPORT.sub("", _IMPORT.sub(r"const \1 = module_\2;", source))
    if name == MODULES[-1]:
        return body
    return f"const module_{name} = (() => {{\n{body}\nreturn {{ {exported} }};\n}})();"


@cache
def _static(name: str) -> str:
    return (files("topd_ray.page") / "static" / name).read_text(encoding="utf-8")


__all__ = ["MODULES", "json_in_html", "page_html"]
