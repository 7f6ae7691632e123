"""The report in a real browser: what a reader sees and does."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from shutil import copytree
from typing import Literal

import pyarrow.parquet as pq
import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.pages import AXE, AXE_SHA256, Opened, complaints
from tests.browser.runs import LONG_ID, SCRIPT
from topd_ray.page.report import write_report

VIEWS = ("overview", "reader", "distributions", "time", "compare")
LIST = "[role=listbox]"
Scheme = Literal["light", "dark"]
SCHEMES: tuple[Scheme, ...] = ("light", "dark")


def status(page: Page) -> str:
    return page.inner_text(".reader-side .status")


def test_axe_is_the_published_file() -> None:
    assert hashlib.sha256(AXE.read_bytes()).hexdigest() == AXE_SHA256


def test_the_overview_shows_accuracies_curves_and_what_happened(opened: Opened) -> None:
    page = opened.go()
    expect(page.locator("h1")).to_have_text("run")
    expect(page.get_by_text("33.8 %")).to_be_visible()
    assert page.locator("figure.chart").count() >= 8
    expect(page.get_by_text("Step 3 was skipped: rollout_kl 0.31")).to_be_visible()


def test_the_views_are_reached_by_links_and_by_address(opened: Opened) -> None:
    page = opened.go()
    for name, view in (("Rollouts", "reader"), ("Time", "time")):
        page.get_by_role("link", name=name, exact=True).click()
        page.wait_for_selector(f"main[data-view={view}]")
        assert page.url.partition("#")[2].startswith(view)
    assert opened.go("distributions").locator("figure.chart").count() == 3


def test_filters_narrow_the_list_and_the_address_keeps_them(opened: Opened) -> None:
    page = opened.go("reader")
    page.select_option("[name=plan]", "any")
    assert status(page) == "120 windows"
    page.select_option("[name=verdict]", "0")
    assert status(page) == "48 of 120 windows"
    page.select_option("[name=verdict]", "candidates")
    page.fill("[name=l_min]", "2")
    found = status(page)
    losses = page.locator(".row-numbers").all_inner_texts()
    shown = [float(text.split("loss ")[1].split()[0]) for text in losses]
    assert shown == sorted(shown, reverse=True)
    assert min(shown) >= 2
    page.reload()
    page.wait_for_selector("main[data-view=reader]")
    assert status(page) == found
    assert page.input_value("[name=l_min]") == "2"


def test_a_search_looks_through_prompts_and_both_continuations(opened: Opened) -> None:
    page = opened.go("reader?plan=any")
    page.fill("[name=text]", "document.title")
    assert status(page) == "1 of 120 windows"
    page.fill("[name=text]", "nowhere to be found")
    assert status(page) == "0 of 120 windows"


def test_rollouts_are_listed_by_right_and_wrong(opened: Opened) -> None:
    page = opened.go("reader?show=rollouts")
    assert status(page) == "24 rollouts"
    page.select_option("[name=right]", "0")
    number = int(status(page).split()[0])
    assert 0 < number < 24
    expect(page.locator(f"{LIST} .badge").first).to_have_text("wrong")


def test_a_reader_walks_by_keyboard(opened: Opened) -> None:
    page = opened.go("reader")
    page.locator(LIST).focus()
    first = page.get_attribute(".detail", "data-key")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.wait_for_function(
        f"document.querySelector('.detail').dataset.key !== '{first}'"
    )
    expect(page.locator("[aria-selected=true]")).to_have_attribute("aria-posinset", "3")
    page.keyboard.press("End")
    expect(page.locator("[aria-selected=true]")).to_have_count(1)
    page.keyboard.press("/")
    expect(page.locator("[name=text]")).to_be_focused()
    page.locator(".plan-column.student button").first.focus()
    page.keyboard.press("ArrowDown")
    expect(page.locator(".plan-column.student button").nth(1)).to_be_focused()
    expect(page.locator(".target p")).to_contain_text("position +1")


def test_a_click_on_a_marked_token_opens_its_window(opened: Opened) -> None:
    page = opened.go("reader")
    others = page.locator(".rollout button.mark:not(.chosen)")
    if others.count() == 0:
        page.keyboard.press("ArrowDown")
    first = page.get_attribute(".detail", "data-key")
    others.first.click()
    page.wait_for_function(
        f"document.querySelector('.detail').dataset.key !== '{first}'"
    )
    expect(page.locator(".rollout .chosen")).to_have_count(1)
    assert "w=" in page.url


def test_links_carry_the_mass_of_the_recorded_plan(
    opened: Opened, report: Path
) -> None:
    file = report.parent / "windows" / "step_000003.parquet"
    window = next(row for row in pq.read_table(file).to_pylist() if row["plan_rows"])
    key = f"3/{window['rollout_id']}/{window['position']}"
    page = opened.go(f"reader?w={key}")
    page.wait_for_selector(f".detail[data-key='{key}'] .link")
    links = page.eval_on_selector_all(
        ".link",
        "all => all.map(({dataset}) => [dataset.row, dataset.mass].map(Number))",
    )
    assert len(links) == len(window["plan_rows"])
    for row in range(len(window["student_ids"])):
        drawn = sum(mass for at, mass in links if at == row)
        parts = zip(window["plan_rows"], window["plan_mass"], strict=True)
        recorded = sum(mass for at, mass in parts if at == row)
        assert drawn == pytest.approx(recorded, rel=1e-3)
    # The soft target of a position is shown while it is pointed at, and adds up to 1.
    page.locator(".plan-column.student button").nth(2).hover()
    weights = page.locator(".target .weight-text").all_inner_texts()
    rest = page.locator(".target li.soft").all_inner_texts()
    shares = [float(text.split()[-2]) for text in [*weights, *rest]]
    assert sum(shares) == pytest.approx(100, abs=0.6)


def test_what_a_model_wrote_is_text(opened: Opened, report: Path) -> None:
    file = report.parent / "windows" / "step_000001.parquet"
    window = pq.read_table(file).to_pylist()[0]
    key = f"1/{window['rollout_id']}/{window['position']}"
    page = opened.go(f"reader?w={key}")
    page.wait_for_selector(f".detail[data-key='{key}']")
    text = page.inner_text(".detail")
    assert SCRIPT in text
    assert "⟨U+202E⟩gnilesrever" in text
    assert "bell⟨U+0007⟩null⟨U+0000⟩" in text
    assert page.title() != "owned"
    assert page.locator("img").count() == 0
    assert "\u202e" not in page.content()


def test_a_rollout_of_30_000_tokens_is_cut_and_opens_in_pieces(opened: Opened) -> None:
    page = opened.go(f"reader?show=rollouts&r=2/{LONG_ID}")
    page.wait_for_selector(f".detail[data-key='2/{LONG_ID}']")
    assert page.locator(".rollout > .token").count() <= 401
    page.get_by_role("button", name="more tokens").click()
    assert 2000 < page.locator(".rollout > .token").count() < 3000


def test_a_call_of_an_actor_is_read_under_the_pointer(opened: Opened) -> None:
    page = opened.go("time")
    page.locator("rect.call").nth(1).hover()
    expect(page.locator(".lanes-holder .status")).to_contain_text("teacher[0] score")
    expect(page.get_by_text("busy 41 %; waits 30 % for rollouts")).to_be_visible()


def test_two_runs_show_rollouts_of_one_prompt_beside_each_other(opened: Opened) -> None:
    page = opened.go("compare")
    expect(page.locator(".side .rollout").first).to_be_visible()
    assert page.locator(".side").count() == 2
    assert page.locator(".side.run-1 .rollout").count() >= 1
    expect(page.get_by_role("row", name="Right rollouts of a prompt")).to_be_visible()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", [1360, 390])
def test_axe_finds_nothing_and_nothing_sticks_out(
    browser: Browser, report: Path, scheme: Scheme, width: int
) -> None:
    context = browser.new_context(
        color_scheme=scheme,
        viewport={"width": width, "height": 900},
    )
    page = context.new_page()
    opened = Opened(page, report.as_uri())
    for view in VIEWS:
        opened.go(view)
        page.wait_for_timeout(150)
        assert complaints(page) == [], view
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= width, f"{view} is {wide} pixels wide"
    context.close()
    assert opened.errors == []


def test_dark_and_light_differ(browser: Browser, report: Path) -> None:
    colours = []
    for scheme in SCHEMES:
        page = browser.new_page(color_scheme=scheme)
        Opened(page, report.as_uri()).go()
        colours.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        page.close()
    assert json.dumps(colours[0]) != json.dumps(colours[1])


@pytest.fixture
def takeover_page(browser: Browser, taken_over: Path, tmp_path: Path) -> Iterator[Page]:
    """The report of a run without windows."""
    run = copytree(taken_over, tmp_path / "run")
    page = browser.new_page(viewport={"width": 1360, "height": 900})
    watched = Opened(page, write_report(run).as_uri())
    yield watched.go("reader")
    page.close()
    assert watched.errors == []


def test_a_takeover_run_shows_its_rollouts_and_where_the_teacher_went_on(
    takeover_page: Page,
) -> None:
    page = takeover_page
    assert status(page) == "24 rollouts"
    assert page.locator("[name=show], [name=verdict], .walk").count() == 0
    page.select_option("[name=taken]", "1")
    number = int(status(page).split()[0])
    assert 0 < number < 24
    expect(page.locator(f"{LIST} .fork-words")).to_have_count(
        page.locator(f"{LIST} .row").count()
    )
    page.select_option("[name=order]", "fork")
    page.select_option("[name=up]", "1")
    page.locator(f"{LIST} .row").first.click()
    fork = page.locator(".rollout .token.fork")
    expect(fork).to_have_count(1)
    expect(page.locator(".takeover")).to_contain_text("The teacher took over at token")
    expect(page.locator(".takeover .badge")).to_have_text("right")
    expect(page.locator(f"{LIST} .fork-words .student").first).to_have_text(
        fork.inner_text().strip()
    )
    assert complaints(page) == []


def test_a_takeover_run_has_figures_of_its_forks(takeover_page: Page) -> None:
    page = takeover_page
    page.get_by_role("link", name="Distributions", exact=True).click()
    page.wait_for_selector("main[data-view=distributions]")
    assert page.locator("figure.chart").count() == 2
    expect(page.get_by_role("heading", name="Forks by kind of token")).to_be_visible()
    expect(page.get_by_role("heading", name="Windows")).to_have_count(0)
    expect(page.locator(".missing")).to_have_count(0)
    assert complaints(page) == []
