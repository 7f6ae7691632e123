"""Forms: every gap once, filled in one pass; a file of forms that would misbehave is
refused.
"""

import re
import zlib
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from topd_ray.contexts import load_forms, render
from topd_ray.errors import UserError

GAPS = {
    "reference": ["problem", "reference"],
    "refine": ["problem", "attempt"],
    "refine_reference": ["problem", "reference", "attempt"],
}
OWN = {key: " ".join(f"{{{gap}}}" for gap in gaps) for key, gaps in GAPS.items()}


@pytest.mark.parametrize("name", ["math", "code"])
@pytest.mark.parametrize("context", GAPS)
def test_a_form_has_each_of_its_gaps_once_and_no_other(name: str, context: str) -> None:
    form = getattr(load_forms(name), context)
    assert sorted(re.findall(r"\{(\w+)\}", form)) == sorted(GAPS[context])


@pytest.mark.parametrize(
    ("name", "context", "checksum"),
    [
        ("math", "reference", 3143156794),
        ("math", "refine", 3191789584),
        ("math", "refine_reference", 1720239497),
        ("code", "reference", 208993295),
        ("code", "refine", 355615306),
        ("code", "refine_reference", 2088994155),
    ],
)
def test_a_built_in_form_changes_on_purpose_only(
    name: str, context: str, checksum: int
) -> None:
    form: str = getattr(load_forms(name), context)
    assert zlib.crc32(form.encode()) == checksum


@pytest.mark.parametrize("context", GAPS)
def test_forms_end_as_a_students_prompt_does(context: str) -> None:
    math, code = (
        getattr(load_forms(name), context).splitlines()[-1] for name in ("math", "code")
    )
    assert "step by step" in math
    assert r"\boxed{}" in math
    assert "only" in code
    assert "Python" in code


def test_what_the_texts_hold_is_never_taken_for_a_gap() -> None:
    form = r"{problem} | {reference} | {attempt} | \boxed{}"
    filled = render(
        form,
        problem="{reference} {x}",
        reference="{attempt} {{}}",
        attempt=r"\frac{1}{2} \1 {",
    )
    assert filled == r"{reference} {x} | {attempt} {{}} | \frac{1}{2} \1 { | \boxed{}"


@given(problem=st.text(), attempt=st.text())
def test_texts_come_through_unchanged(problem: str, attempt: str) -> None:
    assert render("a {problem} b {attempt} c", problem=problem, attempt=attempt) == (
        "a " + problem + " b " + attempt + " c"
    )


def test_forms_of_ones_own_are_read_from_yaml(tmp_path: Path) -> None:
    path = tmp_path / "forms.yaml"
    path.write_text(
        yaml.safe_dump(OWN | {"refine": r"{problem} \boxed{} {attempt} {}"})
    )
    forms = load_forms(str(path))
    assert forms.refine == r"{problem} \boxed{} {attempt} {}"
    assert forms.reference == OWN["reference"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1], "expected the keys reference, refine, refine_reference, found list"),
        (OWN | {"refined": "x"}, "'refined'"),
        (
            {"refine": OWN["refine"]},
            "expected the keys reference, refine, refine_reference",
        ),
        (OWN | {"refine": 5}, "refine: expected text, found 5"),
        (
            OWN | {"refine": "{problem}"},
            "refine: expected each of {attempt}, {problem} once",
        ),
        (OWN | {"refine": "none"}, "found none"),
        (
            OWN | {"refine": "{problem} {attempt} {attempt}"},
            "found {attempt}, {attempt}",
        ),
        (
            OWN | {"refine": "{problem} {attempt} {reference}"},
            "found {attempt}, {problem}, {ref",
        ),
        (
            OWN | {"reference": "{problem} {reference} {answer}"},
            "found {answer}, {problem}",
        ),
    ],
)
def test_a_form_with_a_gap_too_many_or_too_few_is_refused(
    values: Any, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "forms.yaml"
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(UserError) as caught:
        load_forms(str(path))
    assert str(caught.value).startswith(f"prompts.forms={path}")
    assert message in str(caught.value)


def test_a_missing_or_broken_file_of_forms_says_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"prompts\.forms=maths: no such file; expected math, code"
    ):
        load_forms("maths")
    (tmp_path / "forms.yaml").write_text("a: [")
    with pytest.raises(UserError, match="not readable as YAML"):
        load_forms(str(tmp_path / "forms.yaml"))
