"""Give each source file that a page links to a page of code, so links never leave.

Pages link to code as `[loop.py:StepLoop](../topd_ray/driver/loop.py)`. That works in a
checkout and on a code host as it is. This hook of mkdocs adds a page for the file and
points the link at the line of the name. A missing file or name fails the build.
"""

import ast
import os
import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
LINK = re.compile(r"\[(?P<text>[^\]]+)\]\((?P<target>\.\./[^)#\s]+)\)")
CODE_LINK = re.compile(
    r'href="(?P<target>[^"#]*code/(?P<path>[^"#]+\.py)\.html)"'
    r"(?P<rest>><code>[^<]+\.py:(?P<name>[\w.]+)</code>)"
)
_LANGUAGES = {".py": "python", ".yaml": "yaml", ".sh": "bash", ".toml": "toml"}


def repository_links(markdown: str) -> list[tuple[str, str]]:
    """Return (text, path below the root) of each link that leaves docs/."""
    return [
        (link["text"], link["target"].removeprefix("../"))
        for link in LINK.finditer(markdown)
    ]


def line_of(source: str, name: str) -> int | None:
    """Return the line where `name` (or `Class.name`) is defined in Python source."""
    body: list[ast.stmt] = ast.parse(source).body
    line = None
    for part in name.split("."):
        node = next((node for node in body if part in _defined(node)), None)
        if node is None:
            return None
        line = node.lineno
        body = getattr(node, "body", [])
    return line


def _defined(node: ast.stmt) -> list[str]:
    """Return the names that a statement defines."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.Assign):
        return [target.id for target in node.targets if isinstance(target, ast.Name)]
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return [node.target.id]
    return []


def on_files(files: Any, config: Any) -> Any:
    """Add a page for each file of the repository that a page links to."""
    linked = set()
    for page in sorted(DOCS.glob("*.md")):
        linked |= {path for _, path in repository_links(page.read_text("utf-8"))}
    for path in sorted(linked):
        if not (ROOT / path).is_file():
            raise PluginError(f"docs/ links to {path}, which is no file")
        files.append(File.generated(config, _page_of(path), content=_code(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Point each link into the repository at the page of its file."""

    def rewritten(link: re.Match[str]) -> str:
        path = link["target"].removeprefix("../")
        here = Path(page.file.src_uri).parent
        return f"[{link['text']}]({os.path.relpath(_page_of(path), here)})"

    return LINK.sub(rewritten, markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Point each link with a name in its text at the line of that name.

    Only here: mkdocs does not see the anchors inside highlighted code, and would warn.
    """

    def rewritten(link: re.Match[str]) -> str:
        line = line_of((ROOT / link["path"]).read_text("utf-8"), link["name"])
        if line is None:
            raise PluginError(f"docs/ names {link['name']}, not in {link['path']}")
        return f'href="{link["target"]}#__codelineno-0-{line}"{link["rest"]}'

    return CODE_LINK.sub(rewritten, html)


def _page_of(path: str) -> str:
    return f"code/{path}" if path.endswith(".md") else f"code/{path}.md"


def _code(path: str) -> str:
    text = (ROOT / path).read_text("utf-8")
    if path.endswith(".md"):
        return _without_links(text)
    language = _LANGUAGES.get(Path(path).suffix, "text")
    return f'# `{path}`\n\n````{language} linenums="1"\n{text}````\n'


def _without_links(text: str) -> str:
    """Return Markdown whose relative links are plain text: their files are not here."""
    return re.sub(r"!?\[([^\]]*)\]\((?!https?:)[^)]*\)", r"\1", text)
