// The live page of dgpo watch: asks the server every few seconds for what the logs have gained, and shows it.

import { Figures, duration, figure, make, swatch, write } from "./figures.js";
import { Run, ServerError, ask, known } from "./logs.js";

const EVERY = 2000; // milliseconds between updates; five times as many while the page is hidden
const MOST_RUNS = 6; // runs that are compared; as many colors are declared in watch.css
const MOST_LISTED = 200; // runs in the list at a time
const MOST_TASKS = 60;
const STATES = {
  starting: "starting: no iteration yet", running: "running", stalled: "stalled: no new line for long",
  finished: "finished", paused: "paused: its process reached its limit of iterations", interrupted: "interrupted",
  failed: "failed", killed: "killed: its process ended without a word", broken: "cannot be read",
};
const TIMINGS = [
  { title: "Seconds per iteration", note: "without evaluations and checkpoints", log: "timings", columns: { seconds: "seconds" }, unit: "s", floor: 0 },
  { title: "Throughput", note: "samples per second of the phases", log: "timings", columns: { rollout: "phases.rollout.samples_per_second", scoring: "phases.score.samples_per_second" }, unit: "samples/s", floor: 0 },
  { title: "Memory", note: "peak so far: of the GPU, or of the process on the CPU", log: "timings", columns: { memory: "peak_memory_bytes" }, unit: "GiB", floor: 0, scale: 2 ** -30 },
];


const byId = (id) => document.getElementById(id);

const page = {
  runs: new Map(), listed: [], chosen: [], panels: [], entries: new Map(), paused: false, touched: false, count: 0,
  curves: new Figures(byId("panels")), scores: new Figures(byId("score-curves")), samples: "", findings: "", legend: "",
};

/** Ask for what is new, and draw it. Never throws. */
async function update() {
  try {
    if (page.panels.length === 0) page.panels = await ask("/api/panels");
    if (page.count % 5 === 0 || page.listed.length === 0) await list();
    page.count += 1;
    for (const id of page.chosen) await page.runs.get(id)?.update();
    draw();
    if (page.chosen.length > 0) { await showSamples(); await showFindings(); }
    const first = page.runs.get(page.chosen[0]);
    trouble(first?.fault ?? first?.changes?.status.fault ?? "");
  } catch (error) {
    trouble(String(error.message));
    if (!(error instanceof ServerError)) console.error(error);
  }
}
function trouble(text) { byId("trouble").hidden = text === ""; write(byId("trouble"), text); }

async function list() {
  const answer = await ask("/api/runs");
  if (answer.fault) throw new ServerError(answer.fault);
  page.listed = answer.runs;
  byId("runs").hidden = answer.single;
  const exists = new Set(answer.runs.map((run) => run.id));
  const wanted = page.count === 0 ? new URLSearchParams(location.hash.slice(1)).getAll("run") : page.chosen;
  const kept = wanted.filter((id) => exists.has(id)).slice(0, MOST_RUNS);
  const active = answer.runs.find((run) => run.state === "running") ?? answer.runs[0];
  choose(kept.length > 0 || !active || page.touched ? kept : [active.id]);
  if (answer.runs.length === 0) { write(byId("title"), "No runs yet"); write(byId("state"), `waiting for a run in ${answer.watched.join(", ")}`); }
  showList();
}
function choose(ids) {
  page.chosen = ids;
  for (const id of page.runs.keys()) if (!ids.includes(id)) page.runs.delete(id);
  for (const id of ids) if (!page.runs.has(id)) page.runs.set(id, new Run(id));
  if (page.listed.length > 1) history.replaceState(null, "", `#${new URLSearchParams(ids.map((id) => ["run", id]))}`);
}

function showList() {
  const words = byId("filter").value.toLowerCase();
  const matching = page.listed.filter((run) => run.id.toLowerCase().includes(words) || page.chosen.includes(run.id)).slice(0, MOST_LISTED);
  const ids = new Set(matching.map((run) => run.id));
  for (const [id, entry] of page.entries) if (!ids.has(id)) { entry.item.remove(); page.entries.delete(id); }
  matching.forEach((run, i) => {
    if (!page.entries.has(run.id)) {
      const box = make("input", { type: "checkbox" }), note = make("span", { class: "note" });
      const item = make("li", {}, make("label", {}, box, make("span", {}, run.id), note));
      box.addEventListener("change", () => toggle(run.id, box.checked));
      page.entries.set(run.id, { item, box, note });
    }
    const { item, box, note } = page.entries.get(run.id);
    if (byId("run-list").children[i] !== item) byId("run-list").insertBefore(item, byId("run-list").children[i] ?? null);
    box.checked = page.chosen.includes(run.id);
    box.disabled = !box.checked && page.chosen.length >= MOST_RUNS;
    const of = known(run.iterations) ? ` of ${run.iterations.toLocaleString("en")}` : "";
    write(note, `${run.state}, ${run.iteration.toLocaleString("en")}${of}${known(run.score) ? `, score ${figure(run.score)}` : known(run.reward) ? `, reward ${figure(run.reward)}` : ""}`);
  });
  byId("runs-more").hidden = page.listed.length <= MOST_LISTED;
  write(byId("runs-more"), `${page.listed.length} runs; the filter finds the others.`);
}
function toggle(id, chosen) {
  page.touched = true; // from now on, nothing is chosen that the reader did not choose
  choose(chosen ? [...page.chosen, id] : page.chosen.filter((other) => other !== id));
  showList();
  refresh();
}

