// A list of any length: only the rows that can be seen are in the document.

import { el } from "./dom.js";

const BEYOND = 6; // rows above and below, so that a quick scroll meets no gap

export class VirtualList {
  constructor({ label, rowHeight, draw, choose }) {
    this.rowHeight = rowHeight;
    this.draw = draw;
    this.choose = choose;
    this.rows = [];
    this.at = -1;
    this.drawn = new Map();
    this.inner = el("div", { class: "list-inner", role: "presentation" });
    this.element = el("div", {
      class: "list", role: "listbox", tabindex: "0", "aria-label": label,
      on: { scroll: () => this.show(), keydown: (event) => this.key(event) },
    }, this.inner);
    new ResizeObserver(() => this.show()).observe(this.element);
  }

  set(rows, key) {
    this.rows = rows;
    this.at = key === undefined ? -1 : rows.findIndex((row) => row.key === key);
    this.drawn.clear();
    this.inner.replaceChildren();
    this.inner.style.height = `${rows.length * this.rowHeight}px`;
    if (this.at >= 0) this.into(this.at);
    this.show();
  }

  show() {
    const height = this.element.clientHeight || 400;
    const top = this.element.scrollTop;
    const first = Math.max(0, Math.floor(top / this.rowHeight) - BEYOND);
    const last = Math.min(this.rows.length, Math.ceil((top + height) / this.rowHeight) + BEYOND);
    for (const [place, element] of this.drawn) {
      if (place < first || place >= last) {
        element.remove();
        this.drawn.delete(place);
      }
    }
    for (let place = first; place < last; place += 1) {
      if (!this.drawn.has(place)) this.drawn.set(place, this.inner.appendChild(this.row(place)));
    }
    this.mark();
  }

  row(place) {
    const element = this.draw(this.rows[place]);
    element.id = `option-${place}`;
    element.setAttribute("role", "option");
    element.setAttribute("aria-setsize", this.rows.length);
    element.setAttribute("aria-posinset", place + 1);
    element.style.transform = `translateY(${place * this.rowHeight}px)`;
    element.style.height = `${this.rowHeight}px`;
    element.addEventListener("click", () => this.go(place));
    return element;
  }

  mark() {
    for (const [place, element] of this.drawn) {
      element.setAttribute("aria-selected", place === this.at ? "true" : "false");
    }
    if (this.drawn.has(this.at)) this.element.setAttribute("aria-activedescendant", `option-${this.at}`);
    else this.element.removeAttribute("aria-activedescendant");
  }

  go(place) {
    if (place < 0 || place >= this.rows.length) return;
    this.at = place;
    this.into(place);
    this.show();
    this.choose(this.rows[place]);
  }

  step(by) {
    this.go(Math.min(this.rows.length - 1, Math.max(0, this.at + by)));
  }

  into(place) {
    const top = place * this.rowHeight;
    const height = this.element.clientHeight || 400;
    if (top < this.element.scrollTop) this.element.scrollTop = top;
    else if (top + this.rowHeight > this.element.scrollTop + height) {
      this.element.scrollTop = top + this.rowHeight - height;
    }
  }

  key(event) {
    const page = Math.max(1, Math.floor(this.element.clientHeight / this.rowHeight) - 1);
    const moves = {
      ArrowDown: () => this.step(1), ArrowUp: () => this.step(-1),
      PageDown: () => this.step(page), PageUp: () => this.step(-page),
      Home: () => this.go(0), End: () => this.go(this.rows.length - 1),
    };
    if (!moves[event.key]) return;
    event.preventDefault();
    moves[event.key]();
  }
}
