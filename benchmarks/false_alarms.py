"""Does D_OT tell reasoning forks from wording? What the verdict said of the demo's candidates.

    .venv/bin/python benchmarks/false_alarms.py [RUN]        (default: runs/demo)

In the toy world the truth is known: a candidate whose student token is a connective, verb or link
is harmless wording; the others are operands, operators and brackets, where paths part. The table
counts both kinds over a run: how often each was called a real divergence, and its mean D_OT.
"""

import argparse
from collections import defaultdict
from pathlib import Path

import pyarrow.parquet as pq
from rich.console import Console
from rich.markdown import Markdown
from transformers import AutoTokenizer

from topd_ray.toy import SHIPPED_WORLD
from topd_ray.toy.wording import CONNECTIVES, LINKS, VERBS

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Print the table of a run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, nargs="?", default=ROOT / "runs" / "demo")
    Console().print(Markdown(table(parser.parse_args().run)))


def table(run: Path) -> str:
    """Markdown: steps in four parts, wording against the rest."""
    files = sorted((run / "windows").glob("step_*.parquet"))
    quarter = -(-len(files) // 4)
    lines = [
        "| steps | wording: candidates | called divergent | mean D_OT "
        "| forks: candidates | called divergent | mean D_OT |",
        "|---" * 7 + "|",
    ]
    for first in range(0, len(files), quarter):
        part = files[first : first + quarter]
        kinds = by_kind(part)
        cells = " | ".join(cell(kinds[kind]) for kind in ("wording", "fork"))
        lines.append(f"| {first + 1}-{first + len(part)} | {cells} |")
    return "\n".join([*lines, ""])


def by_kind(files: list[Path]) -> dict[str, list[tuple[float, bool]]]:
    """(D_OT, verdict) of every candidate, by kind of its student token."""
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED_WORLD / "student")
    surface = set(tokenizer.convert_tokens_to_ids([*CONNECTIVES, *VERBS, *LINKS]))
    kinds = defaultdict(list)
    for file in files:
        for row in pq.read_table(file).to_pylist():
            kind = "wording" if row["student_ids"][0] in surface else "fork"
            kinds[kind].append((row["d_ot"], row["divergent"]))
    return kinds


def cell(found: list[tuple[float, bool]]) -> str:
    """Three cells: count, share called divergent, mean distance."""
    if not found:
        return "0 | |"
    distances, verdicts = zip(*found, strict=True)
    count = len(found)
    return f"{count} | {sum(verdicts) / count:.0%} | {sum(distances) / count:.3f}"


if __name__ == "__main__":
    main()
