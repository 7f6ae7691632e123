// Elements, numbers and words. Text always becomes a text node, never markup.

const SVG = "http://www.w3.org/2000/svg";

export function el(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

export function svg(name, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

function fill(element, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (key === "on") {
      for (const [event, run] of Object.entries(value)) {
        element.addEventListener(event, run);
      }
    } else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return element;
}

export function number(value, digits = 3) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 0.5 * 10 ** -digits || size >= 1e6)) {
    return value.toExponential(1).replace("e+", "e").replace("-", "−");
  }
  // Three or four digits, however large the number is.
  const decimals = size >= 100 ? 0 : size >= 10 ? Math.min(digits, 1) : digits;
  const text = value.toLocaleString("en-US", {
    minimumFractionDigits: decimals, maximumFractionDigits: decimals,
  });
  return text.replace("-", "−");
}

export function percent(share, digits = 0) {
  if (share === null || share === undefined || Number.isNaN(share)) return "–";
  return `${(100 * share).toFixed(digits)} %`.replace("-", "−");
}

export function count(value, noun) {
  return `${value.toLocaleString("en-US")} ${noun}${value === 1 ? "" : "s"}`;
}

export function duration(seconds) {
  if (seconds < 60) return `${Math.round(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 60) return `${minutes} min`;
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

export function heading(title, note) {
  return el("div", { class: "heading" }, el("h2", {}, title), note ? el("p", {}, note) : null);
}

export function card(title, ...children) {
  return el("section", { class: "card" }, el("h3", {}, title), ...children);
}
