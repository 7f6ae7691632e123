// The first view: what the run reached, its curves, and what happened on the way.

import { card, count, el, heading, number, percent } from "./dom.js";
import { bars, intervals, lineChart } from "./charts.js";
import { forkWords } from "./takeovers.js";
import { isolated } from "./tokens.js";

export function overviewView(values, rows) {
  return el(
    "div",
    { class: "view" },
    el("h2", { class: "unseen" }, "Overview"),
    missing(values),
    el("div", { class: "hero" }, accuracy(values), facts(values)),
    tiles(values),
    curves(values),
    el("div", { class: "columns" }, happened(values), seconds(values)),
    lastRollouts(values, rows),
    settings(values),
  );
}

export function missing(values) {
  if (values.missing.length === 0) return null;
  return el("aside", { class: "missing", "aria-label": "What is missing" },
    el("ul", {}, values.missing.map((text) => el("li", {}, isolated(text)))));
}

function accuracy(values) {
  const rows = values.accuracy;
  if (rows.length === 0) {
    return card("Accuracy", el("p", { class: "soft" }, "Not measured: the run has no held-out problems, or has not come to them."));
  }
  const problems = rows[rows.length - 1].count;
  const shown = rows.length > 8 ? [...rows.slice(0, 4), ...rows.slice(-4)] : rows;
  return card(
    `Accuracy on ${problems ? count(problems, "held-out problem") : "held-out problems"}`,
    intervals(shown, rows.map((row) => `${row.label} ${percent(row.share, 1)}`).join(", ")),
    el("p", { class: "soft" }, "Greedy answers; 95 % intervals (Wilson)."),
  );
}

function facts(values) {
  return card("The run",
    el("dl", { class: "facts" }, values.facts.flatMap((fact) => [
      el("dt", {}, fact.label), el("dd", {}, fact.text),
    ])));
}

function tiles(values) {
  if (values.tiles.length === 0) return null;
  return el("ul", { class: "tiles" }, values.tiles.map((tile) => {
    const show = (value) => (tile.is_share ? percent(value) : number(value));
    return el("li", { class: "tile" },
      el("span", { class: "label" }, tile.label),
      el("span", { class: "change" },
        el("span", { class: "from" }, show(tile.first)), el("span", { "aria-label": "to" }, " → "),
        el("b", {}, show(tile.last))),
      el("span", { class: "unit" }, tile.unit));
  }));
}

function curves(values) {
  if (values.curves.length === 0) return null;
  return el("section", { "aria-label": "Curves" },
    heading("Step by step", `${count(values.steps.length, "step")}; move over a chart to read its values`),
    el("div", { class: "charts" }, values.curves.map((curve) => lineChart([curve], [values.steps]))));
}

function happened(values) {
  const list = values.happenings;
  return card("What happened on the way", list.length === 0
    ? el("p", { class: "soft" }, "Nothing was dropped, skipped or replaced.")
    : el("ul", { class: "happenings" }, list.slice(0, 200).map((one) => el("li", { class: one.weight }, isolated(one.text)))),
  list.length > 200 ? el("p", { class: "soft" }, `${list.length - 200} more are in events.jsonl.`) : null);
}

function seconds(values) {
  const spent = Object.entries(values.seconds);
  const memory = Object.entries(values.memory);
  if (spent.length === 0 && memory.length === 0) return null;
  return card("Seconds and memory a role",
    spent.length ? bars(spent.map(([stage, value]) => [stage, value, `${number(value, 1)} s`])) : null,
    memory.length ? bars(memory.map(([role, value]) => [role, value, `${number(value, 1)} GB`]), "memory") : null,
    el("p", { class: "soft" }, "Busy seconds, summed over the actors of a stage."));
}

function lastRollouts(values, rows) {
  const last = rows === null ? [] : rows.lastRollouts(3);
  if (last.length === 0) return null;
  return card("From the last step", el("ul", { class: "last" }, last.map((one) => el("li", {},
    el("a", { href: `#reader?show=rollouts&r=${encodeURIComponent(one.key)}` }, `Step ${one.step}`),
    " ", verdictOf(one.right, one.finish), " ", isolated(one.question, "question"), el("br"), isolated(one.beginning, "beginning"),
    one.takeover < 0 ? null : [el("br"), el("span", { class: "soft" }, `taken over at token ${one.takeover}: `), forkWords(one.ownWord, one.teacherWord)]))));
}

export function verdictOf(right, finish = "") {
  const unknown = [finish === "cut" ? "stopped" : "not graded", "unknown"];
  const [word, kind] = [["wrong", "wrong"], ["right", "right"]][right] ?? unknown;
  return el("span", { class: `badge ${kind}` }, word);
}

function settings(values) {
  return el("details", { class: "card" }, el("summary", {}, "The run's config"), el("pre", { tabindex: "0" }, values.config));
}