/** Lines of a panel: one for each chosen run and column. */
function lines(panel, log = "metrics") {
  return page.chosen.flatMap((id, run) => {
    const found = page.runs.get(id)[log], names = Object.entries(panel.columns), scale = panel.scale ?? 1;
    return names.filter(([, key]) => found.values.has(key)).map(([name, key], dash) => {
      const y = scale === 1 ? found.values.get(key) : found.values.get(key).map((value) => (known(value) ? value * scale : null));
      const line = { name: page.chosen.length === 1 ? name : names.length === 1 ? id : `${id}, ${name}`, run, dash, x: found.x, y, latest: found.latest.get(key) * scale };
      const std = panel.std && page.chosen.length === 1 ? found.values.get(panel.std) : null;
      return std ? { ...line, low: y.map((value, i) => (known(value) && known(std[i]) ? value - std[i] : null)), high: y.map((value, i) => (known(value) && known(std[i]) ? value + std[i] : null)) } : line;
    });
  });
}
/** Panels of the metrics whose names the run decides: rewards, subscores, sources, statistics, and those of plugins. */
function furtherPanels() {
  const keys = new Set(page.chosen.flatMap((id) => [...page.runs.get(id).metrics.values.keys()])), found = [];
  const rewards = [...keys].filter((key) => /^rewards\..+\.mean$/.test(key));
  for (const key of keys) {
    const [section, ...rest] = key.split("."), name = rest.join("."), short = name.replace(/\.mean$/, "");
    if (section === "rewards" && rewards.length > 1 && name.endsWith(".mean") && !name.includes(".subscores.")) found.push({ title: `Reward ${short}`, note: "before weighting, with its standard deviation", columns: { [short]: key }, std: `rewards.${short}.std` });
    if (section === "rewards" && name.includes(".subscores.")) found.push({ title: name.replace(".subscores.", ": "), note: "subscore of the reward", columns: { mean: key } });
    if (section === "sources" && /^[^.]+\.mean$/.test(name)) found.push({ title: `Source ${short}`, note: "weighted sum of its rewards", columns: { [short]: key } });
    if (section === "statistics") found.push({ title: name.replaceAll("_", " "), note: "of the samples", columns: { mean: key } });
    if (section === "extra") found.push({ title: name, note: "reported by the objective", columns: { [name]: key } });
    if (section === "timesteps") found.push({ title: `Timesteps: ${name}`, note: "reported by the timestep policy", columns: { [name]: key }, moving: true });
  }
  return found.slice(0, 60);
}
const moves = (line) => { const values = line.y.filter(known); return values.some((value) => value !== values[0]); };

function draw() {
  drawNow();
  const reward = { title: "Training reward", note: "mean over the samples of an iteration, with their standard deviation", columns: { mean: "reward.mean" }, std: "reward.std" };
  for (const panel of [reward, ...page.panels, ...furtherPanels()]) {
    const found = lines(panel);
    if (found.length > 0 && (!panel.moving || found.some(moves))) page.curves.draw(panel, found);
  }
  for (const panel of TIMINGS) { const found = lines(panel, "timings"); if (found.length > 0) page.curves.draw(panel, found); }
  page.curves.finish();
  byId("curves").hidden = page.curves.found.size === 0;
  const legend = page.chosen.join("\n");
  byId("legend").hidden = page.chosen.length < 2;
  if (page.legend !== legend) byId("legend").replaceChildren(...page.chosen.map((id, i) => make("li", {}, swatch(i), id)));
  page.legend = legend;
  drawScores();
}

