// The transport plan between two continuations, and the soft target of each position.

import { el, number, percent, svg } from "./dom.js";
import { isolated, plain } from "./tokens.js";

const ROW = 24;
const WIDTH = 220;
const THICKEST = 15; // of a link that carries all of its row's mass
const MOST_SHOWN = 8; // tokens of a soft target

export function planView({ student, teacher, plan }) {
  const target = el("div", { class: "target", "aria-live": "polite" });
  const links = linksOf(student, teacher, plan);
  const left = column(student, "Student", "student", true);
  const right = column(teacher, "Teacher", "teacher");
  const view = el("div", { class: "plan" }, target, el("div", { class: "plan-columns" }, left, links.drawing, right));
  const rowsLeft = [...left.querySelectorAll(".plan-token")];
  const rowsRight = [...right.querySelectorAll(".plan-token")];
  const pick = (row) => {
    links.pick(row);
    rowsLeft.forEach((element, i) => {
      element.setAttribute("aria-pressed", i === row ? "true" : "false");
      element.tabIndex = i === row ? 0 : -1;
    });
    const weights = new Map(plan.rows[row].entries.map((entry) => [entry.column, entry.weight]));
    rowsRight.forEach((element, i) => element.style.setProperty("--share", weights.get(i) ?? 0));
    rowsRight.forEach((element, i) => element.classList.toggle("hit", (weights.get(i) ?? 0) > 0.02));
    target.replaceChildren(...targetOf(row, student, teacher, plan));
  };
  rowsLeft.forEach((element, i) => {
    element.addEventListener("pointerenter", () => pick(i));
    element.addEventListener("focus", () => pick(i));
    element.addEventListener("click", () => pick(i));
    element.addEventListener("keydown", (event) => {
      const to = { ArrowDown: i + 1, ArrowUp: i - 1, Home: 0, End: rowsLeft.length - 1 }[event.key];
      if (to === undefined || !rowsLeft[to]) return;
      event.preventDefault();
      rowsLeft[to].focus();
    });
  });
  pick(0);
  return view;
}

function column(tokens, title, who, areButtons = false) {
  const items = tokens.map((text, i) => (areButtons
    ? el("button", { type: "button", class: "plan-token", "aria-pressed": "false", tabindex: "-1", "aria-label": `${title} token ${i + 1}: ${plain(text).trim() || "blank"}` }, isolated(text))
    : el("div", { class: "plan-token" }, isolated(text))));
  return el("div", { class: `plan-column ${who}` }, el("h4", {}, title), items);
}

// Links from row to column: `data-mass` is the plan's entry.
function linksOf(student, teacher, plan) {
  const height = Math.max(student.length, teacher.length) * ROW;
  const drawing = svg("svg", {
    class: "links", style: `height:${height}px`, viewBox: `0 0 ${WIDTH} ${height}`, role: "img",
    preserveAspectRatio: "none",
    "aria-label": "Links between tokens, as thick as the mass that the transport plan moves",
  });
  const ofRow = plan.rows.map((row, i) => row.entries.map((entry) => {
    const y1 = (i + 0.5) * ROW;
    const y2 = (entry.column + 0.5) * ROW;
    const link = svg("path", {
      class: "link",
      d: `M0 ${y1}C${WIDTH / 2} ${y1} ${WIDTH / 2} ${y2} ${WIDTH} ${y2}`,
      "stroke-width": Math.max(0.4, THICKEST * entry.weight).toFixed(2),
      "data-row": i, "data-column": entry.column, "data-mass": entry.mass,
    });
    drawing.append(link);
    return link;
  }));
  let picked = [];
  return {
    drawing,
    pick(row) {
      picked.forEach((link) => link.classList.remove("picked"));
      picked = ofRow[row] ?? [];
      picked.forEach((link) => {
        link.classList.add("picked");
        drawing.append(link); // above the others
      });
    },
  };
}

// What the learner is taught at a position: the same token twice counts together.
export function softTarget(row, teacher, plan) {
  const weights = new Map();
  for (const { column: place, weight } of plan.rows[row].entries) {
    weights.set(teacher[place], (weights.get(teacher[place]) ?? 0) + weight);
  }
  return [...weights].sort((a, b) => b[1] - a[1]);
}

function targetOf(row, student, teacher, plan) {
  const all = softTarget(row, teacher, plan);
  const shown = all.slice(0, MOST_SHOWN);
  const rest = all.slice(MOST_SHOWN).reduce((sum, [, weight]) => sum + weight, 0);
  return [
    el("p", {}, "Where the student says ", isolated(student[row], "token student"),
      ` (position +${row}, mass ${number(plan.rows[row].mass)}), the soft target is`),
    el("ul", { class: "weights" },
      shown.map(([text, weight]) => weightRow(text, weight, "")),
      rest > 0.0005 ? el("li", { class: "soft" }, `${all.length - MOST_SHOWN} others ${percent(rest, 1)}`) : null),
  ];
}

export function weightRow(text, weight, className) {
  return el("li", { class: className },
    isolated(text, "token"),
    el("span", { class: "weight-bar", "aria-hidden": "true" }, el("span", { style: `width:${(100 * weight).toFixed(1)}%` })),
    el("span", { class: "weight-text" }, percent(weight, 1)));
}

// One plan of a block of plans, by its place in it.
export function planAt(columns, place) {
  const begins = columns.planStarts;
  const first = begins.row[place];
  const rows = [];
  for (let row = first; row < begins.row[place + 1]; row += 1) {
    const entries = [];
    const mass = columns.row_mass[row];
    for (let i = begins.entry[row]; i < begins.entry[row + 1]; i += 1) {
      const weight = columns.weight[i] / 65535;
      entries.push({ column: columns.column[i], weight, mass: mass * weight });
    }
    rows.push({ mass, entries });
  }
  return { rows };
}
