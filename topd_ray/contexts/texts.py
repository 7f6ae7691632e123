r"""The forms for mathematics and for code.

Each ends as a student's prompt of its kind does: answer in \boxed{}, or Python and
nothing else.
"""

_SOLVE = r"Reason step by step, and put the final answer in \boxed{}."
_PROGRAM = "Output only the Python code, with no text around it."

_KEEP_AND_REPAIR = """\
Rewrite the initial solution into a correct one. Keep how it is built and the path of its \
reasoning; go through it step by step, find what is wrong in its calculations or its logic, and \
repair that. Intermediate results that are right stay as they are. Output only the rewritten \
solution: no remarks on the initial one, and none on what you changed."""

_FOLLOW_AND_REPAIR = """\
First go through the reference solution until you see why it holds. Then rewrite the initial \
solution so that it agrees with the reference, and keep of its structure and its style whatever is \
of use. Output only the rewritten solution: no mention of the reference, no remarks on the initial \
solution, and none on what you changed."""

_REPAIR_CODE = """\
Rewrite the initial program into a correct one. Repair what is wrong in it and whatever it misses \
in edge cases; keep the parts that are of use."""

_FOLLOW_AND_REPAIR_CODE = """\
First go through the reference program until you see why it is correct. Then rewrite the initial \
program so that it is correct as well, in edge cases too; keep the parts that are of use."""

MATH = {
    "reference": (
        f"""\
{{problem}}

For you alone, here is a solution of this problem that is known to be correct.

--- Reference solution ---
{{reference}}
--- End of the reference solution ---

Read it until you understand why it works. Then solve the problem with an approach of your own, as \
if you had never seen the reference.

{_SOLVE}"""
    ),
    "refine": (
        f"""\
{{problem}}

Here is an initial solution of this problem. It may be wrong, and it may break off.

--- Initial solution ---
{{attempt}}
--- End of the initial solution ---

{_KEEP_AND_REPAIR}

{_SOLVE}"""
    ),
    "refine_reference": (
        f"""\
{{problem}}

For you alone, here is a solution of this problem that is known to be correct.

--- Reference solution ---
{{reference}}
--- End of the reference solution ---

And here is an initial solution. It may be wrong, and it may break off.

--- Initial solution ---
{{attempt}}
--- End of the initial solution ---

{_FOLLOW_AND_REPAIR}

{_SOLVE}"""
    ),
}

CODE = {
    "reference": (
        f"""\
{{problem}}

For you alone, here is a program for this task that is known to be correct.

--- Reference program ---
{{reference}}
--- End of the reference program ---

Read it until you understand why it works. Then write a program with an approach of your own, as \
if you had never seen the reference.

{_PROGRAM}"""
    ),
    "refine": (
        f"""\
{{problem}}

Here is an initial program for this task. It may be wrong, and it may break off.

--- Initial program ---
{{attempt}}
--- End of the initial program ---

{_REPAIR_CODE}

{_PROGRAM}"""
    ),
    "refine_reference": (
        f"""\
{{problem}}

For you alone, here is a program for this task that is known to be correct.

--- Reference program ---
{{reference}}
--- End of the reference program ---

And here is an initial program. It may be wrong, and it may break off.

--- Initial program ---
{{attempt}}
--- End of the initial program ---

{_FOLLOW_AND_REPAIR_CODE}

{_PROGRAM}"""
    ),
}
