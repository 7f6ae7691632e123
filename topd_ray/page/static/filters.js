// The criteria of the reader: a form whose state is the address of the page.

import { el } from "./dom.js";

const ORDERS = {
  windows: [["loss", "token loss"], ["d_ot", "D_OT"], ["step", "step"], ["position", "position"]],
  rollouts: [["step", "step"], ["loss", "mean token loss"], ["length", "length"], ["divergent", "real divergences"], ["fork", "token of the fork"]],
};
const FIELDS = ["show", "text", "verdict", "kind", "right", "step", "l_min", "l_max", "d_min", "d_max", "plan", "taken", "order", "up"];

// What the list can be ordered by: without windows or takeovers, not by what they say.
function ordersOf(show, rows) {
  return ORDERS[show].filter(([name]) => (name !== "divergent" || rows.windows.length > 0) && (name !== "fork" || rows.hasTakeovers));
}

// Windows without a plan have little to read, so they are left out until asked for.
export function criteriaOf(parameters, rows) {
  const criteria = {};
  for (const name of FIELDS) criteria[name] = parameters.get(name) ?? "";
  if (rows.hasRolloutsAlone) criteria.show = "rollouts";
  else if (criteria.show !== "rollouts") criteria.show = "windows";
  const orders = ordersOf(criteria.show, rows);
  if (!orders.some(([name]) => name === criteria.order)) criteria.order = orders[0][0];
  if (criteria.plan === "") criteria.plan = rows.hasPlans ? "recorded" : "any";
  criteria.descending = criteria.up !== "1";
  return criteria;
}

export function filterForm(values, rows, criteria, changed) {
  const form = el("form", {
    class: "filters", role: "search", "aria-label": "Filter windows and rollouts",
    on: {
      submit: (event) => event.preventDefault(),
      input: () => changed(read(form)),
    },
  });
  const select = (name, label, options, only) => field(label, el("select", { name },
    options.map(([value, text]) => el("option", { value, selected: String(criteria[name]) === String(value) }, text))), only);
  const size = (name, label, only) => field(label,
    el("input", { name, type: "number", step: "any", min: "0", value: criteria[name], inputmode: "decimal" }), only);
  const isWindows = criteria.show === "windows";
  form.append(
    ...(rows.hasRolloutsAlone ? [] : [
      el("fieldset", { class: "show" }, el("legend", { class: "unseen" }, "Show"),
        ["windows", "rollouts"].map((name) => el("label", {},
          el("input", { type: "radio", name: "show", value: name, checked: criteria.show === name }), name))),
    ]),
    field("Search", el("input", { name: "text", type: "search", value: criteria.text, placeholder: "text of prompt or tokens" }), "wide"),
    ...(isWindows ? [
      select("verdict", "Verdict", [["", "any"], ["candidates", "all candidates"], ["2", "real divergence"], ["1", "false alarm"], ["3", "unsolved"], ["0", "control"]]),
      select("kind", "Token", [["", "any"], ...values.kinds.map((name, i) => [i, name])]),
    ] : []),
    ...(!isWindows && rows.hasTakeovers ? [select("taken", "Taken over", [["", "any"], ["1", "yes"], ["0", "no"]])] : []),
    select("right", "Answer", [["", "any"], ["1", "right"], ["0", "wrong"], ["2", "not graded"]]),
    select("step", "Step", [["", "all"], ...rows.steps.map((step) => [step, step])]),
    size("l_min", "Loss from"),
    size("l_max", "to"),
    ...(isWindows ? [size("d_min", "D_OT from"), size("d_max", "to")] : []),
    ...(isWindows ? [select("plan", "Plan", [["recorded", "recorded"], ["any", "any"]])] : []),
    select("order", "Order by", ordersOf(criteria.show, rows)),
    select("up", "Direction", [["", "largest first"], ["1", "smallest first"]]),
  );
  return form;
}

function field(label, control, className = "") {
  return el("label", { class: `field ${className}`.trim() }, el("span", {}, label), control);
}

function read(form) {
  const found = new URLSearchParams();
  for (const [name, value] of new FormData(form)) {
    if (value !== "" && !(name === "show" && value === "windows")) found.set(name, value);
  }
  return found;
}
