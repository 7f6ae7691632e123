import re
from pathlib import Path

import pytest
import yaml

from topd_ray.errors import UserError
from topd_ray.studies.config import load_study

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    "file", sorted((ROOT / "configs" / "studies").glob("*.yaml")), ids=lambda p: p.name
)
def test_every_study_file_of_the_repository_is_sound(file: Path) -> None:
    study = load_study(file)
    config = study.load_run()
    engines = (config.rollout.engine, config.teacher.engine)
    assert [engine.backend for engine in engines].count("vllm") <= 1
    assert max(study.probing.windows) <= config.probe.window
    if study.verdicts is not None:
        config = study.load_run(list(study.verdicts.overrides))
        assert max(study.verdicts.windows) <= config.probe.window
    assert study.folder == Path("runs/studies").absolute() / file.stem


BY = {"greedy": "greedy", "greedy at equal seconds": "equal_seconds", "avg@8": "avg"}
COMPARISON = re.compile(
    r"^\| (?:\*\*primary\*\*|secondary) \|(?: `(?P<of>[^`]*)` \|)?"
    r" `(?P<against>[^`]*)` \| (?P<by>[^|]*) \|$",
    re.M,
)


@pytest.mark.parametrize(
    ("stage", "names", "number"),
    [
        (
            "## Comparisons",
            ("takeover", "takeover-no-recovery", "takeover-small"),
            7,
        ),
        ("## Stage 3", ("takeover-short",), 6),
        ("## Stage 4", ("takeover-long",), 3),
    ],
)
def test_the_studies_of_takeover_ask_what_was_written_down_in_its_order(
    stage: str, names: tuple[str, ...], number: int
) -> None:
    page = (ROOT / "benchmarks" / "preregistered.md").read_text(encoding="utf-8")
    section = page.partition(stage)[2].partition("\n## ")[0]
    expected = [
        (row["of"] or "takeover", row["against"], BY[row["by"]])
        for row in COMPARISON.finditer(section)
    ]
    assert len(expected) == number
    for name in names:
        ablation = load_study(ROOT / "configs" / "studies" / f"{name}.yaml").ablation
        assert ablation is not None
        asked = [(c.of, c.against, c.by) for c in ablation.comparisons]
        assert asked == expected
        assert (ablation.samples, ablation.sampled_problems) == (8, 200)


def test_the_run_is_found_beside_the_study_file_and_overridden(
    make_study, tmp_path: Path
) -> None:
    study = make_study(overrides=["probe.window=6"])
    assert Path(study.run) == tmp_path / "run.yaml"
    assert study.load_run().probe.window == 6
    assert study.load_run(["probe.window=5"]).probe.window == 5
    assert study.folder == tmp_path / "out"


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({"probing": {"num_promts": 3}}, "probing.num_promts: unknown key"),
        ({"overrides": ["probe.windw=3"]}, "probe.windw: unknown key"),
        ({"run": "nowhere.yaml"}, "nowhere.yaml: no such config file"),
    ],
)
def test_a_mistake_in_a_study_file_is_named(
    make_study, sections, expected: str
) -> None:
    with pytest.raises(UserError) as error:
        make_study(**sections)
    assert expected in str(error.value)


def test_a_study_without_a_run_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump({"seed": 1}))
    with pytest.raises(UserError, match="run: is missing"):
        load_study(path)
