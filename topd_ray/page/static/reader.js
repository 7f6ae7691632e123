// The reader: a list of windows or rollouts beside the one that is looked at.

import { block, ofThousandths, spell, starts } from "./data.js";
import { count, el, number, svg } from "./dom.js";
import { criteriaOf, filterForm } from "./filters.js";
import { VirtualList } from "./list.js";
import { verdictOf } from "./overview.js";
import { planAt, planView, weightRow } from "./plan.js";
import { promptOf, rolloutOf, rolloutText } from "./rollout.js";
import { oneLine, selected } from "./rows.js";
import { forkWords } from "./takeovers.js";
import { isolated, legend, token } from "./tokens.js";

const ROW_HEIGHT = 58;
const VERDICTS = ["control", "alarm", "divergent", "unsolved"];

export class Reader {
  constructor(values, rows, parameters) {
    this.values = values;
    this.rows = rows;
    this.parameters = parameters;
    this.status = el("p", { class: "status", role: "status" });
    this.detail = el("article", { class: "detail", "aria-label": "The window that is open", tabindex: "-1" });
    this.list = new VirtualList({
      label: "Windows and rollouts",
      rowHeight: ROW_HEIGHT,
      draw: (row) => (row.position === undefined ? this.rolloutRow(row) : this.windowRow(row)),
      choose: (row) => this.open(row),
    });
    this.form = el("div");
    this.element = el("div", { class: "view reader" },
      el("div", { class: "reader-side" }, this.form, this.status, this.list.element,
        el("p", { class: "hints" }, el("kbd", {}, "↑"), el("kbd", {}, "↓"), " walk, ", el("kbd", {}, "["), el("kbd", {}, "]"), " within the rollout, ", el("kbd", {}, "/"), " search")),
      this.detail);
    this.element.addEventListener("keydown", (event) => this.key(event));
    this.draw();
  }

  draw() {
    const criteria = criteriaOf(this.parameters, this.rows);
    this.show = criteria.show;
    this.form.replaceChildren(filterForm(this.values, this.rows, criteria, (found) => this.filter(found)));
    this.select();
    const key = this.parameters.get("w") ?? this.parameters.get("r");
    const source = this.show === "rollouts" ? this.rows.rollouts : this.rows.windows;
    const row = key === null ? undefined : source.find((one) => one.key === key);
    if (row !== undefined) this.open(row, false);
    else if (this.list.rows.length > 0) this.open(this.list.rows[0], false);
    else this.detail.replaceChildren(this.nothing());
  }

  // New steps have come: the list grows, what is open stays.
  grow() {
    this.select();
  }

  filter(found) {
    const began = performance.now();
    const before = this.show;
    for (const name of ["w", "r"]) {
      if (this.parameters.has(name)) found.set(name, this.parameters.get(name));
    }
    this.parameters = found;
    this.write();
    if (criteriaOf(found, this.rows).show !== before) {
      this.parameters.delete("w");
      this.parameters.delete("r");
      this.draw();
      this.form.querySelector("input[name=show]:checked")?.focus();
    } else this.select();
    this.element.dataset.filterMs = (performance.now() - began).toFixed(1);
  }

  select() {
    const criteria = criteriaOf(this.parameters, this.rows);
    const found = selected(this.rows, criteria);
    const all = criteria.show === "rollouts" ? this.rows.rollouts : this.rows.windows;
    this.status.textContent = found.length === all.length
      ? count(all.length, criteria.show.slice(0, -1))
      : `${found.length.toLocaleString("en-US")} of ${count(all.length, criteria.show.slice(0, -1))}`;
    this.list.set(found, this.row?.key);
  }

  write() {
    const text = this.parameters.toString();
    history.replaceState(null, "", text ? `#reader?${text}` : "#reader");
  }

  nothing() {
    return el("p", { class: "soft" }, this.rows.windows.length + this.rows.rollouts.length === 0
      ? "This run has recorded neither windows nor rollouts." : "Nothing meets the filter.");
  }

  windowRow(row) {
    const { student, teacher } = this.rows.continuations(row);
    return el("div", { class: `row verdict-${VERDICTS[row.verdict]}` },
      el("div", { class: "row-line" },
        el("span", { class: `dot ${VERDICTS[row.verdict]}`, title: this.values.verdicts[row.verdict] }),
        el("span", { class: "unseen" }, this.values.verdicts[row.verdict]),
        isolated(oneLine(student.slice(0, 14).join("")), "row-text student")),
      el("div", { class: "row-line second" }, isolated(oneLine(teacher.slice(0, 14).join("")), "row-text teacher")),
      el("div", { class: "row-numbers" },
        el("span", {}, `step ${row.step}`), el("span", {}, `loss ${number(row.loss, 2)}`), el("span", {}, `D_OT ${number(row.d_ot, 3)}`)));
  }

