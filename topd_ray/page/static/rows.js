// Every window and rollout of the run as columns that filter and order quickly.

import { block, starts } from "./data.js";
import { plain } from "./tokens.js";

const UNKNOWN = 2;

export class Rows {
  constructor() {
    this.steps = [];
    this.blocks = new Map();
    this.windows = [];
    this.rollouts = [];
    this.texts = new Map();
    this.hasPlans = false;
    this.hasTakeovers = false;
  }

  // Loads the lists of the steps that are not here yet; returns how many there were.
  async load(steps) {
    const fresh = steps.filter((step) => !this.blocks.has(step));
    for (const step of fresh) {
      const columns = await block(`list/${step}`);
      if (columns !== null) this.take(step, columns);
    }
    return fresh.length;
  }

  take(step, columns) {
    this.blocks.set(step, columns);
    this.steps.push(step);
    const rights = new Map();
    const questions = new Map();
    (columns.r_rollout_ids ?? []).forEach((id, place) => {
      rights.set(id, columns.r_right[place]);
      questions.set(id, columns.r_questions[place]);
    });
    if (columns.rollout_ids) this.takeWindows(step, columns, rights, questions);
    if (columns.r_rollout_ids) this.takeRollouts(step, columns);
    this.steps.sort((a, b) => a - b);
  }

  takeWindows(step, columns, rights, questions) {
    columns.studentStarts = starts(columns.num_student);
    columns.teacherStarts = starts(columns.num_teacher);
    let plan = 0;
    for (let i = 0; i < columns.position.length; i += 1) {
      const id = columns.rollout_ids[columns.rollout[i]];
      this.windows.push({
        step,
        place: i,
        rollout: id,
        position: columns.position[i],
        verdict: columns.verdict[i],
        group: columns.group[i],
        kind: columns.kind[i],
        loss: columns.loss[i],
        d_ot: columns.d_ot[i],
        threshold: columns.threshold[i],
        right: rights.get(id) ?? UNKNOWN,
        question: questions.get(id) ?? "",
        plan: columns.has_plan[i] ? plan : -1,
        resampled: columns.resampled[i] === 1,
        key: `${step}/${id}/${columns.position[i]}`,
      });
      plan += columns.has_plan[i];
    }
    this.hasPlans ||= plan > 0;
  }

  takeRollouts(step, columns) {
    const divergent = new Map();
    for (const window of this.windows) {
      if (window.step !== step) continue;
      const [high, real] = divergent.get(window.rollout) ?? [0, 0];
      divergent.set(window.rollout, [high + (window.group === 0), real + (window.verdict === 2)]);
    }
    columns.r_rollout_ids.forEach((id, place) => {
      const [candidates, real] = divergent.get(id) ?? [0, 0];
      this.hasTakeovers ||= columns.r_takeover[place] >= 0;
      this.rollouts.push({
        step,
        place,
        rollout: id,
        prompt: columns.r_prompt_ids[place],
        right: columns.r_right[place],
        length: columns.r_num_tokens[place],
        loss: columns.r_mean_loss[place],
        finish: columns.r_finish[place],
        candidates,
        divergent: real,
        question: columns.r_questions[place],
        beginning: columns.r_beginnings[place],
        takeover: columns.r_takeover[place],
        ownWord: columns.r_own_words[place],
        teacherWord: columns.r_teacher_words[place],
        key: `${step}/${id}`,
      });
    });
  }

  get hasRolloutsAlone() {
    return this.windows.length === 0 && this.rollouts.length > 0;
  }

  lastRollouts(most) {
    const last = this.steps[this.steps.length - 1];
    return this.rollouts.filter((row) => row.step === last).slice(0, most);
  }

  // Texts of both continuations' tokens.
  continuations(window) {
    const columns = this.blocks.get(window.step);
    const cut = (ids, begins) => Array.from(
      ids.subarray(begins[window.place], begins[window.place + 1]),
      (id) => columns.spelling.get(id) ?? "",
    );
    return {
      student: cut(columns.student, columns.studentStarts),
      teacher: cut(columns.teacher, columns.teacherStarts),
    };
  }

  // Small letters of all that a search looks through.
  searchText(row) {
    let text = this.texts.get(row);
    if (text === undefined) {
      if (row.position === undefined) text = `${row.prompt} ${row.question} ${row.beginning}`;
      else {
        const { student, teacher } = this.continuations(row);
        text = `${row.question}\u0000${student.join("")}\u0000${teacher.join("")}\u0000${row.rollout}`;
      }
      text = text.toLowerCase();
      this.texts.set(row, text);
    }
    return text;
  }

  // Builds the texts of a search in small pieces, while nobody waits.
  prepare() {
    const all = [...this.rollouts, ...this.windows];
    let next = 0;
    const some = (deadline) => {
      while (next < all.length && deadline.timeRemaining() > 2) {
        for (const end = Math.min(next + 50, all.length); next < end; next += 1) this.searchText(all[next]);
      }
      if (next < all.length) idle(some);
    };
    idle(some);
  }
}

function idle(run) {
  if (window.requestIdleCallback) window.requestIdleCallback(run);
  else setTimeout(() => run({ timeRemaining: () => 8 }), 20);
}

const ORDERS = {
  loss: (row) => row.loss,
  d_ot: (row) => row.d_ot,
  step: (row) => row.step,
  length: (row) => row.length,
  divergent: (row) => row.divergent,
  position: (row) => row.position,
  fork: (row) => (row.takeover < 0 ? NaN : row.takeover),
};

// Rows that meet all criteria, in the order that is asked for.
export function selected(rows, criteria) {
  const source = criteria.show === "rollouts" ? rows.rollouts : rows.windows;
  const text = (criteria.text ?? "").toLowerCase();
  const tests = [];
  const is = (name, value) => {
    if (value !== "" && value !== undefined) tests.push((row) => row[name] === Number(value));
  };
  const within = (name, low, high) => {
    if (low !== "" && low !== undefined) tests.push((row) => row[name] >= Number(low));
    if (high !== "" && high !== undefined) tests.push((row) => row[name] <= Number(high));
  };
  if (criteria.show !== "rollouts") {
    if (criteria.verdict === "candidates") tests.push((row) => row.group === 0);
    else is("verdict", criteria.verdict);
    is("kind", criteria.kind);
    if (criteria.plan === "recorded") tests.push((row) => row.plan >= 0);
    within("d_ot", criteria.d_min, criteria.d_max);
  } else if (criteria.taken !== "") tests.push((row) => (row.takeover >= 0) === (criteria.taken === "1"));
  is("right", criteria.right);
  is("step", criteria.step);
  within("loss", criteria.l_min, criteria.l_max);
  if (text) tests.push((row) => rows.searchText(row).includes(text));
  const found = source.filter((row) => tests.every((test) => test(row)));
  const value = ORDERS[criteria.order] ?? ORDERS.step;
  const sign = criteria.descending ? -1 : 1;
  // A number that does not exist comes last, whichever way the others go.
  const keyed = found.map((row, place) => [value(row), place, row]);
  keyed.sort((a, b) => {
    const aLast = !(a[0] === a[0]) || a[0] === undefined;
    const bLast = !(b[0] === b[0]) || b[0] === undefined;
    if (aLast || bLast) return aLast - bLast || a[1] - b[1];
    return sign * (a[0] - b[0]) || a[1] - b[1];
  });
  return keyed.map((entry) => entry[2]);
}

export function oneLine(text) {
  return plain(text).replace(/\s+/g, " ").trim();
}
