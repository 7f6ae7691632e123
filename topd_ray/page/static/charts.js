// Charts as SVG: colours come from the style sheet, so that they follow dark and light.

import { el, number, percent, svg } from "./dom.js";

const WIDTH = 380;
const HEIGHT = 170;
const MARGIN = { top: 10, right: 12, bottom: 24, left: 46 };

export function scale(from, to, low, high) {
  const span = to - from || 1;
  return (value) => low + ((value - from) / span) * (high - low);
}

// Round numbers between two ends, at most about `most` of them.
export function ticks(from, to, most = 4) {
  const span = to - from;
  if (!(span > 0)) return [from];
  const rough = span / most;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((one) => one >= rough);
  const found = [];
  for (let at = Math.ceil(from / step) * step; at <= to + step / 1e6; at += step) {
    found.push(Math.abs(at) < step / 1e6 ? 0 : at);
  }
  return found;
}

export function short(value) {
  const size = Math.abs(value);
  if (size >= 1e6) return `${+(value / 1e6).toPrecision(3)}M`;
  if (size >= 1e4) return `${+(value / 1e3).toPrecision(3)}k`;
  if (size !== 0 && size < 1e-3) return value.toExponential(0).replace("-", "−");
  return String(+value.toPrecision(3)).replace("-", "−");
}

export function figure(title, note, drawing, extra = null) {
  return el(
    "figure",
    { class: "chart" },
    el("figcaption", {}, el("b", {}, title), " ", el("span", {}, note)),
    drawing,
    extra,
  );
}

// Axes of a chart; returns the frame, its scales and the layer to draw on.
export function frame(xs, ys, options = {}) {
  const width = options.width ?? WIDTH;
  const height = options.height ?? HEIGHT;
  const margin = { ...MARGIN, ...options.margin };
  const x = scale(xs[0], xs[1], margin.left, width - margin.right);
  const y = scale(ys[0], ys[1], height - margin.bottom, margin.top);
  const drawing = svg("svg", {
    viewBox: `0 0 ${width} ${height}`,
    role: "img",
    "aria-label": options.label ?? "",
  });
  for (const at of ticks(ys[0], ys[1], options.yTicks ?? 3)) {
    drawing.append(
      svg("line", { class: "grid", x1: margin.left, x2: width - margin.right, y1: y(at), y2: y(at) }),
      svg("text", { class: "tick", x: margin.left - 6, y: y(at) + 3.5, "text-anchor": "end" },
        options.isShare ? percent(at) : short(at)),
    );
  }
  for (const at of options.xTicks ?? ticks(xs[0], xs[1], 5)) {
    drawing.append(
      svg("text", { class: "tick", x: x(at), y: height - margin.bottom + 15, "text-anchor": "middle" },
        options.xText ? options.xText(at) : short(at)),
    );
  }
  if (options.xLabel) {
    drawing.append(svg("text",
      { class: "tick", x: width - margin.right, y: height - 4, "text-anchor": "end" }, options.xLabel));
  }
  return { drawing, x, y, width, height, margin };
}

// Lines over steps. `charts` is one curve of each run that is shown.
export function lineChart(curves, stepsOf) {
  const [curve] = curves;
  const all = curves.flatMap((one) => one.series.flatMap((line) => line.values)).filter(isNumber);
  const steps = stepsOf.flat();
  const low = Math.min(0, ...spread(all));
  const high = Math.max(...spread(all)) || 1;
  const first = curve.series[0].values.filter(isNumber);
  const ends = [Math.min(...spread(steps)), Math.max(...spread(steps))];
  const { drawing, x, y, width, height, margin } = frame(
    ends, [low, high * 1.04],
    {
      xTicks: ticks(...ends, 5).filter(Number.isInteger), // a step and a half is none
      isShare: curve.is_share,
      label: `${curve.title}: from ${number(first[0])} to ${number(first[first.length - 1])} over ${first.length} steps`,
    },
  );
  const lines = [];
  curves.forEach((one, run) => {
    one.series.forEach((line, place) => {
      lines.push({ line, run, place, steps: stepsOf[run] });
      drawing.append(svg("path", { class: `line line-${place} run-${run}`, d: path(stepsOf[run], line.values, x, y) }));
    });
  });
  const cross = svg("line", { class: "cross", y1: margin.top, y2: height - margin.bottom, visibility: "hidden" });
  drawing.append(cross);
  const names = ["A", "B"];
  const label = (entry) => [
    curves.length > 1 ? names[entry.run] : "", entry.line.label,
  ].filter(Boolean).join(" ");
  const readings = lines.map((entry) => el("span", { class: `key line-${entry.place} run-${entry.run}` }, label(entry)));
  const readout = el("p", { class: "keys" }, readings);
  const show = (step) => {
    lines.forEach((entry, place) => {
      const at = step === null ? -1 : entry.steps.indexOf(step);
      const value = at < 0 ? null : entry.line.values[at];
      const text = curve.is_share ? percent(value, 1) : number(value);
      readings[place].textContent = step === null ? label(entry) : `${label(entry)} ${text}`;
    });
    cross.setAttribute("visibility", step === null ? "hidden" : "visible");
    if (step !== null) {
      cross.setAttribute("x1", x(step));
      cross.setAttribute("x2", x(step));
    }
  };
  drawing.addEventListener("pointermove", (event) => {
    const box = drawing.getBoundingClientRect();
    const at = ((event.clientX - box.left) / box.width) * width;
    show(nearest(stepsOf[0], at, x));
  });
  drawing.addEventListener("pointerleave", () => show(null));
  return figure(curve.title, curve.unit, drawing, readout);
}

