// The paper's figures 2, 4 and 6 for this run, and its forks by kind of token.

import { card, count, el, heading, number, percent, svg } from "./dom.js";
import { figure, frame, short, spread } from "./charts.js";
import { missing } from "./overview.js";
import { takeoverFigures } from "./takeovers.js";

const LOSSES = {
  reverse_kl: "KL(student || teacher)",
  log_ratio: "log p student − log p teacher",
  teacher_nll: "−log p teacher",
};
const SIZE = { width: 430, height: 270, margin: { bottom: 40, left: 44 } };

export function distributionsView(values) {
  const { distributions, takeovers } = values;
  return el("div", { class: "view" },
    takeovers === null ? null : [heading("Takeovers", `${count(takeovers.num_taken, "fork")} in the recorded rollouts`), takeoverFigures(takeovers)],
    distributions === null ? null : windowFigures(distributions, values),
    takeovers === null && distributions === null ? [missing(values), heading("Distributions"),
      el("p", { class: "soft" }, "Neither windows with a finished transport nor takeovers are recorded.")] : null);
}

function windowFigures(data, values) {
  const note = `${count(data.num_windows, "window")}${values.window ? ` of ${values.window} tokens` : ""}`
    + (data.num_unsolved ? `; ${data.num_unsolved.toLocaleString("en-US")} unsolved ones are left out` : "");
  return [heading("Windows", note),
    el("div", { class: "figures" },
      violins(data), data.histogram ? histogram(data) : null, data.scatter ? scatter(data, values) : null,
      kinds(data))];
}

function thresholdNote(data) {
  const { threshold } = data;
  return threshold === null ? "" : `threshold ${number(threshold.last)} in the last step, ${number(threshold.low)} to ${number(threshold.high)} in the run`;
}

function violins(data) {
  const [, largest] = spread(data.groups.map((group) => group.largest));
  const { drawing, y, width, margin } = frame([0, data.groups.length], [0, largest * 1.02], {
    ...SIZE, xTicks: [],
    label: data.groups.map((group) => `${group.name}: median ${number(group.quartiles[1])} of ${group.count}`).join("; "),
  });
  const room = (width - margin.left - 12) / data.groups.length;
  data.groups.forEach((group, place) => {
    const centre = margin.left + room * (place + 0.5);
    const [, peak] = spread(group.density);
    if (peak > 0) {
      const half = group.density.map((value) => (value / peak) * room * 0.36);
      const at = group.density.map((_, i) => y((group.largest * i) / (group.density.length - 1)));
      const out = half.map((value, i) => `${(centre + value).toFixed(1)} ${at[i].toFixed(1)}`);
      const back = half.map((value, i) => `${(centre - value).toFixed(1)} ${at[i].toFixed(1)}`).reverse();
      drawing.append(svg("path", { class: `violin group-${place}`, d: `M${[...out, ...back].join("L")}Z` }));
    }
    const [low, middle, high] = group.quartiles;
    drawing.append(
      svg("line", { class: `quartiles group-${place}`, x1: centre, x2: centre, y1: y(low), y2: y(high) }),
      svg("circle", { class: `median group-${place}`, cx: centre, cy: y(middle), r: 4.5 }),
      svg("text", { class: "row-value", x: centre + 12, y: y(middle) + 4 }, number(middle)),
      svg("text", { class: "tick", x: centre, y: SIZE.height - 22, "text-anchor": "middle" }, group.name),
      svg("text", { class: "tick", x: centre, y: SIZE.height - 7, "text-anchor": "middle" }, `n = ${group.count.toLocaleString("en-US")}`),
    );
  });
  if (data.threshold) {
    drawing.append(svg("line", { class: "threshold", x1: margin.left, x2: width - 12, y1: y(data.threshold.last), y2: y(data.threshold.last) }));
  }
  return figure("D_OT by group", "as figure 2 of the paper: density, quartiles, median", drawing, el("p", { class: "soft" },
    data.threshold ? `Dashed: ${thresholdNote(data)}.` : "",
    data.groups.length < 3 ? " Controls (random and low-loss positions) are probed where candidates.num_random and num_low ask for them." : ""));
}

function histogram(data) {
  const { edges, kinds: parts } = data.histogram;
  const totals = edges.slice(1).map((_, bar) => parts.reduce((sum, part) => sum + part.counts[bar], 0));
  const [, most] = spread(totals);
  const right = edges[edges.length - 1];
  const { drawing, x, y, height, margin } = frame([0, right], [0, most * 1.08], {
    ...SIZE, xLabel: "D_OT", label: `Candidates by D_OT; ${percent(data.histogram.false_alarms)} at or below the upper quartile of low-loss windows`,
  });
  const base = totals.map(() => 0);
  parts.forEach((part, place) => {
    let d = "";
    part.counts.forEach((number_, bar) => {
      if (number_ > 0) {
        const left = x(edges[bar]) + 0.5;
        const wide = x(edges[bar + 1]) - x(edges[bar]) - 1;
        d += `M${left.toFixed(1)} ${y(base[bar]).toFixed(1)}V${y(base[bar] + number_).toFixed(1)}h${wide.toFixed(1)}V${y(base[bar]).toFixed(1)}Z`;
      }
      base[bar] += number_;
    });
    drawing.append(svg("path", { class: `part kind-${place}`, d }));
  });
  const mark = (value, className) => {
    if (value === null || value > right) return;
    drawing.append(svg("line", { class: className, x1: x(value), x2: x(value), y1: margin.top ?? 10, y2: height - margin.bottom }));
  };
  mark(data.histogram.low_loss_quartile, "quartile-line");
  if (data.threshold) mark(data.threshold.last, "threshold");
  return figure("Where candidates lead", "as figure 4", drawing, el("div", {},
    el("p", { class: "keys" }, parts.map((part, place) => el("span", { class: `key kind-${place}` }, part.name))),
    el("p", { class: "soft" },
      data.histogram.low_loss_quartile === null ? "" : `Dotted: upper quartile of low-loss windows, ${number(data.histogram.low_loss_quartile)}; ${percent(data.histogram.false_alarms, 1)} of the candidates lie at or below it. `,
      data.threshold ? `Dashed: ${thresholdNote(data)}.` : "")));
}

