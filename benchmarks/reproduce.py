"""The studies of a study file, and what came out in benchmarks/RESULTS.md.

    make reproduce      or      .venv/bin/python benchmarks/reproduce.py FILE [STUDY …]

FILE is a file of `configs/studies/`: `toy`, `language`, `sums`, `sums-answers`,
`takeover`, `takeover-no-recovery`, `takeover-small`, `takeover-short` or
`takeover-long`. What a study has done before is not done again (`runs/studies/FILE`).
Pages, figures, tables and numbers are copied to `benchmarks/reproduction/FILE/`, the
pages' text goes between two marks of RESULTS.md.
"""

import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
TOPD = Path(sys.executable).parent / "topd"
STUDIES = {
    "toy": ("probing", "correction", "case", "verdicts", "ablation"),
    "language": ("probing", "correction", "verdicts"),
    "sums": ("ablation",),
    "sums-answers": ("ablation",),
    "takeover": ("ablation",),
    "takeover-no-recovery": ("ablation",),
    "takeover-small": ("ablation",),
    "takeover-short": ("ablation",),
    "takeover-long": ("ablation",),
}
RESULTS = ROOT / "benchmarks" / "RESULTS.md"
RUN_FILES = ("config.yaml", "summary.json", "metrics.jsonl", "events.jsonl")
"""What the report of a study reads of a run, beside `SAMPLES`."""
SAMPLES = "sampled-*.json"
LONGEST_LISTING = 44
NOT_SHOWN = "Windows to read"
"""A table that is as long as a page: RESULTS.md says where it is."""


def main(name: str, studies: list[str]) -> None:
    """Run, copy, write."""
    out = ROOT / "runs" / "studies" / name
    kept = ROOT / "benchmarks" / "reproduction" / name
    kept.mkdir(parents=True, exist_ok=True)
    archive = kept / "runs.tar.xz"
    unpack_runs(archive, out / "runs")
    try:
        for study in studies or STUDIES[name]:
            file = ROOT / "configs" / "studies" / f"{name}.yaml"
            command = [TOPD, "study", study, file, "--out", out]
            ended = subprocess.run(command, cwd=ROOT, check=False)
            if ended.returncode:  # it has said why
                sys.exit(ended.returncode)
    finally:
        pack_runs(out / "runs", archive)
    for file in sorted(out.glob("*.*")):
        if file.is_file():
            shutil.copy(file, kept / file.name)
    write_page(name, kept)


def unpack_runs(archive: Path, runs: Path) -> None:
    """Put the finished runs of an archive among those of this machine.

    The name of a run's folder holds a hash of its config and data, so a run of another
    config lies beside them unused.
    """
    if not archive.is_file():
        return
    here = {folder.name for folder in runs.glob("*/")}
    with tarfile.open(archive) as packed:
        members = [
            member
            for member in packed.getmembers()
            if Path(member.name).parts[0] not in here
        ]
        packed.extractall(runs, members, filter="data")


def pack_runs(runs: Path, archive: Path) -> None:
    """Write what the finished runs have left, if there are any, into an archive."""
    finished = [
        run
        for run in sorted(runs.glob("*"))
        if all((run / name).is_file() for name in RUN_FILES)
    ]
    # Where a study samples its students, a run without samples is not finished.
    if any(runs.glob(f"*/{SAMPLES}")):
        finished = [run for run in finished if any(run.glob(SAMPLES))]
    if not finished:
        return
    names = (*RUN_FILES, SAMPLES)
    with tarfile.open(archive, "w:xz") as packed:
        for run in finished:
            for file in sorted(one for name in names for one in run.glob(name)):
                packed.add(file, file.relative_to(runs))


def write_page(name: str, kept: Path) -> None:
    """Put the pages of a study file between its marks of RESULTS.md."""
    pages = [kept / f"{study}.md" for study in STUDIES[name]]
    section = "\n\n".join(
        as_section(page.read_text(encoding="utf-8"), folder=f"reproduction/{name}")
        for page in pages
        if page.is_file()
    )
    begin, end = (f"<!-- reproduce {name}: {edge} -->" for edge in ("begin", "end"))
    old = RESULTS.read_text(encoding="utf-8")
    before, found, rest = old.partition(begin)
    if not found:
        sys.exit(f"{RESULTS.name} has no line {begin}")
    _, _, after = rest.partition(end)
    new = f"{before}{begin}\n\n{section}\n\n{end}{after}"
    RESULTS.write_text(new, encoding="utf-8")
    print(f"wrote {RESULTS.relative_to(ROOT)}")


def as_section(page: str, *, folder: str) -> str:
    """A study's page, a heading lower, long parts cut, figures where they were copied
    to.
    """
    page = re.sub(r"```text\n(.*?)```", shortened, page, flags=re.DOTALL)
    page = re.sub(
        rf"(## {NOT_SHOWN}\n\n).*?(?=\n## |\n!\[)",
        rf"\1Read them in `benchmarks/{folder}/`.\n",
        page,
        flags=re.DOTALL,
    )
    lower = re.sub(r"^(#+ )", r"#\1", page.strip(), flags=re.MULTILINE)
    return re.sub(r"(!\[[^\]]*\]\()", rf"\1{folder}/", lower)


def shortened(block: re.Match[str]) -> str:
    """The first lines of a fixed-width block; the whole is in the copied page."""
    lines = block[1].splitlines()
    if len(lines) > LONGEST_LISTING:
        lines = [*lines[:LONGEST_LISTING], "… (the rest: benchmarks/reproduction/)"]
    return "\n".join(["```text", *lines, "```"])


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in STUDIES:
        sys.exit(f"reproduce.py: name one of {', '.join(STUDIES)}")
    main(sys.argv[1], sys.argv[2:])