function drawNow() {
  const run = page.runs.get(page.chosen[0]);
  byId("main").hidden = run === undefined;
  if (run === undefined || run.changes === null) { if (run) write(byId("title"), run.id); return; }
  const { status, name, may_stop_earlier: mayStop } = run.changes;
  byId("alarms").hidden = status.fault !== null; // it is shown at the top
  write(byId("title"), name || run.id);
  byId("badge").className = `badge ${status.state}`;
  write(byId("state"), STATES[status.state] ?? status.state);
  document.title = `${status.iteration}${known(status.iterations) ? `/${status.iterations}` : ""} ${name || run.id} – dgpo watch`;
  const bar = byId("progress");
  bar.hidden = !known(status.iterations);
  if (known(status.iterations)) {
    bar.setAttribute("aria-valuemax", status.iterations);
    bar.setAttribute("aria-valuenow", status.iteration);
    bar.setAttribute("aria-valuetext", `${status.iteration} of ${status.iterations} iterations`);
    bar.firstElementChild.style.width = `${Math.min(100, (100 * status.iteration) / status.iterations)}%`;
  }
  const damaged = ["metrics", "timings", "evaluations"].reduce((sum, log) => sum + run.changes[log].damaged, 0);
  run.damaged = (run.damaged ?? 0) + damaged;
  for (const log of ["metrics", "timings", "evaluations"]) run.changes[log].damaged = 0; // counted
  facts([
    ["Iteration", status.iteration.toLocaleString("en"), known(status.iterations) ? `of ${status.iterations.toLocaleString("en")}` : ""],
    ["Time left", known(status.eta) ? `${mayStop ? "≤ " : ""}${duration(status.eta)}` : "–", known(status.eta) ? "with evaluations and checkpoints" : ""],
    ["Per iteration", duration(status.seconds), "mean of the latest 50"],
    ["Throughput", known(status.rate) ? `${figure(Number(status.rate.toPrecision(3)))}/s` : "–", "samples, all phases"],
    ["Peak memory", known(status.memory) ? `${(status.memory / 2 ** 30).toFixed(2)} GiB` : "–", ""],
    ["Training reward", figure(status.reward), ""],
    ["Held-out score", figure(status.score), ""],
    ["Last line", known(status.quiet) ? `${duration(Math.round(status.quiet))} ago` : "–", run.damaged > 0 ? `${run.damaged} damaged lines skipped` : ""],
  ]);
}
function facts(rows) {
  const list = byId("facts");
  if (list.children.length === 0) list.append(...rows.map(([name]) => make("div", {}, make("dt", {}, name), make("dd", {}, make("span"), make("span", { class: "note" })))));
  rows.forEach(([, value, note], i) => { const [shown, small] = list.children[i].lastElementChild.children; write(shown, value); write(small, note); });
}

function drawScores() {
  const first = page.runs.get(page.chosen[0]);
  const shown = first ? ["target", "monitor", "statistic"].flatMap((role) => first.evaluations.of(role).map(([reward]) => [role, reward])) : [];
  byId("scores").hidden = shown.length === 0;
  const notes = { target: "held-out score with its 95 % interval", monitor: "monitor, on the held-out prompts", statistic: "statistic of the held-out samples" };
  for (const [role, reward] of shown) {
    const found = page.chosen.flatMap((id, run) => {
      const all = page.runs.get(id).evaluations.rewards.get(reward) ?? [];
      const line = { name: page.chosen.length === 1 ? "mean" : id, run, dash: 0, x: all.map((e) => e.iteration), y: all.map((e) => e.value), latest: all.at(-1)?.value };
      return all.length === 0 ? [] : [page.chosen.length === 1 ? { ...line, low: all.map((e) => e.low), high: all.map((e) => e.high) } : line];
    });
    page.scores.draw({ title: reward, note: notes[role], unit: "" }, found);
    const all = first.evaluations.rewards.get(reward), tasks = role === "target" && page.chosen.length === 1 ? [...new Set(all.flatMap((e) => Object.keys(e.groups)))] : [];
    const each = tasks.slice(0, 18).map((task, i) => ({ name: task, run: i % MOST_RUNS, dash: Math.floor(i / MOST_RUNS), x: all.map((e) => e.iteration), y: all.map((e) => e.groups[task] ?? null), latest: all.at(-1).groups[task] }));
    if (each.length > 1) page.scores.draw({ title: `${reward}: tasks`, note: "held-out score of each task", unit: "" }, each);
  }
  page.scores.finish();
  if (shown.length > 0) scoreTable(shown[0][1], first.evaluations.rewards.get(shown[0][1]));
}
function scoreTable(reward, all) {
  const before = all[0], after = all.at(-1), body = byId("score-rows");
  write(byId("score-caption"), `${reward} of ${page.chosen[0]}: first and latest evaluation`);
  const names = [...new Set([...Object.keys(before.groups), ...Object.keys(after.groups)])].slice(0, MOST_TASKS);
  const signed = (a, b) => (known(a) && known(b) ? `${b === a ? "" : b > a ? "+" : "−"}${figure(Math.abs(b - a))}` : "–");
  const rows = [["all tasks", before.value, after.value], ...names.map((name) => [name, before.groups[name], after.groups[name]])];
  const head = make("tr", {}, ...["task", before.iteration === 0 ? "base model" : `iteration ${before.iteration}`, `iteration ${after.iteration}`, "change"].map((text) => make("th", { scope: "col" }, text)));
  body.previousElementSibling.replaceChildren(head);
  body.replaceChildren(...rows.map(([name, a, b], i) => make("tr", i === 0 ? { class: "mean" } : {}, make("th", { scope: "row" }, name), make("td", {}, figure(a)), make("td", {}, figure(b)), make("td", {}, signed(a, b)))));
}

