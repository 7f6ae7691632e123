"""All four studies on the toy world, and what came out in benchmarks/RESULTS.md.

    make reproduce      or      .venv/bin/python benchmarks/reproduce.py [STUDY …]

What a study has done before is not done again (`runs/studies/toy`). Pages, figures,
tables and numbers are copied to `benchmarks/reproduction/`, the pages' text goes
between two marks of RESULTS.md.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
TOPD = Path(sys.executable).parent / "topd"
STUDY_FILE = ROOT / "configs" / "studies" / "toy.yaml"
OUT = ROOT / "runs" / "studies" / "toy"
KEPT = ROOT / "benchmarks" / "reproduction"
RESULTS = ROOT / "benchmarks" / "RESULTS.md"
STUDIES = ("probing", "correction", "case", "ablation")
LONGEST_LISTING = 44
BEGIN, END = "<!-- make reproduce: begin -->", "<!-- make reproduce: end -->"


def main() -> None:
    """Run, copy, write."""
    for study in sys.argv[1:] or STUDIES:
        subprocess.run(
            [TOPD, "study", study, STUDY_FILE, "--out", OUT], cwd=ROOT, check=True
        )
    KEPT.mkdir(exist_ok=True)
    for file in sorted(OUT.glob("*.*")):
        if file.is_file():
            shutil.copy(file, KEPT / file.name)
    pages = [
        KEPT / f"{study}.md" for study in STUDIES if (KEPT / f"{study}.md").is_file()
    ]
    section = "\n\n".join(
        as_section(page.read_text(encoding="utf-8")) for page in pages
    )
    old = RESULTS.read_text(encoding="utf-8")
    before, _, rest = old.partition(BEGIN)
    _, _, after = rest.partition(END)
    RESULTS.write_text(
        f"{before}{BEGIN}\n\n{section}\n\n{END}{after}", encoding="utf-8"
    )
    print(f"wrote {RESULTS.relative_to(ROOT)}")


def as_section(page: str) -> str:
    """A study's page, a heading lower, long listings cut, figures where they were
    copied to.
    """
    page = re.sub(r"```text\n(.*?)```", shortened, page, flags=re.DOTALL)
    lower = re.sub(r"^(#+ )", r"#\1", page.strip(), flags=re.MULTILINE)
    return re.sub(r"(!\[[^\]]*\]\()", r"\1reproduction/", lower)


def shortened(block: re.Match[str]) -> str:
    """The first lines of a fixed-width block; the whole is in the copied page."""
    lines = block[1].splitlines()
    if len(lines) > LONGEST_LISTING:
        lines = [*lines[:LONGEST_LISTING], "… (the rest: benchmarks/reproduction/)"]
    return "\n".join(["```text", *lines, "```"])


if __name__ == "__main__":
    main()
