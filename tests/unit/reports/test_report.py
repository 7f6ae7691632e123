import json
import math
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from topd_ray.reports.correction_figures import correction_plot
from topd_ray.reports.probing_figures import (
    divergence_plot,
    histogram_plot,
    scatter_plot,
)
from topd_ray.reports.provenance import Provenance, make_provenance
from topd_ray.reports.report import Plot, Report, Table, as_text, write_report
from topd_ray.reports.token_kinds import Kinds
from topd_ray.reports.verdict_figures import auroc_plot
from topd_ray.statistics import Estimate, t_interval


def estimate(value: float) -> Estimate:
    return Estimate(value=value, low=value - 0.1, high=value + 0.1, count=7)


@pytest.fixture
def provenance(load_run) -> Provenance:
    return make_provenance(load_run(), {"a": 1}, study_seed=3, wall_s=1.5)


def small_plots() -> list[Plot]:
    rng = np.random.default_rng(0)
    d_ot, loss = rng.random(40, np.float32), rng.random(40, np.float32) + 0.1
    names = ("high loss", "random", "low loss")
    far = Kinds(("far", "near"), np.where(d_ot > 0.5, "far", "near"))
    return [
        divergence_plot({name: d_ot + n for n, name in enumerate(names)}, window=8),
        histogram_plot(d_ot, far, quartile=0.3, false_alarms=0.3),
        scatter_plot(loss, d_ot, bins=4, loss_name="reverse_kl"),
        correction_plot(
            dict.fromkeys(names, d_ot),
            {name: t_interval(d_ot) for name in names},
            updates=5,
            threshold=0.2,
        ),
        auroc_plot({"free": {"surprise": t_interval(d_ot)}}),
    ]


def small_report(plots: list[Plot]) -> Report:
    return Report(
        study="probing",
        title="A study",
        summary=["What came out."],
        tables=[
            Table(
                name="groups",
                title="Groups",
                columns=("name", "median", "paper"),
                rows=[("a|b", estimate(0.5), 0.566), ("c", estimate(0.25), None)],
            ),
            Table(
                name="points",
                title="Points",
                columns=("x",),
                rows=[(1.0,), (2.0,)],
                shown=False,
            ),
        ],
        plots=plots,
        numbers={
            "nothing": math.nan,
            "array": np.arange(2),
            "nested": {"e": estimate(1.0)},
        },
    )


def test_every_file_of_a_report_is_written_and_reads_back(
    provenance: Provenance, tmp_path: Path
) -> None:
    page = write_report(small_report(small_plots()[:1]), tmp_path, provenance)
    text = page.read_text()
    assert "| a\\|b | 0.500 [0.400, 0.600] | 0.566 |" in text
    assert "| c | 0.250 [0.150, 0.350] | - |" in text
    assert "(probing-divergence.png)" in text
    assert "Points" not in text
    table = pq.read_table(tmp_path / "probing-groups.parquet").to_pydict()
    assert table["median"] == [0.5, 0.25]
    assert table["median_low"] == [0.4, 0.15]
    assert table["paper"] == [0.566, None]
    assert pq.read_table(tmp_path / "probing-points.parquet").to_pydict() == {
        "x": [1.0, 2.0]
    }
    numbers = json.loads((tmp_path / "probing.json").read_text())
    assert numbers["numbers"] == {
        "nothing": None,
        "array": [0, 1],
        "nested": {"e": {"value": 1.0, "low": 0.9, "high": 1.1, "count": 7}},
    }
    assert numbers["tables"]["groups"][1]["median"]["value"] == 0.25
    assert numbers["provenance"]["study_seed"] == 3
    assert numbers["provenance"]["config"]["run"]["probe"]["window"] == 50


@pytest.mark.parametrize("which", range(5))
def test_the_same_numbers_draw_the_same_bytes(
    which: int, tmp_path: Path, provenance: Provenance
) -> None:
    files = []
    for attempt in ("one", "two"):
        folder = tmp_path / attempt
        write_report(small_report([small_plots()[which]]), folder, provenance)
        files.append(
            {
                path.suffix: path.read_bytes()
                for path in folder.glob("probing-*.[ps][nv]g")
            }
        )
    assert files[0].keys() == {".png", ".svg"}
    assert files[0] == files[1]


def test_a_row_that_does_not_fit_its_columns_is_refused() -> None:
    with pytest.raises(ValueError, match="2 cells"):
        Table(name="t", title="T", columns=("a",), rows=[(1, 2)])


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (0.0, "0.000"),
        (1e-4, "0.0001"),
        (0.25, "0.250"),
        (None, "-"),
        (math.nan, "-"),
        (7, "7"),
    ],
)
def test_cells_are_short(cell: float | None, text: str) -> None:
    assert as_text(cell) == text