async function showSamples() {
  const run = page.runs.get(page.chosen[0]), images = run.changes?.images ?? [];
  byId("samples").hidden = images.length === 0;
  const state = `${run.id}\n${run.restarts}\n${images.join()}`;
  if (images.length === 0 || page.samples === state) return;
  const [first, last] = [images[0], images.at(-1)];
  const [before, after] = await Promise.all([first, last].map((iteration) => ask("/api/samples", { id: run.id, iteration })));
  page.samples = state;
  const label = (iteration) => (iteration === 0 ? "the base model" : `iteration ${iteration}`);
  write(byId("samples-note"), first === last ? `From ${label(first)}.` : `Left ${label(first)}, right ${label(last)}, from the same noise.`);
  const old = new Map(before.samples.map((sample) => [sample.index, sample]));
  byId("gallery").replaceChildren(...after.samples.map((sample) => {
    const pair = first === last || old.get(sample.index)?.prompt !== sample.prompt ? [[last, sample]] : [[first, old.get(sample.index)], [last, sample]];
    const box = make("div", { class: pair.length === 1 ? "two single" : "two" }, ...pair.map(([iteration, one]) => picture(run.id, iteration, one, label(iteration))));
    const source = new URLSearchParams({ id: run.id, iteration: last, index: sample.index, kind: "mp4", v: sample.version });
    const video = sample.video ? [" ", make("a", { href: `/media?${source}` }, "video")] : [];
    return make("figure", {}, box, make("figcaption", {}, sample.prompt || `sample ${sample.index}`, ...video));
  }));
}
function picture(id, iteration, sample, label) {
  const source = new URLSearchParams({ id, iteration, index: sample.index, v: sample.version });
  const image = make("img", { src: `/media?${source}`, loading: "lazy", alt: `${sample.prompt || `sample ${sample.index}`}: ${label}`, class: iteration === 0 ? "before" : "after" });
  image.addEventListener("load", () => {
    const wide = image.naturalWidth > 1.8 * image.naturalHeight;
    if ((wide ? image.naturalHeight : Math.max(image.naturalWidth, image.naturalHeight)) <= 128) image.classList.add("tiny");
    if (wide) image.parentElement.classList.add("wide");
  });
  return image;
}

const setting = (value) => (typeof value === "string" ? value : JSON.stringify(value));

async function showFindings() {
  const answer = await ask("/api/doctor", { id: page.chosen[0] }), text = JSON.stringify(answer);
  if (page.findings === text) return;
  page.findings = text;
  const list = byId("findings");
  if (answer.pending || answer.fault) { write(byId("doctor"), answer.fault ?? "Examining the run …"); list.replaceChildren(); return; }
  const early = answer.too_early.length;
  write(byId("doctor"), `${answer.summary}${early > 0 ? `; ${early} ${early === 1 ? "subject is" : "subjects are"} too early to judge` : ""}. Examined after iteration ${answer.iterations}.`);
  list.replaceChildren(...answer.findings.map((finding) => make("li", { class: finding.severity },
    make("h3", {}, make("b", {}, finding.severity), finding.title),
    ...finding.evidence.map((line) => make("p", { class: "note" }, line)),
    ...finding.changes.map((change) => make("p", {}, make("code", {}, `${change.key}: ${setting(change.present)} → ${setting(change.suggested)}`))),
    ...finding.advice.map((line) => make("p", {}, line)),
    make("details", {}, make("summary", {}, "Why"), make("p", {}, finding.why)))));
  if (answer.trial) list.append(make("li", {}, make("h3", {}, "To try the changes of the first finding"), make("p", {}, make("code", {}, answer.trial))));
}

// -- the clock --------------------------------------------------------------------------------------------------------

let timer = null, working = Promise.resolve();
/** Update now, after an update in progress; then again and again. */
export function refresh() {
  clearTimeout(timer);
  working = working.then(update).then(() => {
    clearTimeout(timer);
    if (!page.paused) timer = setTimeout(refresh, document.hidden ? 5 * EVERY : EVERY);
  });
  return working;
}
byId("pause").addEventListener("click", () => {
  page.paused = !page.paused;
  byId("pause").setAttribute("aria-pressed", String(page.paused));
  if (page.paused) clearTimeout(timer); else refresh();
});
byId("filter").addEventListener("input", showList);
document.addEventListener("visibilitychange", () => { if (!document.hidden && !page.paused) refresh(); });
refresh();
