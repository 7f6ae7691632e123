// Where the time went: what every actor did in a step, and what it waited for.

import { block } from "./data.js";
import { card, count, el, heading, number, percent, svg } from "./dom.js";
import { scale, spread, ticks } from "./charts.js";
import { missing } from "./overview.js";

const WIDTH = 1100;
const LEFT = 96;
const LANE = 24;
const WAITS = {
  step: "the optimizer and new weights",
  queue: "its turn in the queue",
  roll_out: "rollouts",
  rewrite: "rewrites",
  score: "the teacher's scores",
  continue_from: "the teacher's windows",
  resample: "the student's windows",
  probe: "the transport",
  take_over: "takeovers",
  accumulate: "the learner",
};

export function timeView(values, parameters) {
  const steps = values.timeline_steps;
  const holder = el("div", { class: "lanes-holder" });
  const step = Number(parameters.get("step")) || steps[Math.min(steps.length - 1, Math.floor(steps.length / 2))];
  const choose = async (chosen) => {
    history.replaceState(null, "", `#time?step=${chosen}`);
    holder.replaceChildren(await lanes(chosen));
  };
  if (steps.length > 0) choose(step);
  return el("div", { class: "view" }, steps.length === 0 ? missing(values) : null,
    heading("Time", "Which actor did what, and what it waited for meanwhile"),
    steps.length === 0 ? el("p", { class: "soft" }, "No calls are recorded.") : card("The actors in one step",
      el("label", { class: "field" }, el("span", {}, "Step"), el("select", { on: { change: (event) => choose(Number(event.target.value)) } },
        steps.map((one) => el("option", { value: one, selected: one === step }, one)))), holder),
    shares(values));
}

async function lanes(step) {
  const columns = await block(`timeline/${step}`);
  if (columns === null) return el("p", { class: "soft" }, "The calls of this step are not on this page.");
  const actors = [...new Set(columns.actor)].sort(byKind);
  const stages = [...new Set(columns.call)];
  const [low, high] = [Math.min(0, spread(columns.began_s)[0]), spread(columns.ended_s)[1]];
  const x = scale(low, high, LEFT, WIDTH - 8);
  const rows = rowsOf(columns, actors);
  const height = actors.length * LANE + 26;
  const drawing = svg("svg", { class: "lanes", viewBox: `0 0 ${WIDTH} ${height}`, role: "img", "aria-label": `${count(columns.actor.length, "call")} of ${count(actors.length, "actor")} in step ${step}, ${number(high - low, 1)} seconds` });
  for (const at of ticks(low, high, 8)) {
    drawing.append(svg("line", { class: "grid", x1: x(at), x2: x(at), y1: 0, y2: height - 22 }),
      svg("text", { class: "tick", x: x(at), y: height - 6, "text-anchor": "middle" }, `${number(at, 1)} s`));
  }
  actors.forEach((actor, lane) => drawing.append(svg("text", { class: "row-label", x: LEFT - 8, y: lane * LANE + 16, "text-anchor": "end" }, actor)));
  const readout = el("p", { class: "status", role: "status" }, "Move over a call to read it.");
  columns.actor.forEach((actor, i) => {
    const stage = stages.indexOf(columns.call[i]);
    const [row, numRows] = rows[i];
    const thick = (LANE - 6) / numRows;
    const bar = svg("rect", {
      class: `call stage-${stage % 8}`, x: x(columns.began_s[i]), y: actors.indexOf(actor) * LANE + 3 + row * thick, rx: 2,
      width: Math.max(1, x(columns.ended_s[i]) - x(columns.began_s[i])), height: thick - 1,
    });
    const tokens = columns.num_tokens[i] > 0 ? `, ${count(columns.num_tokens[i], "token")}` : "";
    const text = `${actor} ${columns.call[i]}: ${number(columns.began_s[i], 2)} to ${number(columns.ended_s[i], 2)} s, ${number(columns.ended_s[i] - columns.began_s[i], 2)} s${tokens}`;
    bar.append(svg("title", {}, text));
    bar.addEventListener("pointerenter", () => { readout.textContent = text; });
    drawing.append(bar);
  });
  return el("div", {}, el("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": "Time line" }, drawing), readout,
    el("p", { class: "keys" }, stages.map((name, i) => el("span", { class: `key stage-${i % 8}` }, name))));
}

// The row of each call in its actor's lane, and how many there are: calls that overlap
// lie below one another.
function rowsOf(columns, actors) {
  const ends = new Map(actors.map((actor) => [actor, []]));
  const order = columns.actor.map((_, i) => i).sort((a, b) => columns.began_s[a] - columns.began_s[b]);
  const found = [];
  for (const i of order) {
    const free = ends.get(columns.actor[i]);
    let row = free.findIndex((end) => end <= columns.began_s[i] + 1e-4);
    if (row < 0) row = free.length;
    free[row] = columns.ended_s[i];
    found[i] = row;
  }
  return found.map((row, i) => [row, ends.get(columns.actor[i]).length]);
}

function byKind(a, b) {
  const order = ["rollout", "teacher", "prober", "learner"];
  const place = (actor) => {
    const at = order.indexOf(actor.split("[")[0]);
    return at < 0 ? order.length : at;
  };
  return place(a) - place(b) || a.localeCompare(b, undefined, { numeric: true });
}

function shares(values) {
  if (values.times.length === 0) return null;
  return card("Busy, and waiting for what",
    el("ul", { class: "shares" }, values.times.map((kind) => {
      const waits = kind.waits.filter((wait) => wait.share >= 0.005);
      const named = waits.slice(0, 3).map((wait) => `${percent(wait.share)} for ${WAITS[wait.on] ?? wait.on.replaceAll("_", " ")}`);
      return el("li", {},
        el("b", {}, kind.actor), el("span", { class: "share-bar", "aria-hidden": "true" },
          el("span", { class: "busy", style: `width:${(100 * kind.busy).toFixed(1)}%` }),
          ...waits.map((wait, i) => el("span", { class: `wait wait-${i % 4}`, style: `width:${(100 * wait.share).toFixed(1)}%` }))),
        el("span", {}, `busy ${percent(kind.busy)}${named.length ? `; waits ${named.join(", ")}` : ""}`));
    })),
    el("p", { class: "soft" }, "Shares of the wall clock of all steps but the first, over the actors of a kind."));
}
