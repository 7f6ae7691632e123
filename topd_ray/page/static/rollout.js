// A rollout as text: every token coloured by its loss, windows marked.

import { block, ofThousandths, spell, starts } from "./data.js";
import { el, number } from "./dom.js";
import { verdictOf } from "./overview.js";
import { isolated, level, token } from "./tokens.js";

const AROUND = 400; // tokens shown before and behind the one that is looked at
const MORE = 2000;
const MARKS = ["control", "alarm", "divergent", "unsolved"];
const MARK_NAMES = ["control", "false alarm", "real divergence", "unsolved"];

// A rollout of a step by its id; null where it is not recorded.
export async function rolloutOf(step, id, prefix = "") {
  const columns = await block(`${prefix}rollouts/${step}`);
  const place = columns === null ? -1 : columns.rollout_ids.indexOf(id);
  if (place < 0) return null;
  columns.begins ??= {
    prompt: starts(columns.num_prompt),
    response: starts(columns.num_tokens),
    takeover: starts(columns.num_takeover),
    loss: starts(columns.num_loss),
    logp: starts(columns.num_logp),
    logq: starts(columns.num_logq),
  };
  const cut = (name) => columns[name].subarray(columns.begins[name][place], columns.begins[name][place + 1]);
  return {
    step,
    id,
    prompt: spell(columns, cut("prompt")),
    tokens: spell(columns, cut("response")),
    takeover: spell(columns, cut("takeover")),
    takeoverAt: columns.takeover_position[place],
    loss: cut("loss"),
    logp: cut("logp"),
    logq: cut("logq"),
    right: columns.right[place],
    ended: columns.ended[place],
    answer: columns.answers[place],
    promptId: columns.prompt_ids[place],
    finish: columns.finish[place],
    version: columns.policy_version[place],
    leftOut: columns.num_left_out[place],
  };
}

export function rolloutText(rollout, { windows = [], chosen = null, open = null } = {}) {
  const marks = new Map(windows.map((window) => [window.position, window]));
  const total = rollout.tokens.length;
  const at = chosen === null ? 0 : chosen;
  let first = Math.max(0, at - AROUND);
  let last = Math.min(total, at + AROUND);
  const text = el("div", { class: "rollout", tabindex: "0", role: "group", "aria-label": "The rollout, token by token" });
  const draw = () => {
    text.replaceChildren(
      ...(first > 0 ? [more(`${first} tokens before`, () => { first = Math.max(0, first - MORE); draw(); })] : []),
      ...tokensOf(rollout, first, last, marks, chosen, open),
      ...(last < total ? [more(`${total - last} more tokens`, () => { last = Math.min(total, last + MORE); draw(); })] : []),
      ...(last === total ? ending(rollout) : []),
    );
  };
  draw();
  return text;
}

function more(label, run) {
  return el("button", { type: "button", class: "more", on: { click: run } }, label);
}

function tokensOf(rollout, first, last, marks, chosen, open) {
  const found = [];
  for (let i = first; i < last; i += 1) {
    const loss = ofThousandths(rollout.loss[i]);
    const classes = [`level-${level(loss)}`];
    if (i === chosen) classes.push("chosen");
    if (rollout.takeoverAt >= 0 && i >= rollout.takeoverAt) classes.push(i === rollout.takeoverAt ? "fork" : "given-up");
    const window = marks.get(i);
    if (window === undefined) {
      const element = token(rollout.tokens[i], classes.join(" "));
      element.title = reading(rollout, i, loss);
      found.push(element);
      continue;
    }
    classes.push("mark", MARKS[window.verdict]);
    found.push(el("button", {
      type: "button", class: `token ${classes.join(" ")}`, "aria-current": i === chosen ? "true" : null,
      title: `${MARK_NAMES[window.verdict]}, ${reading(rollout, i, loss)}`,
      "aria-label": `${rollout.tokens[i].trim() || "blank"}: ${MARK_NAMES[window.verdict]}, token loss ${number(loss)}`,
      on: { click: () => open?.(window) },
    }, token(rollout.tokens[i])));
  }
  return found;
}

function reading(rollout, i, loss) {
  const parts = [`token ${i}`, `loss ${number(loss)}`];
  const share = (value) => number(Math.exp(-ofThousandths(value)), 3);
  if (i < rollout.logp.length) parts.push(`student ${share(rollout.logp[i])}`);
  if (i < rollout.logq.length) parts.push(`teacher ${share(rollout.logq[i])}`);
  return parts.join(", ");
}

function ending(rollout) {
  const found = [];
  if (rollout.leftOut > 0) {
    found.push(el("p", { class: "soft" }, `${rollout.leftOut.toLocaleString("en-US")} tokens more are in rollouts/, not on this page.`));
  }
  if (rollout.finish === "length") found.push(el("p", { class: "soft" }, "Cut at the limit of tokens."));
  if (rollout.takeoverAt >= 0) {
    found.push(el("div", { class: "takeover" },
      el("p", { class: "soft" }, atFork(rollout), rollout.ended === 2 ? null : [" Its end is ", verdictOf(rollout.ended), "."]),
      el("p", {}, rollout.takeover.map((text) => token(text, "teacher")))));
  }
  return found;
}

function atFork(rollout) {
  const at = rollout.takeoverAt;
  const share = (values) => (at < values.length ? number(Math.exp(-ofThousandths(values[at]))) : "–");
  return `The teacher took over at token ${at}, to which the student gave a probability of ${share(rollout.logp)} and the teacher of ${share(rollout.logq)}.`;
}

export function promptOf(rollout) {
  return el("details", { class: "prompt" },
    el("summary", {}, "Prompt ", el("span", { class: "soft" }, isolated(rollout.promptId))),
    el("p", { class: "prompt-text" }, rollout.prompt.map((text) => token(text))));
}
