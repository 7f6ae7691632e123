"""The page's parts: nothing in the data ends a script, nothing is left out."""

import re
import tomllib
from fnmatch import fnmatch
from importlib.resources import files
from pathlib import Path

from topd_ray.page.assets import MODULES, json_in_html, page_html

STATIC = Path(str(files("topd_ray.page"))) / "static"
ROOT = Path(__file__).parents[3]


def test_json_inside_a_page_cannot_end_its_element() -> None:
    hostile = "</script><!--\u2028\u2029&amp;]]>"
    written = json_in_html({"text": hostile})
    assert not re.search("[<>&\u2028\u2029]", written)
    assert eval(str(written)) == {"text": hostile}


def test_a_title_is_escaped() -> None:
    page = page_html(title="<b>&", values={}, blocks={}, is_live=False)
    assert "<title>&lt;b&gt;&amp; · topd_ray</title>" in page


def test_modules_are_joined_after_what_they_import() -> None:
    for place, name in enumerate(MODULES):
        source = (STATIC / f"{name}.js").read_text(encoding="utf-8")
        imported = re.findall(r'from "\./(\w+)\.js"', source)
        assert set(imported) <= set(MODULES[:place]), name
    assert {path.stem for path in STATIC.glob("*.js")} == set(MODULES)


def test_no_import_or_export_is_left_in_the_joined_script() -> None:
    page = page_html(title="run", values={}, blocks={}, is_live=False)
    assert not re.search(r"^(import|export) ", page, re.MULTILINE)


def test_the_page_names_no_other_address() -> None:
    page = page_html(title="run", values={}, blocks={"list/1": b"x"}, is_live=False)
    addresses = set(re.findall(r"https?://[^\"' ]+", page))
    assert addresses == {"http://www.w3.org/2000/svg"}  # the name of a format
    assert "connect-src" not in page
    live = page_html(title="run", values={}, blocks={}, is_live=True)
    assert "connect-src &#39;self&#39;" in live


def test_every_part_is_installed_with_the_package() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = settings["tool"]["setuptools"]["package-data"]["topd_ray"]
    for path in STATIC.iterdir():
        name = f"page/static/{path.name}"
        assert any(fnmatch(name, pattern) for pattern in patterns), name
