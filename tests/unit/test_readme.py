"""What the README and the pages that it leads to name is there."""

import re

from tests.pages import DOCS, ROOT, text_of

README = text_of(ROOT / "README.md")
DECISIONS = text_of(DOCS / "decisions.md")
OBJECTIVES = text_of(DOCS / "objectives.md")


def test_the_readme_is_one_page() -> None:
    lines = README.splitlines()
    assert len(lines) <= 120
    assert max(map(len, lines)) <= 100


def test_the_readme_names_the_two_commands_and_every_page() -> None:
    assert "\nmake demo" in README
    assert "\nmake test" in README
    pages = {page.name for page in DOCS.glob("*.md")}
    beside = {
        "index.md",
        "tests.md",
    }  # the README is the index; tests are CONTRIBUTING's
    assert pages - beside == set(re.findall(r"\(docs/([\w-]+\.md)\)", README))


def test_every_decision_names_code_and_tests_that_exist() -> None:
    sections = re.split(r"^## ", DECISIONS, flags=re.MULTILINE)[1:]
    decisions = {section.split(":")[0]: section for section in sections}
    assert [f"D{number}" for number in range(1, 10)] == list(decisions)[:9]
    for name in list(decisions)[:9]:
        code, test = decisions[name].split("- Code: ")[1].split("Test:")
        _check(code, "topd_ray")
        _check(test.split("\n\n")[0], "tests")


def test_every_other_gap_names_code_and_tests_that_exist() -> None:
    table = DECISIONS.split("## Other gaps")[1]
    rows = [row.split("|") for row in table.splitlines() if row.startswith("| ")][1:]
    assert len(rows) >= 12
    for row in rows:
        _check(row[4], "topd_ray")
        _check(row[5], "tests")


def _check(text: str, folder: str) -> None:
    names = re.findall(r"`([^`]+)`", text)
    assert names, text
    for name in names:
        assert (ROOT / folder / name).exists(), name


def test_every_toy_config_is_in_the_tables_of_objectives() -> None:
    named = set(re.findall(r"`([a-z0-9-]+)\.yaml`", OBJECTIVES))
    shipped = {file.stem for file in (ROOT / "configs" / "toy").glob("*.yaml")}
    assert shipped == named


def test_every_alternative_of_a_decision_has_its_config_named() -> None:
    named = set(re.findall(r"`configs/decisions/([a-z0-9-]+)\.yaml`", DECISIONS))
    shipped = {file.stem for file in (ROOT / "configs" / "decisions").glob("*.yaml")}
    assert shipped == named
