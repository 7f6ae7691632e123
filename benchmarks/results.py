"""The claims on speed: run every script, and write what they left into
benchmarks/RESULTS.md.

    make bench          every benchmarks/bench_*.py in turn, then the page
    make bench-gpu      those that have a GPU side
    .venv/bin/python benchmarks/results.py    the page alone, from benchmarks/claims/

The section between the two marks of RESULTS.md is replaced. A script that fails stops
no other, but its rows say so and the command ends with 1.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
HERE = ROOT / "benchmarks"
CLAIMS = HERE / "claims"
FAILURES = CLAIMS / "failures.json"
RESULTS = HERE / "RESULTS.md"
BEGIN, END = "<!-- make bench: begin -->", "<!-- make bench: end -->"
SCRIPT_DEADLINE_S = 1800.0
GPU = ".gpu"
"""What `measure.save` adds to the name of a claim that was measured on a GPU."""

Record = Mapping[str, Any]


class Row(NamedTuple):
    """A claim that is owed, and what stands in the table while it is not measured
    it.
    """

    name: str
    script: str
    claim: str
    against: str
    goal: str


ROWS = (
    Row(
        "price_own_cores",
        "bench_price",
        "whole run, TOPD / OPD",
        "the paper's 1.41",
        "<= 1.10",
    ),
    Row(
        "price_shared_cores",
        "bench_price",
        "the same, shared cores",
        "the paper's 1.41",
        "<= 1.25",
    ),
    Row(
        "takeover_price_half",
        "bench_takeover",
        "whole step, takeover with early stop / OPD, forks in the middle",
        "without early stop",
        "<= 1.10",
    ),
    Row(
        "takeover_price_early",
        "bench_takeover",
        "the same, forks early",
        "without early stop",
        "<= 0.80",
    ),
    Row(
        "takeover_price_early_32_tokens",
        "bench_takeover",
        "the same, 32 tokens by the teacher",
        "without early stop",
        "<= 0.80",
    ),
    Row(
        "peers_trl_distillation",
        "bench_peers",
        "OPD tokens/s",
        "TRL DistillationTrainer",
        ">= 3x",
    ),
    Row("peers_trl_gkd", "bench_peers", "OPD tokens/s", "TRL GKDTrainer", ">= 3x"),
    Row(
        "loss_memory",
        "bench_loss",
        "loss: peak memory",
        "full-logits PyTorch",
        "<= 1/8",
    ),
    Row("loss_time", "bench_loss", "loss: time", "full-logits PyTorch", "no worse"),
    Row(
        "loss_liger",
        "bench_loss",
        "loss: time",
        "Liger's fused linear JSD",
        "if it runs",
    ),
    Row(
        "ot_speed", "bench_ot", "OT windows/s, K = 50", "geomloss as it comes", ">= 5x"
    ),
    Row(
        "ot_cost_share", "bench_transport_share", "OT + cost matrix", "a step", "<= 1 %"
    ),
    Row(
        "prefix_cache",
        "bench_prefix",
        "prefix tokens from the cache",
        "all of a probe's",
        ">= 95 %",
    ),
    Row(
        "tree_windows",
        "bench_tree",
        "`resample` windows",
        "separate forwards",
        ">= 8x at N = 4096",
    ),
    Row("packing_padding", "bench_tree", "padding", "padded rows", "<= 5 %"),
    Row(
        "refit",
        "bench_weights",
        "refit of a rollout engine",
        "save + load from disk",
        ">= 5x",
    ),
    Row(
        "staleness",
        "bench_staleness",
        "tokens/s at staleness 1",
        "staleness 0",
        ">= 1.3x",
    ),
    Row(
        "staleness_accuracy",
        "bench_staleness",
        "accuracy at staleness 1, equally many rollouts",
        "staleness 0",
        "within the interval",
    ),
    Row(
        "driver_rate",
        "bench_driver",
        "driver, share of a paper's step",
        "64 actors",
        "<= 5 %",
    ),
    Row(
        "records_cost",
        "bench_records",
        "recording at the defaults, share of a step's CPU time",
        "the same step",
        "<= 2%",
    ),
    Row(
        "plan_accuracy",
        "bench_plan",
        "`topd plan`, step time",
        "real runs",
        "within 15 %",
    ),
    Row(
        "scaling",
        "bench_scaling",
        "prediction for 4 to 256 GPUs",
        "4 GPUs, linear",
        "to 256",
    ),
    Row(
        "memory_estimate",
        "bench_memory",
        "`topd check`, memory of an actor",
        "its peak, on a CPU",
        "within 15 %",
    ),
    Row(
        "real_roofline",
        "bench_real",
        "a step of real models, share of the CPU's roofline",
        "products and bandwidth of the same process",
        "every stage >= 60 %",
    ),
    Row(
        "report_seconds",
        "bench_report",
        "report of a run, CPU seconds on one core",
        "200 steps, 20,000 windows",
        "<= 20 s, < 50 MB",
    ),
    Row(
        "report_filter",
        "bench_report",
        "a filter of the page, headless Chromium",
        "20,000 windows",
        "<= 200 ms",
    ),
    Row(
        "start",
        "bench_start",
        "`topd train` to first rollout",
        "starts one by one",
        "in parallel",
    ),
)
ORDER = {row.name: place for place, row in enumerate(ROWS)}


def main() -> None:
    """Run what is asked for, write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--run", choices=("all", "gpu"), help="run the scripts first")
    asked = parser.parse_args()
    failed = (
        run_scripts(scripts(gpu=asked.run == "gpu"), gpu=asked.run == "gpu")
        if asked.run
        else []
    )
    page = section(read_claims(), read_failures())
    RESULTS.write_text(
        replaced(RESULTS.read_text(encoding="utf-8"), page), encoding="utf-8"
    )
    print(f"wrote {RESULTS.relative_to(ROOT)}")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def scripts(*, gpu: bool) -> list[Path]:
    """All scripts, or those that say what they do on CUDA."""
    found = sorted(HERE.glob("bench_*.py"))
    return [
        one for one in found if not gpu or "cuda" in one.read_text(encoding="utf-8")
    ]