function scatter(data, values) {
  const { loss, d_ot: distance, divergent, slices } = data.scatter;
  const logs = loss.map((value) => Math.log10(Math.max(value, 1e-3)));
  const [low, high] = spread(logs);
  const [, top] = spread(distance);
  const { drawing, x, y, width, margin } = frame([low, high], [0, top * 1.05], {
    ...SIZE, xTicks: logTicks(low, high), xText: (at) => short(10 ** at), xLabel: `token loss ${LOSSES[values.loss_name] ?? ""}, nats (log)`,
    label: `Token loss against D_OT; Pearson r ${number(data.scatter.pearson.value)}`,
  });
  for (const [kind, name] of [[0, "alarm"], [1, "divergent"]]) {
    let d = "";
    logs.forEach((value, i) => {
      if (divergent[i] === kind) d += `M${x(value).toFixed(1)} ${y(distance[i]).toFixed(1)}h.01`;
    });
    drawing.append(svg("path", { class: `points ${name}`, d }));
  }
  let line = "";
  slices.forEach((slice, i) => {
    const at = x(Math.log10(Math.max(slice.x, 1e-3)));
    line += `${i ? "L" : "M"}${at.toFixed(1)} ${y(slice.value).toFixed(1)}`;
    if (slice.low !== null) drawing.append(svg("line", { class: "slice", x1: at, x2: at, y1: y(slice.low), y2: y(slice.high) }));
  });
  drawing.append(svg("path", { class: "slices", d: line }));
  if (data.threshold) drawing.append(svg("line", { class: "threshold", x1: margin.left, x2: width - 12, y1: y(data.threshold.last), y2: y(data.threshold.last) }));
  const estimate = (one) => `${number(one.value, 2)} [${number(one.low, 2)}, ${number(one.high, 2)}]`;
  return figure("Token loss and the near future", "as figure 6", drawing, el("div", {},
    el("p", { class: "keys" }, el("span", { class: "key alarm" }, "false alarm"), el("span", { class: "key divergent" }, "real divergence"), el("span", { class: "key slices" }, "mean of a tenth, 95 %")),
    el("p", { class: "soft" }, `Pearson r ${estimate(data.scatter.pearson)}, Spearman ρ ${estimate(data.scatter.spearman)}; 95 % bootstrap over prompts, 200 draws.`
      + (data.scatter.num_all > loss.length ? ` ${loss.length.toLocaleString("en-US")} of ${data.scatter.num_all.toLocaleString("en-US")} candidates are drawn, evenly over the run.` : ""))));
}

// Logarithms of 1, 2 and 5 times a power of ten; powers alone over a wide range.
function logTicks(low, high) {
  const factors = high - low > 2.5 ? [1] : [1, 2, 5];
  const found = [];
  for (let power = Math.floor(low); power <= high; power += 1) {
    for (const factor of factors) {
      const at = power + Math.log10(factor);
      if (at >= low && at <= high) found.push(at);
    }
  }
  return found;
}

function kinds(data) {
  const share = (one) => (one.value === null ? "–" : el("span", {}, percent(one.value, 0), " ", el("small", {}, `[${percent(one.low)}, ${percent(one.high)}]`)));
  const hasRandom = data.kinds.some((kind) => kind.of_random.value !== null);
  return card("Forks by kind of token",
    el("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": "Table of kinds of tokens" }, el("table", {},
      el("thead", {}, el("tr", {}, ["the student's token", "candidates", "of all candidates", ...(hasRandom ? ["of random positions"] : []), "real divergences", "median D_OT", "median loss"].map((name) => el("th", { scope: "col" }, name)))),
      el("tbody", {}, data.kinds.map((kind, place) => el("tr", {},
        el("th", { scope: "row" }, el("span", { class: `key kind-${place}` }, kind.name)),
        el("td", {}, kind.count.toLocaleString("en-US")), el("td", {}, share(kind.of_candidates)), hasRandom ? el("td", {}, share(kind.of_random)) : null, el("td", {}, share(kind.divergent)),
        el("td", {}, number(kind.median_d_ot)), el("td", {}, number(kind.median_loss))))))),
    el("p", { class: "soft" }, "Wilson intervals, 95 %, windows taken as independent."));
}