  rolloutRow(row) {
    const isTaken = row.takeover >= 0;
    return el("div", { class: "row" },
      el("div", { class: "row-line" }, verdictOf(row.right, row.finish), " ", isolated(oneLine(row.question), "row-text")),
      el("div", { class: "row-line second" }, isTaken ? el("span", { class: "row-text" }, forkWords(row.ownWord, row.teacherWord)) : isolated(oneLine(row.beginning), "row-text")),
      el("div", { class: "row-numbers" },
        el("span", {}, `step ${row.step}`), el("span", {}, `${row.length} tokens`),
        isTaken ? el("span", {}, `fork at ${row.takeover}`)
          : this.rows.windows.length > 0 ? el("span", {}, `${row.divergent} of ${row.candidates} real`) : null));
  }

  async open(row, isWritten = true) {
    this.row = row;
    const name = row.position === undefined ? "r" : "w";
    this.parameters.delete(name === "r" ? "w" : "r");
    this.parameters.set(name, row.key);
    if (isWritten) this.write();
    if (this.list.rows[this.list.at] !== row) this.list.set(this.list.rows, row.key);
    const [rollout, plans] = await Promise.all([rolloutOf(row.step, row.rollout), block(`plans/${row.step}`)]);
    if (this.row !== row) return; // another one was opened meanwhile
    this.detail.replaceChildren(...(name === "w" ? this.windowDetail(row, rollout, plans) : this.rolloutDetail(row, rollout)));
    this.detail.dataset.key = row.key;
    this.detail.scrollTop = 0;
    const chosen = this.detail.querySelector(".rollout .chosen");
    if (chosen) {
      const box = chosen.closest(".rollout");
      box.scrollTop = chosen.offsetTop - box.offsetTop - box.clientHeight / 2;
    }
  }

  siblings(row) {
    return this.rows.windows.filter((one) => one.step === row.step && one.rollout === row.rollout)
      .sort((a, b) => a.position - b.position);
  }

  walk(by) {
    if (this.row === undefined) return;
    const all = this.siblings(this.row);
    const at = this.row.position === undefined ? (by > 0 ? -1 : all.length) : all.indexOf(this.row);
    const next = all[at + by];
    if (next !== undefined) this.open(next);
  }

  key(event) {
    if (event.target.matches("input, select, textarea")) return;
    if (event.key === "[") this.walk(-1);
    else if (event.key === "]") this.walk(1);
    else if (event.key === "j") this.list.step(1);
    else if (event.key === "k") this.list.step(-1);
    else if (event.key === "/") {
      event.preventDefault();
      this.form.querySelector("input[type=search]").focus();
    }
  }

  head(row, rollout, title) {
    const all = this.siblings(row);
    return el("header", { class: "detail-head" },
      el("div", {},
        el("h2", {}, title),
        el("p", { class: "soft" }, `Step ${row.step}, rollout `, isolated(row.rollout),
          row.position === undefined ? "" : `, token ${row.position}`, " ",
          rollout === null ? null : verdictOf(rollout.right, rollout.finish),
          rollout !== null && rollout.answer ? el("span", {}, " answer ", isolated(rollout.answer, "token")) : null)),
      this.rows.windows.length === 0 ? null : el("div", { class: "walk" },
        el("button", { type: "button", "aria-label": "Previous window of the rollout", on: { click: () => this.walk(-1) } }, "‹"),
        el("span", { class: "soft" }, count(all.length, "window")),
        el("button", { type: "button", "aria-label": "Next window of the rollout", on: { click: () => this.walk(1) } }, "›")));
  }

  windowDetail(row, rollout, plans) {
    const { student, teacher } = this.rows.continuations(row);
    const names = { control: "Control", alarm: "False alarm", divergent: "Real divergence", unsolved: "Unsolved transport" };
    const plan = row.plan < 0 || plans === null ? null : planAt(withStarts(plans), row.plan);
    return [
      this.head(row, rollout, names[VERDICTS[row.verdict]]),
      gauge(row),
      rollout === null ? el("p", { class: "soft" }, "The rollout's tokens are not recorded.") : null,
      ...(rollout === null ? [] : [
        promptOf(rollout), legend(this.marks(rollout)),
        rolloutText(rollout, { windows: this.siblings(row), chosen: row.position, open: (one) => this.open(one) })]),
      row.resampled ? el("p", { class: "soft" }, "The student's continuation was sampled afresh from this position.") : null,
      el("div", { class: "columns" }, continuation("The student goes on", student, teacher, "student"), continuation("The teacher goes on", teacher, student, "teacher")),
      plan === null ? null : this.tops(row, plans, student, teacher),
      plan === null ? el("p", { class: "soft" }, "No transport plan is recorded for this window: a step keeps those of its recorded rollouts, candidates before controls.")
        : el("section", { class: "card" }, el("h3", {}, "The transport plan between them"),
          el("p", { class: "soft" }, "Links are as thick as the mass they carry. Move over a token of the student, or go there with Tab and the arrow keys, to see what it is taught."),
          planView({ student, teacher, plan })),
    ].filter(Boolean);
  }

