"""What the documents name exists: files, functions, fields, commands, options."""

import re
import shlex
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer

from tests import pages
from tests.pages import DOCS, PAGES, ROOT
from topd_ray.cli import app
from topd_ray.config import Config, load_config

BY_NAME = pytest.mark.parametrize(
    "page", PAGES, ids=lambda page: str(page.relative_to(ROOT))
)
SECTIONS = "|".join(Config.model_fields)
FIELD = re.compile(rf"^((?:{SECTIONS}|engine)(?:\.[a-z_]+)+)(?:[:=] ?(.+))?$")
FILE = re.compile(r"^[\w.{},*/-]+\.(?:py|yaml|md|sh|toml|sbatch|txt)$")
RUN_FILES = re.compile(r"^(?:config|driver|forms|mine|other|base|MINE)\.yaml$")
MADE_BY_RUNS = ("runs/", "data/", "models/", "export/", "step_")
CODE_PAGES = pages.load_script(DOCS / "code_pages.py")
LONGEST_PAGE = 130
WIDEST_LINE = 102


@BY_NAME
def test_every_link_leads_to_a_file_and_to_the_name_in_its_text(page: Path) -> None:
    for text, target in pages.links(pages.text_of(page)):
        if target.startswith(("https://", "#")):
            continue
        file = (page.parent / target.partition("#")[0]).resolve()
        assert file.exists(), f"{page.name}: {target}"
        named = re.fullmatch(r"`([\w/]+\.py):([\w.]+)`", text)
        if named:
            assert str(file).endswith(f"/{named[1]}"), (
                f"{page.name}: {text} -> {target}"
            )
            line = CODE_PAGES.line_of(file.read_text("utf-8"), named[2])
            assert line is not None, f"{page.name}: {text}"


@BY_NAME
def test_every_file_in_a_code_span_exists(page: Path) -> None:
    texts = pages.link_texts(pages.text_of(page))
    for span in pages.spans(pages.text_of(page)):
        if span in texts or not FILE.match(span) or span.startswith(MADE_BY_RUNS):
            continue
        if RUN_FILES.match(span) or not _is_a_path(span):
            continue
        assert _found(span), f"{page.name}: {span}"


def _is_a_path(span: str) -> bool:
    """Whether a span names one file, and not a pattern or a name of the user's."""
    return not re.search(r"[{}*]|NAME|VERB|^[A-Z]+\.", span) or span.isupper()


def _found(name: str) -> bool:
    """Whether a file is there: by its path, below the package, or in a stage of it."""
    starts = (ROOT, ROOT / "topd_ray", ROOT / "tests", ROOT / "configs" / "toy", DOCS)
    if any((start / name).exists() for start in starts):
        return True
    beside = [*(ROOT / "cluster").glob(name), *(ROOT / "tests").glob(f"*/{name}")]
    return bool(beside)


@BY_NAME
def test_every_field_in_a_code_span_is_one_of_the_schema(page: Path) -> None:
    for span in pages.spans(pages.text_of(page)):
        field = FIELD.match(span)
        if field is None or ".py" in span or FILE.match(span):
            continue
        roots = ("rollout.", "teacher.", "") if span.startswith("engine.") else ("",)
        known = [pages.field_exists(Config, root + field[1]) for root in roots]
        assert any(known), f"{page.name}: {span}"


def _commands(page: Path) -> list[str]:
    """Return every `topd …` of a page, of its prose and of its code blocks."""
    markdown = pages.text_of(page)
    lines = pages.spans(markdown) + pages.block_lines(markdown)
    commands = [line.partition("#")[0].strip() for line in lines]
    commands = [line.removeprefix(".venv/bin/") for line in commands]
    return [line for line in commands if line.startswith("topd ")]


@cache
def _verbs() -> dict[str, Any]:
    group: Any = typer.main.get_command(app)
    verbs = dict(group.commands)
    for name, command in group.commands.items():
        inner = getattr(command, "commands", {})
        verbs |= {f"{name} {below}": part for below, part in inner.items()}
    return verbs


@BY_NAME
def test_every_topd_command_has_a_verb_and_its_options(page: Path) -> None:
    for command in _commands(page):
        words = shlex.split(command.replace("…", ""))[1:]
        if words and (words[0] == "VERB" or words[0].startswith("--")):
            continue
        two = " ".join(words[:2])
        verb = _verbs().get(two) or _verbs().get(words[0])
        assert verb is not None, f"{page.name}: {command}"
        known = {option for part in verb.params for option in part.opts}
        asked = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert asked <= known, f"{page.name}: {command}"


@BY_NAME
def test_every_override_of_a_command_is_a_field(page: Path) -> None:
    for command in _commands(page):
        for word in command.split()[2:]:
            key, equals, _ = word.partition("=")
            if equals and re.fullmatch(r"[a-z_.]+", key) and "." in key:
                assert pages.field_exists(Config, key), f"{page.name}: {word}"


@BY_NAME
def test_every_make_target_exists(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    markdown = pages.text_of(page)
    lines = pages.spans(markdown) + pages.block_lines(markdown)
    for line in lines:
        named = re.match(r"make (?:[A-Z]+=\S+ )*([a-z-]+)", line)
        if named:
            assert named[1] in targets, f"{page.name}: {line}"


@BY_NAME
def test_every_config_that_is_named_is_sound(page: Path) -> None:
    for name in set(re.findall(r"configs/[\w./-]+\.yaml", pages.text_of(page))):
        assert (ROOT / name).is_file(), f"{page.name}: {name}"
        if not name.startswith("configs/studies/"):
            load_config(ROOT / name)


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_a_page_is_at_most_two_screens_and_as_wide_as_one(page: Path) -> None:
    lines = pages.text_of(page).splitlines()
    if page.name != "configuration.md":  # a reference: one looks a field up in it
        assert len(lines) <= LONGEST_PAGE
    wide = [line for line in lines if len(line) > WIDEST_LINE]
    assert all(line.startswith("|") for line in wide), wide  # a row is one line


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    named = set(re.findall(r": ([\w-]+\.md)$", navigation, re.MULTILINE))
    assert named == {page.name for page in DOCS.glob("*.md")}


def test_the_configuration_page_is_what_the_schema_says_now() -> None:
    module = pages.load_script(DOCS / "generate_configuration.py")
    committed = (DOCS / "configuration.md").read_text(encoding="utf-8")
    assert committed == module.page(), "run `make docs` and commit the page"


def test_every_field_has_a_description() -> None:
    text = (DOCS / "configuration.md").read_text(encoding="utf-8")
    # A long list of choices fills the line; its description stands on the next.
    bare = r"^- \*\*`\w+`\*\* \([^)]*\)\. *$(?!\n  \S)"
    assert not re.search(bare, text, re.MULTILINE)
