"""What conftest.py recorded, as a table between the marks of README.md beside this
file.
"""

import json
import os
import platform
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

README = Path(__file__).with_name("README.md")
BEGIN, END = "<!-- make chaos: begin -->", "<!-- make chaos: end -->"
COLUMNS = {
    "fault": "fault",
    "injected": "injected",
    "survived": "survived",
    "done_again": "work done again",
    "lost": "work lost",
}


def main() -> None:
    records = [Path(name).read_text(encoding="utf-8") for name in sys.argv[1:]]
    rows = [row for record in records for row in json.loads(record)]
    git = ["git", "-C", str(README.parent)]
    commit = subprocess.check_output(
        [*git, "rev-parse", "--short", "HEAD"], text=True
    ).strip()
    dirty = subprocess.check_output(
        [*git, "status", "--porcelain", "-uno"], text=True
    ).strip()
    head = (
        f"`make chaos`, {platform.machine()}, {os.cpu_count()} logical cores, commit"
        f" {commit}{' with changes' if dirty else ''}, {date.today()}."
    )
    lines = [list(COLUMNS.values()), ["---"] * len(COLUMNS), *map(cells, rows)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    page = README.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    after = rest.partition(END)[2]
    README.write_text(
        f"{before}{BEGIN}\n{head}\n\n{table}\n{END}{after}", encoding="utf-8"
    )
    print(head, table, sep="\n\n")


def cells(row: dict[str, Any]) -> list[str]:
    survived = {"passed": "yes", "skipped": "not tried here"}.get(
        row["outcome"], "**no**"
    )
    lost = {"yes": "none", "**no**": "?"}.get(
        survived, ""
    )  # survived: the same student, whole
    values = {"fault": row["test"]} | row | {"survived": survived, "lost": lost}
    return [str(values.get(name, "")) for name in COLUMNS]


if __name__ == "__main__":
    main()
