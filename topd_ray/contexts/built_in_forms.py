r"""The built-in forms: what a teacher is asked, for mathematics and for code.

A form leaves the gaps {problem}, {reference} and {attempt} open. Each form ends as a
student's prompt of its kind does: answer in \boxed{}, or Python and nothing else. The
forms of both kinds are built from one frame, so that they differ only in their words.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wording:
    """The words in which the forms of one kind of problem differ from another's."""

    noun: str
    """What an answer is called: a solution, a program."""
    purpose: str
    """Follows the noun: "a solution" of what, "a program" for what."""
    answer: str
    """The request to answer, before "with an approach of your own"."""
    repair: str
    """How to rewrite an attempt without a reference."""
    repair_by_reference: str
    """How to rewrite an attempt beside a reference."""
    ending: str
    """The last line of a student's prompt of this kind."""


_MATH = _Wording(
    noun="solution",
    purpose="of this problem",
    answer="solve the problem",
    repair="""\
Rewrite the initial solution into a correct one. Keep how it is built and the path of its \
reasoning; go through it step by step, find what is wrong in its calculations or its logic, and \
repair that. Intermediate results that are right stay as they are. Output only the rewritten \
solution: no remarks on the initial one, and none on what you changed.""",
    repair_by_reference="""\
First go through the reference solution until you see why it holds. Then rewrite the initial \
solution so that it agrees with the reference, and keep of its structure and its style whatever is \
of use. Output only the rewritten solution: no mention of the reference, no remarks on the initial \
solution, and none on what you changed.""",
    ending=r"Reason step by step, and put the final answer in \boxed{}.",
)

_CODE = _Wording(
    noun="program",
    purpose="for this task",
    answer="write a program",
    repair="""\
Rewrite the initial program into a correct one. Repair what is wrong in it and whatever it misses \
in edge cases; keep the parts that are of use.""",
    repair_by_reference="""\
First go through the reference program until you see why it is correct. Then rewrite the initial \
program so that it is correct as well, in edge cases too; keep the parts that are of use.""",
    ending="Output only the Python code, with no text around it.",
)


def _reference_form(words: _Wording) -> str:
    return f"""\
{_shown_reference(words)}

Read it until you understand why it works. Then {words.answer} with an approach of your own, as \
if you had never seen the reference.

{words.ending}"""


def _refine_form(words: _Wording) -> str:
    return f"""\
{{problem}}

Here is an initial {words.noun} {words.purpose}. {_shown_attempt(words)}

{words.repair}

{words.ending}"""


def _refine_reference_form(words: _Wording) -> str:
    return f"""\
{_shown_reference(words)}

And here is an initial {words.noun}. {_shown_attempt(words)}

{words.repair_by_reference}

{words.ending}"""


def _shown_reference(words: _Wording) -> str:
    noun = words.noun
    return f"""\
{{problem}}

For you alone, here is a {noun} {words.purpose} that is known to be correct.

--- Reference {noun} ---
{{reference}}
--- End of the reference {noun} ---"""


def _shown_attempt(words: _Wording) -> str:
    noun = words.noun
    return f"""\
It may be wrong, and it may break off.

--- Initial {noun} ---
{{attempt}}
--- End of the initial {noun} ---"""


def _forms(words: _Wording) -> dict[str, str]:
    return {
        "reference": _reference_form(words),
        "refine": _refine_form(words),
        "refine_reference": _refine_reference_form(words),
    }


MATH = _forms(_MATH)
CODE = _forms(_CODE)
