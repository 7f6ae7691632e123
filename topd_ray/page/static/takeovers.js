// Where the teacher took over, and how those rollouts ended.

import { card, count, el, number, percent, svg } from "./dom.js";
import { figure, frame, intervals, spread } from "./charts.js";
import { isolated } from "./tokens.js";

const SIZE = { width: 430, height: 270, margin: { bottom: 40, left: 44 } };

export function takeoverFigures(data) {
  return el("div", { class: "figures" }, ends(data), positions(data), kinds(data), words(data));
}

function ends(data) {
  if (data.ends.length === 0) {
    return figure("Right answers", "", el("p", { class: "soft" }, "No response is graded."));
  }
  const rows = data.ends.map((row) => ({ ...row, isLast: row.label === "teacher's end" }));
  return figure("Right answers", "95 % intervals (Wilson)",
    intervals(rows, rows.map((row) => `${row.label} ${percent(row.share, 1)} of ${row.count}`).join(", ")),
    el("p", { class: "soft" }, "Rollouts that were left alone, and those that were taken over: with the student's own end, and with the teacher's. A fork that is a real error has a low share in the second row; a teacher that goes on well from a student's beginning has a high one in the third."
      + (rows.some((row) => row.label === "own end") ? "" : " The student was stopped at its forks, so that its own ends are not known.")));
}

function positions(data) {
  const { edges, counts, median } = data.positions;
  const [, most] = spread(counts);
  const { drawing, x, y, height, margin } = frame([0, edges[edges.length - 1]], [0, most * 1.08], {
    ...SIZE, xLabel: "token of the response", label: `Forks by position; median ${number(median, 0)}`,
  });
  let d = "";
  counts.forEach((number_, bar) => {
    if (number_ === 0) return;
    d += `M${(x(edges[bar]) + 0.5).toFixed(1)} ${y(0).toFixed(1)}V${y(number_).toFixed(1)}H${(x(edges[bar + 1]) - 0.5).toFixed(1)}V${y(0).toFixed(1)}Z`;
  });
  drawing.append(
    svg("path", { class: "part kind-0", d }),
    svg("line", { class: "threshold", x1: x(median), x2: x(median), y1: 10, y2: height - margin.bottom }));
  return figure("Where the teacher takes over", `${percent(data.taken)} of ${count(data.num_rollouts, "rollout")}`, drawing,
    el("p", { class: "soft" }, `Dashed: the median, token ${number(median, 0)}.`));
}

function kinds(data) {
  const right = (one) => (one.share === null ? "–" : el("span", {}, percent(one.share), " ", el("small", {}, `[${percent(one.low)}, ${percent(one.high)}]`)));
  const names = ["the student's token", "forks", "its probability, student", "its probability, teacher", "right with the teacher's end"];
  return card("Forks by kind of token",
    el("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": "Table of kinds of tokens at forks" }, el("table", {},
      el("thead", {}, el("tr", {}, names.map((name) => el("th", { scope: "col" }, name)))),
      el("tbody", {}, data.kinds.map((kind, place) => el("tr", {},
        el("th", { scope: "row" }, el("span", { class: `key kind-${place}` }, kind.name)),
        el("td", {}, kind.count.toLocaleString("en-US")), el("td", {}, number(kind.student)), el("td", {}, number(kind.teacher)),
        el("td", {}, right(kind.right))))))),
    el("p", { class: "soft" }, "Probabilities are medians."));
}

function words(data) {
  const rest = data.num_pairs - data.words.length;
  return card("Words that are replaced most often",
    el("ul", { class: "pairs" }, data.words.map((pair) => el("li", {}, forkWords(pair.student, pair.teacher), " ", el("span", { class: "soft" }, count(pair.count, "time"))))),
    rest > 0 ? el("p", { class: "soft" }, `${count(rest, "other pair")} are rarer.`) : null);
}

// The student's word at a fork, and the teacher's in its place.
export function forkWords(student, teacher) {
  return el("span", { class: "fork-words" },
    el("span", { class: "unseen" }, "the student's "), isolated(student.trim() || student, "token student"),
    el("span", { "aria-hidden": "true" }, " → "), el("span", { class: "unseen" }, ", the teacher's "),
    isolated(teacher.trim() || teacher, "token teacher"));
}
