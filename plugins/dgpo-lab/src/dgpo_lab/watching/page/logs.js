// What is known of the runs: their logs, thinned to a bounded number of points, however long the runs are.

const POINTS = 400; // points of a curve; from twice as many on, adjacent ones are averaged

export const known = (value) => typeof value === "number" && Number.isFinite(value);

export class ServerError extends Error {}

/** Ask the server for JSON data. Throws ServerError if it refuses or does not answer. */
export async function ask(path, query = {}) {
  const response = await fetch(`${path}?${new URLSearchParams(query)}`, { credentials: "same-origin" }).catch(() => {
    throw new ServerError("The server does not answer; trying again. The runs are not affected.");
  });
  if (response.status === 401) throw new ServerError("The server was started again: open the address that dgpo watch printed.");
  const answer = await response.json();
  if (!response.ok) throw new ServerError(answer.error);
  return answer;
}

/** Columns over iterations. Each point is the mean of `each` lines; every column has as many points as `x`. */
export class Columns {
  constructor() { this.clear(); }
  clear() { this.each = 1; this.x = []; this.weights = []; this.values = new Map(); this.counts = new Map(); this.latest = new Map(); this.rows = 0; }
  extend(columns, rows) {
    for (let row = 0; row < rows; row += 1) {
      const filled = this.weights.at(-1) ?? this.each;
      if (filled >= this.each) { this._open(); }
      const at = this.x.length - 1;
      this.x[at] = columns.iteration[row];
      this.weights[at] += 1;
      this.rows += 1;
      for (const [key, column] of Object.entries(columns)) if (known(column[row])) this._add(key, at, column[row]);
    }
  }
  _open() {
    if (this.x.length >= 2 * POINTS) this._halve();
    this.x.push(0); this.weights.push(0);
    for (const [key, values] of this.values) { values.push(null); this.counts.get(key).push(0); }
  }
  _add(key, at, value) {
    if (!this.values.has(key)) { this.values.set(key, this.x.map(() => null)); this.counts.set(key, this.x.map(() => 0)); }
    const values = this.values.get(key), counts = this.counts.get(key);
    counts[at] += 1;
    values[at] = values[at] === null ? value : values[at] + (value - values[at]) / counts[at];
    this.latest.set(key, value);
  }
  _halve() {
    const half = this.x.length / 2;
    for (const [key, values] of this.values) {
      const counts = this.counts.get(key);
      for (let i = 0; i < half; i += 1) {
        const [a, b, n, m] = [values[2 * i], values[2 * i + 1], counts[2 * i], counts[2 * i + 1]];
        values[i] = n + m === 0 ? null : ((a ?? 0) * n + (b ?? 0) * m) / (n + m);
        counts[i] = n + m;
      }
      values.length = half; counts.length = half;
    }
    for (let i = 0; i < half; i += 1) { this.x[i] = this.x[2 * i + 1]; this.weights[i] = this.weights[2 * i] + this.weights[2 * i + 1]; }
    this.x.length = half; this.weights.length = half;
    this.each *= 2;
  }
}

/** The evaluations of a run by reward, thinned to every second one when there are too many; first and last are kept. */
export class Evaluations {
  constructor() { this.clear(); }
  clear() { this.rewards = new Map(); }
  extend(records) {
    for (const record of records) {
      const found = this.rewards.get(record.reward) ?? [];
      if (!this.rewards.has(record.reward)) this.rewards.set(record.reward, found);
      const same = found.findIndex((other) => other.iteration === record.iteration);
      if (same >= 0) found[same] = record; else found.push(record);
      if (found.length > POINTS) this.rewards.set(record.reward, found.filter((_, i) => i % 2 === 0 || i === found.length - 1));
    }
  }
  of(role) { return [...this.rewards.entries()].filter(([, found]) => (found[0].role ?? "target") === role); }
}

/** What is known of one run. */
export class Run {
  constructor(id) { this.id = id; this.metrics = new Columns(); this.timings = new Columns(); this.evaluations = new Evaluations(); this.cursors = {}; this.changes = null; this.fault = null; this.restarts = 0; }
  async update() {
    for (let more = true; more;) {
      const answer = await ask("/api/changes", { id: this.id, ...this.cursors });
      this.fault = answer.fault ?? null;
      if (this.fault !== null) return;
      this.changes = answer;
      more = false;
      for (const log of ["metrics", "timings", "evaluations"]) {
        const found = answer[log], store = this[log];
        if (found.restarted) { store.clear(); this.restarts += 1; }
        if (log === "evaluations") store.extend(found.records); else store.extend(found.columns, found.rows);
        this.cursors[log] = found.cursor;
        more ||= found.more;
        answer[log] = { damaged: found.damaged }; // the lines are not kept
      }
    }
  }
}
