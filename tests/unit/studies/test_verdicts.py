"""The study of verdicts whole, on tiny models whose tokens are sums and digits."""

import json
import shutil
import string
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests import tiny
from topd_ray.errors import UserError
from topd_ray.studies import verdicts
from topd_ray.studies.config import StudyConfig
from topd_ray.studies.local_stages import LocalStages

SUMS = [f"{a}+{b}-{a + b - 7}=" for a in range(4, 8) for b in range(4, 10)]
"""All of them are 7."""
RIGHT = [f"7{end}" for end in ("", ".", ",", ";", ":", "!", "?", ")", "]", "}")]
WRONG = [text.replace("7", "8") for text in RIGHT]
NUM_WORDS = len(tiny.VOCAB) - len([*tiny.WORDS, *SUMS, *RIGHT, *WRONG])
VOCAB = [*tiny.WORDS, *SUMS, *RIGHT, *WRONG, *string.ascii_letters[:NUM_WORDS]]
"""As many words as the tiny models have."""


def sums_folder(source: Path, folder: Path) -> Path:
    """A copy of a tiny model that speaks in sums such as "3+4=" and digits."""
    shutil.copytree(source, folder)
    words = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(VOCAB)}, unk_token="<unk>")
    )
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=words,
        unk_token="<unk>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=tiny.CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)
    return folder


@pytest.fixture
def study(
    make_study, student_folder: Path, teacher_folder: Path, tmp_path: Path
) -> StudyConfig:
    student = sums_folder(student_folder, tmp_path / "student")
    teacher = sums_folder(teacher_folder, tmp_path / "teacher")
    return make_study(
        overrides=[
            f"learner.model={student}",
            f"teacher.model={teacher}",
            "rollout.samples_per_prompt=8",
        ],
        verdicts={
            "truth": "sums",
            "overrides": ["candidates.fraction=1"],
            "num_prompts": 8,
            "windows": [4, 8],
            "resamples": 50,
        },
    )


def table(folder: Path, name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((folder / "verdicts.json").read_text())[
        "tables"
    ][name]
    return rows


def test_the_report_says_what_its_windows_say(
    study: StudyConfig, tmp_path: Path
) -> None:
    verdicts.run(study)
    out = tmp_path / "out"
    windows = pq.read_table(out / "verdicts-windows.parquet").to_pylist()
    forks = [row for row in windows if row["truth"] == "fork"]
    wording = [row for row in windows if row["truth"] == "wording"]
    counts = {row["windows"]: row["number"] for row in table(out, "counts")}
    assert counts["forks"] == len(forks) >= 10
    assert counts["wording"] == len(wording) >= 10
    assert sum(counts.values()) == 2 * counts["high-loss positions"]
    assert {row["before"].split()[-1] for row in forks} <= set(SUMS)
    assert {row["token"].strip() for row in forks} <= set(WRONG)
    assert not {row["token"].strip() for row in wording} & {*SUMS, *RIGHT, *WRONG}
    rows = table(out, "auroc")
    assert len(rows) == 5 + 4 * 2
    for row in rows:
        name = row["verdict"] if row["K"] is None else f"{row['verdict']}, K {row['K']}"
        pairs = np.subtract.outer(
            [window[name] for window in forks], [window[name] for window in wording]
        )
        expected = np.mean((pairs > 0) + 0.5 * (pairs == 0))
        assert row["AUROC"]["value"] == pytest.approx(expected)
    assert (out / "verdicts-auroc.png").is_file()


def test_the_plain_distance_is_the_run_s_own(
    study: StudyConfig, tmp_path: Path
) -> None:
    verdicts.run(study)
    rows = pq.read_table(tmp_path / "out" / "verdicts-windows.parquet").to_pylist()
    stages = LocalStages(study.load_run(["candidates.fraction=1"]))
    rollouts = stages.roll_out(stages.prompts(8))
    probe_sets = stages.probe(stages.candidates(stages.score(rollouts)))
    own = {
        (probe_set.rollout_id, int(t)): float(d_ot)
        for probe_set in probe_sets
        for t, d_ot in zip(probe_set.positions_W, probe_set.d_ot_W, strict=True)
    }
    for row in rows:
        d_ot = own[row["rollout"], row["position"]]
        assert row["D_OT, K 8"] == pytest.approx(d_ot, abs=1e-5)
    for other in ("D_OT, ordered, K 8", "D_OT, hidden states, K 8"):
        assert max(abs(row[other] - row["D_OT, K 8"]) for row in rows) > 0.05


def test_a_free_score_is_the_log_probability_of_the_student_s_token(
    study: StudyConfig, tmp_path: Path
) -> None:
    verdicts.run(study)
    rows = pq.read_table(tmp_path / "out" / "verdicts-windows.parquet").to_pylist()
    stages = LocalStages(study.load_run())
    readings = {
        reading.rollout.rollout_id: reading
        for reading in stages.read(stages.roll_out(stages.prompts(8)), top=1)
    }
    for row in rows:
        reading = readings[row["rollout"]]
        loss = float(reading.token_loss_N[row["position"]])
        logp = float(reading.rollout.logp_O[row["position"]])
        assert row["-log p_T(y_t)"] == pytest.approx(loss, abs=1e-4)
        assert row["log p_S(y_t) - log p_T(y_t)"] == pytest.approx(
            logp + loss, abs=1e-4
        )
        assert row["surprise: -log p_T(y_t) - H(p_T)"] == pytest.approx(
            loss + row["-H(p_T)"], abs=1e-4
        )


def test_only_prompts_of_the_wanted_ids_are_answered(
    study: StudyConfig, tmp_path: Path
) -> None:
    settings = study.verdicts
    assert settings is not None
    ids = sorted(
        prompt.prompt_id for prompt in LocalStages(study.load_run()).prompts(8)
    )
    wanted = settings.model_copy(update={"prompt_ids": "|".join(ids[:3])})
    verdicts.run(study.model_copy(update={"verdicts": wanted}))
    rows = pq.read_table(tmp_path / "out" / "verdicts-windows.parquet").to_pylist()
    assert {row["prompt"] for row in rows} <= set(ids[:3])


def test_a_window_that_is_not_decoded_is_refused(study: StudyConfig) -> None:
    assert study.verdicts is not None
    longer = study.verdicts.model_copy(update={"windows": (4, 9)})
    with pytest.raises(UserError, match=r"verdicts\.windows=9 exceeds probe\.window=8"):
        verdicts.run(study.model_copy(update={"verdicts": longer}))


def test_a_study_without_the_section_or_without_forks_is_refused(make_study) -> None:
    with pytest.raises(UserError, match="no `verdicts` section"):
        verdicts.run(make_study())
    section = {"truth": "toy", "windows": [4]}
    with pytest.raises(UserError, match="0 labelled windows is a fork"):
        verdicts.run(make_study(verdicts=section))
    with pytest.raises(UserError, match="0 labelled windows is a fork"):
        verdicts.run(make_study(verdicts=section | {"prompt_ids": "none"}))