def run_scripts(paths: Sequence[Path], *, gpu: bool) -> list[str]:
    """Run each in a separate process; return and keep the names of those that
    failed.
    """
    CLAIMS.mkdir(exist_ok=True)
    failed = []
    for path in paths:
        forget(path.stem, gpu=gpu)
        print(f"--- {path.name}", flush=True)
        try:
            ended = subprocess.run(
                [sys.executable, path], cwd=ROOT, timeout=SCRIPT_DEADLINE_S
            )
            failed += [path.stem] if ended.returncode else []
        except subprocess.TimeoutExpired:
            print(
                f"{path.name}: no end after {SCRIPT_DEADLINE_S:.0f} s", file=sys.stderr
            )
            failed.append(path.stem)
    FAILURES.write_text(json.dumps(failed) + "\n", encoding="utf-8")
    return failed


def forget(script: str, *, gpu: bool) -> None:
    """Drop the claims that `script` left before, so that a failure leaves no old figure
    behind.
    """
    for path in CLAIMS.glob("*.json"):
        if path != FAILURES and path.stem.endswith(GPU) == gpu:
            record = json.loads(path.read_text(encoding="utf-8"))
            if script_of(record) == script:
                path.unlink()


def script_of(record: Record) -> str:
    """Stem of the script that left a claim; its command is `python
    benchmarks/<script>.py …`.
    """
    return Path(str(record["command"]).split()[1]).stem


def read_claims() -> list[dict[str, Any]]:
    """Every claim, in the order of `ROWS`, others after them by name; `gpu` says where
    it ran.
    """
    paths = [path for path in CLAIMS.glob("*.json") if path != FAILURES]
    paths.sort(
        key=lambda path: (ORDER.get(path.stem.removesuffix(GPU), len(ORDER)), path.stem)
    )
    return [
        json.loads(path.read_text(encoding="utf-8")) | {"gpu": path.stem.endswith(GPU)}
        for path in paths
    ]


def read_failures() -> list[str]:
    """Scripts that failed in the last run."""
    return (
        list(json.loads(FAILURES.read_text(encoding="utf-8")))
        if FAILURES.is_file()
        else []
    )


def replaced(page: str, text: str) -> str:
    """`page` with `text` between the marks; they are added under a heading where they
    lack.
    """
    if BEGIN not in page:
        page = f"{page.rstrip()}\n\n## Speed\n\n{BEGIN}{END}\n"
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{after}"


def section(claims: Sequence[Record], failed: Sequence[str]) -> str:
    """One table of all claims, then what stands behind each."""
    table = as_table(overview(claims, failed))
    ended = [f"Failed in the last run: {', '.join(failed)}."] if failed else []
    return "\n\n".join([table, *ended, *map(behind, claims)])


def overview(claims: Sequence[Record], failed: Sequence[str]) -> list[dict[str, str]]:
    """Owed rows in their order, measured or not, then claims that no list names."""
    lines: list[dict[str, str]] = []
    for row in ROWS:
        found = [one for one in claims if one["name"] == row.name]
        lines += [line(one) for one in found]
        if not any(not one["gpu"] for one in found):
            state = "failed" if row.script in failed else "not measured"
            lines.append(
                line(row._asdict() | {"figure": "", "met": None, "gpu": False}, state)
            )
    return lines + [line(one) for one in claims if one["name"] not in ORDER]


def line(claim: Record, state: str | None = None) -> dict[str, str]:
    """A row of the first table."""
    verdict = {True: "met", False: "**missed**", None: "not measured here"}[
        claim["met"]
    ]
    return {
        "claim": claim["claim"] + (" (GPU)" if claim["gpu"] else ""),
        "against": claim["against"],
        "goal": claim["goal"],
        "figure": claim["figure"],
        "": state or verdict,
    }


def behind(claim: Record) -> str:
    """Setting, command, machine, commit, date, table and words of a claim."""
    code = (claim["commit"] or "unknown")[:7] + (
        " with changes" if claim["dirty"] else ""
    )
    title = f"### {claim['claim']}, against {claim['against']}" + (
        " (GPU)" if claim["gpu"] else ""
    )
    facts = (
        f"`{claim['command']}`, {claim['hardware']}, commit {code}, {claim['date']}."
    )
    head = f"**{claim['figure']}** (goal {claim['goal']}). {claim['setting']}"
    parts = [title, head, facts, as_table(claim["details"]), claim["words"]]
    return "\n\n".join(part for part in parts if part)


def as_table(rows: Iterable[Record]) -> str:
    """Markdown; columns are the keys, in the order in which they first appear."""
    rows = list(rows)
    if not rows:
        return ""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [columns, ["---"] * len(columns)]
    lines += [[cell(row.get(column, "")) for column in columns] for row in rows]
    return "\n".join(f"| {' | '.join(one)} |" for one in lines)


def cell(value: Any) -> str:
    """Text of one field: four digits of a float, and no bar that would end the cell."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value).replace("|", "\\|").replace("\n", " ")


if __name__ == "__main__":
    main()
