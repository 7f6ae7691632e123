// Tokens as elements. A model may write anything: control characters are shown by name,
// and each token is isolated, so that none turns the direction of its neighbours.

import { el } from "./dom.js";

const HIDDEN =
  /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]|\p{Cs}/gu;
const LEVELS = [0.05, 0.2, 0.5, 1, 2, 4];

// Words for the levels of loss, as the legend shows them.
export const LEVEL_NAMES = ["0", ".05", ".2", ".5", "1", "2", "4"];

function named(character) {
  const code = character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
  return `⟨U+${code}⟩`;
}

// Text in which every character can be seen, on one line.
export function plain(text) {
  return text.replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(HIDDEN, named);
}

// Text for a block that keeps its lines.
export function lined(text) {
  return text.replace(/\n/g, "⏎\n").replace(/\t/g, "⇥\t").replace(HIDDEN, named);
}

export function level(loss) {
  if (!(loss >= 0)) return 0;
  let found = 0;
  while (found < LEVELS.length && loss >= LEVELS[found]) found += 1;
  return found;
}

export function token(text, className = "") {
  return el("bdi", { class: `token ${className}`.trim() }, lined(text));
}

export function isolated(text, className) {
  return el("bdi", { class: className }, plain(text));
}

export function legend({ hasWindows, hasTakeovers }) {
  return el(
    "p",
    { class: "legend" },
    "token loss, nats: ",
    ...LEVEL_NAMES.map((name, i) =>
      el("span", { class: `token level-${i}` }, i === 0 ? "0" : `≥ ${name}`),
    ),
    hasWindows ? [
      el("span", { class: "token mark divergent" }, "real divergence"),
      el("span", { class: "token mark alarm" }, "false alarm"),
      el("span", { class: "token mark unsolved" }, "unsolved"),
      el("span", { class: "token mark control" }, "control"),
    ] : null,
    hasTakeovers ? [
      el("span", { class: "token fork" }, "fork"),
      el("span", { class: "token given-up" }, "not learned from"),
    ] : null,
  );
}
