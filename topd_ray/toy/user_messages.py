"""Write user messages under the prompt forms of the toy world, in its few words.

A form is a text with the placeholders {problem}, {reference} and {attempt}. They are
replaced as plain strings, since a solution contains braces itself.
"""

from typing import Literal

Form = Literal["plain", "reference", "refine", "refine_reference"]

FORMS_FILE = "forms.yaml"
FORMS: dict[Form, str] = {
    "reference": (
        "{problem} here is a reference solution : {reference} . "
        "solve the problem in your own words ."
    ),
    "refine": (
        "{problem} here is an initial solution : {attempt} . "
        "rewrite it so that it is correct and keep what is right ."
    ),
    "refine_reference": (
        "{problem} here is a reference solution : {reference} . "
        "here is an initial solution : {attempt} . "
        "rewrite it so that it is correct and keep what is right ."
    ),
}
FORM_WORDS = (
    "here a an reference initial solution : . solve problem in your own words rewrite"
    " it so that correct and keep right"
)
"""Words of the forms that questions and solutions do not have."""


def user_message(
    form: Form, problem: str, *, reference: str = "", attempt: str = ""
) -> str:
    """Return the user's message under a form; the plain form is the problem itself."""
    if form == "plain":
        return problem
    return (
        FORMS[form]
        .replace("{problem}", problem)
        .replace("{reference}", reference)
        .replace("{attempt}", attempt)
    )