  tops(row, plans, student, teacher) {
    const columns = withStarts(plans);
    const who = (name, title, first) => {
      const begins = columns.planStarts[name];
      const from = begins[row.plan];
      const until = begins[row.plan + 1];
      const texts = spell(columns, columns[`${name}_top_ids`].subarray(from, until));
      const weights = Array.from(columns[`${name}_top_log`].subarray(from, until), (value) => Math.exp(-ofThousandths(value)));
      return el("section", { class: `card top ${name}` }, el("h3", {}, title),
        texts.length === 0 ? el("p", { class: "soft" }, "Not known with this teacher's signal.")
          : topList(texts, weights, first));
    };
    return el("div", { class: "columns" },
      who("student", "The student's likeliest here", student[0]), who("teacher", "The teacher's likeliest here", teacher[0]));
  }

  marks(rollout) {
    return { hasWindows: this.rows.windows.length > 0, hasTakeovers: rollout.takeoverAt >= 0 };
  }

  rolloutDetail(row, rollout) {
    if (rollout === null) return [this.head(row, rollout, "Rollout"), el("p", { class: "soft" }, "Its tokens are not on this page.")];
    return [
      this.head(row, rollout, "Rollout"),
      el("p", { class: "soft" }, `${count(row.length, "token")}, mean token loss ${number(row.loss)}`
        + (this.rows.windows.length === 0 ? "" : `; ${row.divergent} of ${count(row.candidates, "candidate")} are real divergences`)
        + `. Sampled by version ${rollout.version} of the weights.`),
      promptOf(rollout), legend(this.marks(rollout)),
      rolloutText(rollout, { windows: this.siblings(row), open: (one) => this.open(one) }),
    ];
  }
}

function withStarts(columns) {
  columns.planStarts ??= {
    row: starts(columns.num_rows),
    entry: starts(columns.num_entries),
    student: starts(columns.num_student_top),
    teacher: starts(columns.num_teacher_top),
  };
  return columns;
}

// The likeliest tokens; those below a thousandth are named in one line.
function topList(texts, weights, first) {
  const isShown = (text, i) => weights[i] >= 0.001 || text === first;
  const rest = texts.filter((text, i) => !isShown(text, i));
  return el("ul", { class: "weights" },
    texts.map((text, i) => (isShown(text, i) ? weightRow(text, weights[i] || 0, text === first ? "taken" : "") : null)),
    rest.length === 0 ? null : el("li", { class: "soft" }, "below 0.1 %: ", rest.map((text) => [isolated(text, "token"), " "])));
}

function continuation(title, tokens, others, who) {
  let same = 0;
  while (same < tokens.length && tokens[same] === others[same]) same += 1;
  return el("section", { class: `card continuation ${who}` }, el("h3", {}, title),
    el("p", {}, tokens.map((text, i) => token(text, i === same ? "differs" : i < same ? "same" : ""))));
}

// D_OT on a line with the threshold of its step.
function gauge(row) {
  const most = Math.max(row.threshold * 2.2 || 0, row.d_ot * 1.15 || 0, 0.05);
  const width = 600;
  const x = (value) => 8 + (value / most) * (width - 16);
  const isKnown = Number.isFinite(row.d_ot);
  return el("div", { class: "gauge" },
    el("dl", {},
      el("dt", {}, "token loss"), el("dd", {}, `${number(row.loss)} nats`),
      el("dt", {}, "D_OT"), el("dd", {}, number(row.d_ot)),
      el("dt", {}, "threshold"), el("dd", {}, number(row.threshold))),
    isKnown && Number.isFinite(row.threshold) ? svg("svg", { viewBox: `0 0 ${width} 22`, role: "img", "aria-label": `D_OT ${number(row.d_ot)}, threshold ${number(row.threshold)}` },
      svg("line", { class: "grid", x1: x(0), x2: x(most), y1: 11, y2: 11 }),
      svg("rect", { class: "beyond", x: x(row.threshold), y: 7, width: x(most) - x(row.threshold), height: 8 }),
      svg("line", { class: "threshold", x1: x(row.threshold), x2: x(row.threshold), y1: 1, y2: 21 }),
      svg("circle", { class: `point verdict-${VERDICTS[row.verdict]}`, cx: x(row.d_ot), cy: 11, r: 6 })) : null);
}
