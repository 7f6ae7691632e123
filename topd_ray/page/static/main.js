// Routes between the views, and follows a run that goes on.

import { embeddedValues, isLive } from "./data.js";
import { duration, el } from "./dom.js";
import { compareView } from "./compare.js";
import { distributionsView } from "./figures.js";
import { overviewView } from "./overview.js";
import { Reader } from "./reader.js";
import { Rows } from "./rows.js";
import { timeView } from "./time.js";
import { isolated } from "./tokens.js";

const page = { values: embeddedValues(), rows: new Rows(), reader: null, view: "", isLost: false };
const main = document.getElementById("main");
const header = document.getElementById("header");
const VIEWS = [["overview", "Overview"], ["reader", "Rollouts"], ["distributions", "Distributions"], ["time", "Time"], ["compare", "Compare"]];

function isThere(name) {
  const { comparison, distributions, takeovers, state } = page.values;
  if (name === "compare") return comparison !== null;
  return name !== "distributions" || distributions !== null || takeovers !== null || state === "running";
}

function route() {
  const [name, query] = location.hash.slice(1).split("?");
  const known = VIEWS.some(([view]) => view === name) && isThere(name);
  return [known ? name : "overview", new URLSearchParams(query ?? "")];
}

function drawHeader() {
  const { values } = page;
  const [view] = route();
  header.replaceChildren(el("div", { class: "top-bar" },
    el("div", { class: "title" },
      el("h1", {}, isolated(values.name)),
      el("span", { class: "soft" }, values.method),
      el("span", { class: `state ${values.state}` }, values.state),
      el("span", { class: "soft progress-text" }, progressText(values))),
    el("nav", { "aria-label": "Views" }, VIEWS.filter(([name]) => isThere(name))
      .map(([name, title]) => el("a", { href: `#${name}`, "aria-current": name === view ? "page" : null }, title)))),
  values.state === "running" && values.num_steps
    ? el("progress", { max: values.num_steps, value: values.step, "aria-label": "Steps done" }) : "");
}

function progressText(values) {
  if (page.isLost) return `step ${values.step}; the server of this page does not answer`;
  const steps = values.num_steps ? `step ${values.step} of ${values.num_steps}` : `step ${values.step}`;
  return values.left_s === null ? steps : `${steps}, about ${duration(values.left_s)} left`;
}

function draw() {
  const [view, parameters] = route();
  page.view = view;
  page.reader = null;
  drawHeader();
  document.title = `${page.values.name} · ${VIEWS.find(([name]) => name === view)[1]}`;
  if (view === "reader") {
    page.reader = new Reader(page.values, page.rows, parameters);
    main.replaceChildren(page.reader.element);
  } else if (view === "distributions") main.replaceChildren(distributionsView(page.values));
  else if (view === "time") main.replaceChildren(timeView(page.values, parameters));
  else if (view === "compare") main.replaceChildren(compareView(page.values, parameters));
  else main.replaceChildren(overviewView(page.values, page.rows));
  main.dataset.view = view;
}

async function load() {
  await page.rows.load(page.values.block_steps);
  page.rows.prepare();
  document.body.dataset.ready = String(page.rows.windows.length);
}

function lose() {
  page.isLost = page.values.state === "running";
  drawHeader();
}

// A message says how far the run is; what has changed is then fetched.
async function follow(message) {
  Object.assign(page.values, message);
  drawHeader();
  document.body.dataset.state = page.values.state;
  const answer = await fetch("values.json");
  if (answer.ok) page.values = { ...(await answer.json()), ...message };
  const there = new Set(page.values.block_steps);
  // A run that went back does its last steps again: what was read of them is of the past.
  if (page.rows.steps.some((step) => !there.has(step))) location.reload();
  const fresh = await page.rows.load(page.values.block_steps);
  page.rows.prepare();
  document.body.dataset.step = String(page.values.step);
  if (page.reader !== null) {
    page.reader.values = page.values;
    if (fresh > 0) page.reader.grow();
  } else if (page.view === "overview" || page.view === "distributions") {
    const top = window.scrollY;
    draw();
    window.scrollTo(0, top);
  }
}

window.addEventListener("hashchange", () => {
  if (location.hash === "#main") return;
  draw();
  main.focus({ preventScroll: true });
  window.scrollTo(0, 0);
});
drawHeader();
await load().catch(lose);
draw();
if (isLive) {
  let last = Promise.resolve();
  const source = new EventSource("events");
  source.addEventListener("message", (event) => {
    const message = JSON.parse(event.data);
    // A server that ends with its run would be asked for again and again.
    if (message.state === "finished") source.close();
    page.isLost = false;
    last = last.then(() => follow(message)).catch(() => lose());
  });
  source.addEventListener("error", lose);
}
