// Elements of the page: text, numbers, and curves with their tables. Their elements are made once and changed in place.

import { known } from "./logs.js";

const ROWS = 12; // rows of the table of a curve
const WIDTH = 340, HEIGHT = 190, LEFT = 46, RIGHT = 8, TOP = 8, BOTTOM = 24;
const DASHES = ["", "5 4", "2 3"];

/** Make an element with attributes and children; text is never read as HTML. */
export function make(tag, attributes = {}, ...children) {
  const svg = ["svg", "path", "line", "text", "g"].includes(tag);
  const element = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}
export function write(element, text) { if (element.textContent !== text) element.textContent = text; }

/** A sample of a line's color and dashes. */
export function swatch(run, dashes = "") {
  return make("svg", { viewBox: "0 0 26 10", "aria-hidden": "true", class: "swatch" }, make("path", { d: "M0 5H26", class: `line run-${run}`, "stroke-dasharray": dashes }));
}
export function figure(value) {
  if (!known(value)) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size >= 1e6 || size < 1e-4)) return value.toExponential(2);
  return Number.isInteger(value) ? value.toLocaleString("en") : String(Number(value.toPrecision(4)));
}
export function duration(seconds) {
  if (!known(seconds)) return "–";
  if (seconds < 60) return `${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s`;
  const minutes = Math.round(seconds / 60), hours = Math.floor(minutes / 60);
  if (minutes < 60) return `${minutes} min`;
  return hours < 48 ? `${hours} h ${minutes % 60} min` : `${Math.floor(hours / 24)} d ${hours % 24} h`;
}
/** Round tick positions that span a range, at most six. */
function ticks(low, high) {
  const raw = (high - low) / 5, power = 10 ** Math.floor(Math.log10(raw));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= raw * 0.999);
  const first = Math.ceil(low / step - 1e-9), found = [];
  for (let i = first; i * step <= high + step * 1e-9 && found.length < 6; i += 1) found.push(Number((i * step).toPrecision(12)));
  return found;
}

