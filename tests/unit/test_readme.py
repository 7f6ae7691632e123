"""What the README names is there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TABLE = README.split("## Paper to code")[1].split("\n###")[0]


def test_every_file_and_test_of_the_paper_to_code_table_exists() -> None:
    cells = [row.split("|")[4:6] for row in TABLE.splitlines() if row.startswith("| ")][
        1:
    ]
    assert len(cells) > 15
    for code, test in cells:
        for name in re.findall(r"`([^`]+)`", code):
            here = ROOT / "topd_ray" / name
            sibling = list(
                (ROOT / "topd_ray").glob(f"*/{name}")
            )  # second file of the same stage
            assert here.exists() or sibling, name
        for name in re.findall(r"`([^`]+)`", test):
            assert (ROOT / "tests" / name).exists(), name


def test_every_config_the_readme_names_exists() -> None:
    for name in re.findall(r"configs/[\w./-]+\.yaml", README):
        assert (ROOT / name).is_file(), name
    objectives = README.split("### Objectives")[1].split("###")[0]
    named = set(re.findall(r"`(?:configs/toy/)?([a-z0-9-]+?)(?:\.yaml)?`", objectives))
    shipped = {file.stem for file in (ROOT / "configs" / "toy").glob("*.yaml")}
    assert shipped <= named
