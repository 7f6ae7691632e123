"""A teacher reads the student's prompt or its own, by `teacher.template`."""

import shutil
from pathlib import Path

from tests.runs import INLINE, Setting, losses, topd
from tests.tiny import CHAT_TEMPLATE

SHORT = (*INLINE, "run.steps=1", "evaluation.path=null", "prompts.max_form_tokens=8")


def test_the_teacher_scores_under_the_template_that_the_config_names(
    setting: Setting, teacher_folder: Path, tmp_path: Path
) -> None:
    plain = setting.train("template-same", *SHORT)
    teacher = shutil.copytree(teacher_folder, tmp_path / "teacher")
    (teacher / "chat_template.jinja").write_text("w5 w6 " + CHAT_TEMPLATE)
    other = f"teacher.model={teacher}"
    refused = topd("check", setting.file, *SHORT, other)
    assert refused.code == 2
    assert (
        "make other tokens of it, from token 0 on: '<|im_start|> user" in refused.output
    )
    # The student's ids are what an equal template makes.
    student = setting.train(
        "template-student", *SHORT, other, "teacher.template=student"
    )
    assert losses(student) == losses(plain)
    own = setting.train("template-own", *SHORT, other, "teacher.template=own")
    assert losses(own) != losses(plain)