/** A curve with its title, its latest value and a table. Its elements are made once and changed in place. */
class Figure {
  constructor(panel) {
    this.suffix = panel.unit === "s" || panel.unit === "GiB" ? ` ${panel.unit}` : "";
    this.panel = panel; this.lines = []; this.paths = []; this.at = null;
    this.svg = make("svg", { class: "plot", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", tabindex: "0" });
    this.rules = []; this.labels = [];
    for (let i = 0; i < 12; i += 1) {
      this.rules.push(make("line", { class: "rule" })); this.labels.push(make("text"));
      this.svg.append(this.rules[i], this.labels[i]);
    }
    this.interval = make("path", { class: "interval run-0" }); this.cursor = make("line", { class: "cursor", y1: TOP, y2: HEIGHT - BOTTOM });
    this.svg.append(this.interval, this.cursor);
    this.moment = make("span"); this.values = [];
    this.readout = make("p", { class: "latest" }, this.moment);
    this.body = make("tbody"); this.head = make("tr");
    this.table = make("details", {}, make("summary", {}, "Table"), make("div", {}, make("table", {}, make("caption", {}, `${panel.title}${panel.unit ? `, ${panel.unit}` : ""}`), make("thead", {}, this.head), this.body)));
    this.element = make("figure", {}, make("figcaption", {}, make("h3", {}, panel.title), make("p", {}, panel.note)), this.readout, this.svg, this.table);
    this.table.addEventListener("toggle", () => this.fill());
    this.svg.addEventListener("pointermove", (event) => this.point(event));
    this.svg.addEventListener("pointerleave", () => this.place(null));
    this.svg.addEventListener("blur", () => { this.readout.removeAttribute("role"); this.place(null); });
    this.svg.addEventListener("keydown", (event) => this.key(event));
  }
  /** Draw lines: {name, run (color), dash, x, y, low, high, latest}. */
  draw(lines) {
    this.lines = lines.filter((line) => line.y.some(known));
    this.element.hidden = this.lines.length === 0;
    if (this.element.hidden) return;
    const flat = this.lines.every((line) => line.y.every((value) => !known(value) || value === line.latest));
    this.svg.toggleAttribute("hidden", flat); this.table.hidden = flat;
    this.element.classList.toggle("flat", flat); // where nothing changes, the value says all
    const xs = this.lines.flatMap((line) => [line.x[0], line.x.at(-1)]);
    let [left, right, bottom, top] = [Math.min(...xs), Math.max(...xs), Infinity, -Infinity];
    for (const line of this.lines) for (const column of [line.y, line.low ?? [], line.high ?? []]) for (const value of column) if (known(value)) { bottom = Math.min(bottom, value); top = Math.max(top, value); }
    if (known(this.panel.floor)) bottom = Math.min(bottom, this.panel.floor);
    const spread = top - bottom || Math.abs(top) || 1;
    if (top === bottom) { bottom -= spread / 2; top += spread / 2; } else { top += spread * 0.05; if (bottom !== this.panel.floor) bottom -= spread * 0.05; }
    if (left === right) { left -= 1; right += 1; }
    this.px = (x) => LEFT + ((x - left) / (right - left)) * (WIDTH - LEFT - RIGHT);
    this.py = (y) => HEIGHT - BOTTOM - ((y - bottom) / (top - bottom)) * (HEIGHT - TOP - BOTTOM);
    this.axes(ticks(left, right).filter(Number.isInteger), ticks(bottom, top).filter((tick) => !this.panel.whole || Number.isInteger(tick)));
    while (this.paths.length < this.lines.length) { const path = make("path"); this.paths.push(path); this.svg.insertBefore(path, this.cursor); }
    this.paths.forEach((path, i) => {
      const line = this.lines[i];
      path.setAttribute("d", line ? this.path(line.x, line.y) : "");
      if (line) { path.setAttribute("class", `line run-${line.run}`); path.setAttribute("stroke-dasharray", DASHES[line.dash % 3]); }
    });
    this.name();
    const between = this.lines[0].low ? this.lines[0] : null;
    this.interval.setAttribute("d", between ? this.area(between) : "");
    const ends = this.lines.map((line) => `${line.name}: ${figure(line.y.find(known))} at first, ${figure(line.latest)} now`);
    this.svg.setAttribute("aria-label", `${this.panel.title}. ${ends.join("; ")}. Use the arrow keys to read values.`);
    this.place(this.at);
    if (this.table.open) this.fill();
  }
  /** Make a place for the value of each line, with its color and dashes if there are several. */
  name() {
    const shown = this.lines.map((line) => `${line.run} ${line.dash % 3}`).join();
    if (this.shown === shown) return;
    this.shown = shown;
    const several = this.lines.length > 1;
    this.values = this.lines.map((line) => make("span", { class: "value" }, ...(several ? [swatch(line.run, DASHES[line.dash % 3])] : []), make("span")));
    this.readout.replaceChildren(this.moment, ...this.values.flatMap((value) => [" ", value]));
  }
  axes(xs, ys) {
    this.rules.forEach((rule, i) => {
      const vertical = i < 6, value = vertical ? xs[i] : ys[i - 6], label = this.labels[i], shown = value !== undefined;
      rule.setAttribute("visibility", shown && !vertical ? "visible" : "hidden");
      write(label, shown ? (vertical ? value.toLocaleString("en") : figure(value)) : "");
      if (!shown) return;
      const x = vertical ? this.px(value) : LEFT - 6, y = vertical ? HEIGHT - 7 : this.py(value) + 4;
      for (const [name, to] of [["x", x], ["y", y], ["text-anchor", vertical ? "middle" : "end"]]) label.setAttribute(name, to);
      if (!vertical) for (const [name, to] of [["x1", LEFT], ["x2", WIDTH - RIGHT], ["y1", y - 4], ["y2", y - 4]]) rule.setAttribute(name, to);
    });
  }
  path(xs, ys) {
    let d = "", pen = "M";
    xs.forEach((x, i) => {
      if (!known(ys[i])) { pen = "M"; return; }
      d += `${pen}${this.px(x).toFixed(1)},${this.py(ys[i]).toFixed(1)}`;
      pen = "L";
    });
    return xs.length === 1 ? `${d}h0.1` : d;
  }
  area(line) {
    const rows = line.x.map((x, i) => [x, line.low[i], line.high[i]]).filter(([, low, high]) => known(low) && known(high));
    const at = (x, y) => `${this.px(x).toFixed(1)},${this.py(y).toFixed(1)}`;
    return rows.length < 2 ? "" : `M${rows.map(([x, , high]) => at(x, high)).join("L")}L${rows.reverse().map(([x, low]) => at(x, low)).join("L")}Z`;
  }
  /** Show the values at an index of the longest line; null: the latest values. */
  place(at) {
    if (this.lines.length === 0) return;
    const longest = this.lines.reduce((a, b) => (b.x.length > a.x.length ? b : a));
    this.at = at === null ? null : Math.max(0, Math.min(at, longest.x.length - 1));
    const x = this.at === null ? null : longest.x[this.at];
    this.cursor.setAttribute("visibility", x === null ? "hidden" : "visible");
    if (x !== null) { this.cursor.setAttribute("x1", this.px(x)); this.cursor.setAttribute("x2", this.px(x)); }
    write(this.moment, x === null ? "now" : `iteration ${x.toLocaleString("en")}`);
    this.values.forEach((value, i) => {
      const line = this.lines[i];
      write(value.lastElementChild, `${this.lines.length > 1 ? `${line.name} ` : ""}${figure(x === null ? line.latest : valueAt(line, x))}${this.suffix}`);
    });
  }
  point(event) {
    if (this.lines.length === 0) return;
    const box = this.svg.getBoundingClientRect(), x = ((event.clientX - box.left) / box.width) * WIDTH;
    const longest = this.lines.reduce((a, b) => (b.x.length > a.x.length ? b : a));
    let nearest = 0;
    longest.x.forEach((value, i) => { if (Math.abs(this.px(value) - x) < Math.abs(this.px(longest.x[nearest]) - x)) nearest = i; });
    this.place(nearest);
  }
  key(event) {
    if (this.lines.length === 0) return;
    const length = Math.max(...this.lines.map((line) => line.x.length)), now = this.at ?? length - 1;
    const to = { ArrowLeft: now - 1, ArrowRight: now + 1, Home: 0, End: length - 1, PageUp: now - 20, PageDown: now + 20, Escape: null }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    if (to === null) this.readout.removeAttribute("role"); else this.readout.setAttribute("role", "status");
    this.place(to);
  }
  fill() {
    if (!this.table.open || this.lines.length === 0) return;
    const longest = this.lines.reduce((a, b) => (b.x.length > a.x.length ? b : a)), last = longest.x.length - 1;
    const rows = Math.min(ROWS, last + 1);
    const at = Array.from({ length: rows }, (_, i) => longest.x[Math.round((i * last) / Math.max(1, rows - 1))]);
    const head = ["iteration", ...this.lines.map((line) => line.name)].map((name) => make("th", { scope: "col" }, name));
    this.head.replaceChildren(...head);
    this.body.replaceChildren(...at.map((x) => make("tr", {}, make("th", { scope: "row" }, x.toLocaleString("en")), ...this.lines.map((line) => make("td", {}, figure(valueAt(line, x)))))));
  }
}
/** The value of a line at the point nearest to x; none beyond its end. */
function valueAt(line, x) {
  let low = 0, high = line.x.length - 1;
  while (low < high) { const middle = (low + high) >> 1; if (line.x[middle] < x) low = middle + 1; else high = middle; }
  return line.x[low] < x ? null : line.y[low];
}

/** Figures in a container by title, in the order in which they were first drawn. */
export class Figures {
  constructor(container) { this.container = container; this.found = new Map(); this.drawn = new Set(); }
  draw(panel, lines) {
    if (!this.found.has(panel.title)) { const made = new Figure(panel); this.found.set(panel.title, made); this.container.append(made.element); }
    this.found.get(panel.title).draw(lines);
    this.drawn.add(panel.title);
  }
  /** Remove the figures that were not drawn since the last call. */
  finish() {
    for (const [title, made] of this.found) if (!this.drawn.has(title)) { made.element.remove(); this.found.delete(title); }
    this.drawn.clear();
  }
}