function nearest(steps, at, x) {
  let best = null;
  for (const step of steps) {
    if (best === null || Math.abs(x(step) - at) < Math.abs(x(best) - at)) best = step;
  }
  return best;
}

export function isNumber(value) {
  return typeof value === "number" && Number.isFinite(value);
}

// Math.min takes no more than some 100,000 arguments.
export function spread(values) {
  if (values.length === 0) return [0];
  let low = Infinity;
  let high = -Infinity;
  for (const value of values) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return [low, high];
}

function path(steps, values, x, y) {
  let text = "";
  let isDown = false;
  values.forEach((value, place) => {
    if (!isNumber(value)) {
      isDown = false;
      return;
    }
    text += `${isDown ? "L" : "M"}${x(steps[place]).toFixed(1)} ${y(value).toFixed(1)}`;
    isDown = true;
  });
  // A single step is a point, which a line of no length draws.
  return values.filter(isNumber).length === 1 ? `${text}h0.01` : text;
}

// Shares with their intervals, one a row.
export function intervals(rows, label) {
  const width = Math.min(520, Math.max(300, window.innerWidth - 66)); // so that text keeps its size
  const rowHeight = 34;
  const left = width < 400 ? 108 : 128;
  const height = rows.length * rowHeight + 26;
  const x = scale(0, 1, left, width - (width < 400 ? 70 : 92));
  const drawing = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  for (const at of width < 400 ? [0, 0.5, 1] : [0, 0.25, 0.5, 0.75, 1]) {
    drawing.append(
      svg("line", { class: "grid", x1: x(at), x2: x(at), y1: 4, y2: height - 22 }),
      svg("text", { class: "tick", x: x(at), y: height - 6, "text-anchor": "middle" }, percent(at)),
    );
  }
  rows.forEach((row, place) => {
    const y = place * rowHeight + 20;
    const isLast = row.isLast ?? (place === rows.length - 1 && rows.length > 1);
    const kind = isLast ? "last" : "first";
    drawing.append(svg("text", { class: "row-label", x: left - 10, y: y + 4, "text-anchor": "end" }, row.label));
    if (isNumber(row.low)) {
      drawing.append(svg("line", { class: `interval ${kind}`, x1: x(row.low), x2: x(row.high), y1: y, y2: y }));
    }
    drawing.append(
      svg("circle", { class: `point ${kind}`, cx: x(row.share), cy: y, r: 5.5 }),
      svg("text", { class: `row-value ${kind}`, x: width, y: y + 4.5, "text-anchor": "end" }, percent(row.share, 1)),
    );
  });
  return drawing;
}

// Bars from the left, one a row: [label, value, text].
export function bars(rows, className = "") {
  const most = Math.max(...rows.map((row) => row[1]), 1e-9);
  return el(
    "dl",
    { class: `bars ${className}` },
    rows.flatMap(([label, value, text]) => [
      el("dt", {}, label),
      el("dd", {},
        el("span", { class: "bar", style: `width:${((100 * value) / most).toFixed(2)}%`, "aria-hidden": "true" }),
        el("span", { class: "bar-text" }, text)),
    ]),
  );
}
