// Two runs side by side: A is this run, B the other one.

import { card, count, el, heading, number, percent, svg } from "./dom.js";
import { intervals, lineChart, scale } from "./charts.js";
import { verdictOf } from "./overview.js";
import { promptOf, rolloutOf, rolloutText } from "./rollout.js";
import { isolated, legend } from "./tokens.js";

export function compareView(values, parameters) {
  const other = values.comparison;
  const named = (letter, name, method) => el("span", { class: `run-name run-${letter === "A" ? 0 : 1}` }, el("b", {}, letter), " ", isolated(name), ` (${method})`);
  return el("div", { class: "view" },
    heading("Two runs side by side"),
    el("p", { class: "pair" }, named("A", values.name, values.method), " ", named("B", other.name, other.method)),
    accuracies(values, other), differences(other.differences),
    el("div", { class: "charts" }, values.curves.map((curve) => {
      const theirs = other.curves.find((one) => one.name === curve.name);
      return theirs ? lineChart([curve, theirs], [values.steps, other.steps]) : lineChart([curve], [values.steps]);
    })),
    prompts(other, parameters, [values.method, other.method]));
}

function accuracies(values, other) {
  const ends = (letter, all) => [...all.slice(0, 1), ...all.slice(1).slice(-1)]
    .map((row, place) => ({ ...row, label: `${letter} ${row.label}`, isLast: place === 1 }));
  const rows = [...ends("A", values.accuracy), ...ends("B", other.accuracy)];
  return rows.length === 0 ? null : card("Accuracy on held-out problems", intervals(rows, rows.map((row) => `${row.label} ${percent(row.share, 1)}`).join(", ")));
}

function differences(rows) {
  if (rows.length === 0) return null;
  const show = (row, value) => (row.unit === "share" ? percent(value, 1) : number(value));
  const points = (value) => number(100 * value, 1);
  const signed = (row, value) => `${value > 0 ? "+" : ""}${row.unit === "share" ? points(value) : number(value)}`;
  return card("B minus A",
    el("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": "Table of differences" }, el("table", {},
      el("thead", {}, el("tr", {}, ["", "A", "B", "difference, 95 %", "", "pairs"].map((name, i) => (name ? el("th", { scope: "col" }, name) : el("td", { "aria-hidden": i === 4 ? "true" : null }))))),
      el("tbody", {}, rows.map((row) => el("tr", {},
        el("th", { scope: "row" }, row.label, " ", el("small", {}, row.unit === "share" ? "" : row.unit)),
        el("td", {}, show(row, row.a)), el("td", {}, show(row, row.b)),
        el("td", {}, `${signed(row, row.difference)} [${signed(row, row.low)}, ${signed(row, row.high)}]${row.unit === "share" ? " points" : ""}`),
        el("td", {}, whisker(row)),
        el("td", {}, row.pairs === null ? row.how : `${row.pairs.toLocaleString("en-US")} ${row.how.replace("paired by ", "")}`)))))),
    el("p", { class: "soft" }, "Intervals of paired differences are Student's over prompts or steps. Steps follow one another, so their intervals are too narrow. That of the accuracy takes both runs as independent samples."));
}

// The interval on a line through 0.
function whisker(row) {
  const most = Math.max(Math.abs(row.low), Math.abs(row.high), 1e-12);
  const x = scale(-most, most, 6, 134);
  const isClear = row.low > 0 || row.high < 0;
  return svg("svg", { class: "whisker", viewBox: "0 0 140 18", width: 140, height: 18, role: "img", "aria-label": isClear ? "The interval excludes 0" : "The interval includes 0" },
    svg("line", { class: "grid", x1: x(0), x2: x(0), y1: 1, y2: 17 }),
    svg("line", { class: `interval ${isClear ? "last" : "first"}`, x1: x(row.low), x2: x(row.high), y1: 9, y2: 9 }),
    svg("circle", { class: `point ${isClear ? "last" : "first"}`, cx: x(row.difference), cy: 9, r: 4 }));
}

function prompts(other, parameters, methods) {
  const rows = other.prompts;
  if (rows.length === 0) return el("p", { class: "soft" }, "The two runs have recorded no rollouts of the same prompts.");
  const holder = el("div", { class: "columns beside" });
  const show = async (promptId) => {
    const row = rows.find((one) => one.prompt_id === promptId) ?? rows[0];
    history.replaceState(null, "", `#compare?prompt=${encodeURIComponent(row.prompt_id)}`);
    const [own, theirs] = await Promise.all([side("A", row.a, ""), side("B", row.b, "b/")]);
    holder.replaceChildren(own, theirs);
  };
  const chosen = parameters.get("prompt") ?? rows[0].prompt_id;
  const label = (row) => `${row.prompt_id}${row.right_a === null ? "" : `: A ${percent(row.right_a)} right, B ${percent(row.right_b)}`}`;
  show(chosen);
  return card(`Rollouts of the same prompt (${count(rows.length, "prompt")})`,
    el("label", { class: "field wide" }, el("span", {}, "Prompt"), el("select", { on: { change: (event) => show(event.target.value) } },
      rows.map((row) => el("option", { value: row.prompt_id, selected: row.prompt_id === chosen }, label(row))))),
    legend({ hasWindows: false, hasTakeovers: methods.includes("takeover") }), holder);
}

async function side(letter, places, prefix) {
  const found = (await Promise.all(places.map(([step, id]) => rolloutOf(step, id, prefix)))).filter(Boolean);
  return el("div", { class: `side run-${letter === "A" ? 0 : 1}` }, el("h4", {}, letter),
    found.length === 0 ? el("p", { class: "soft" }, "Its tokens are not on this page.") : null,
    found.slice(0, 8).map((rollout, i) => el("div", {},
      i === 0 ? promptOf(rollout) : null,
      el("p", { class: "soft" }, `Step ${rollout.step} `, verdictOf(rollout.right, rollout.finish)), rolloutText(rollout))));
}
