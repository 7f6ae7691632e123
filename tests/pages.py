"""The documents, and what they name: files, functions, fields, commands."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = (
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "cluster" / "README.md",
    *sorted(DOCS.glob("*.md")),
)
SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")
BLOCK = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\[([^\]]+)\]\(([^)\s]+)\)")


def text_of(page: Path) -> str:
    """Return the Markdown of a page."""
    return page.read_text(encoding="utf-8")


def spans(markdown: str) -> list[str]:
    """Return the `code spans` outside of code blocks, each on one line."""
    prose = BLOCK.sub("", markdown)
    return [" ".join(span.split()) for span in SPAN.findall(prose)]


def block_lines(markdown: str) -> list[str]:
    """Return the lines of all code blocks."""
    return [line for block in BLOCK.findall(markdown) for line in block.splitlines()]


def links(markdown: str) -> list[tuple[str, str]]:
    """Return (text, target) of each link outside of code blocks."""
    return LINK.findall(BLOCK.sub("", markdown))


def link_texts(markdown: str) -> set[str]:
    """Return the code spans that are texts of links: their targets say which file."""
    return {span for text, _ in links(markdown) for span in SPAN.findall(text)}


def load_script(path: Path) -> ModuleType:
    """Return a script of docs/ as a module; docs/ is no package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def field_exists(model: type[BaseModel], path: str) -> bool:
    """Whether `section.field` (of any depth) is a field of the schema."""
    sections = [model]
    for part in path.split("."):
        annotations = [
            section.model_fields[part].annotation
            for section in sections
            if part in section.model_fields
        ]
        if not annotations:
            return False
        sections = [inner for one in annotations for inner in _sections(one)]
    return True


def _sections(annotation: Any) -> list[type[BaseModel]]:
    if get_origin(annotation) in (Annotated, Union, UnionType):
        return [inner for part in get_args(annotation) for inner in _sections(part)]
    is_section = isinstance(annotation, type) and issubclass(annotation, BaseModel)
    return [annotation] if is_section else []


def python_blocks(markdown: str) -> list[str]:
    """Return the Python of every block that is marked as such, in order."""
    return re.findall(r"^```python\n(.*?)^```", markdown, re.DOTALL | re.MULTILINE)
