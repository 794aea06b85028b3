"use strict";
/* The page: the table of runs, the controls, which charts there are, configurations, and following a live run. */

const charts = [
  { key: "loss", title: "Loss", note: "dashed: validation", text: short, log: true, validation: true, wide: true },
  { key: "grad_norm", title: "Gradient norm", note: "before clipping", text: short, log: true },
  { key: "lr", title: "Learning rate", text: short, exact: true },
  { key: "tps", title: "Tokens per second", note: "of one rank", text: short, fromZero: true },
  { key: "mfu", title: "MFU", note: "share of the bf16 peak", text: (v) => short(v) + "%", fromZero: true },
  { key: "time_s", title: "Time of a step", text: seconds, log: true, fromZero: true },
  { key: "memory_gib", title: "Memory", note: "peak so far", text: (v) => short(v) + " GiB", fromZero: true, exact: true },
  { key: "ep_bytes", title: "Expert-parallel bytes", note: "sent to other ranks in a step", text: bytes, fromZero: true, optional: true },
  { key: "ep_wait_s", title: "Waiting for peers", note: "in dispatch and combine, mean of a rank", text: seconds, fromZero: true, optional: true },
  { key: "ep_overflow_rows", title: "Overflow rows", note: "beyond the reserved capacity, sent in further rounds", text: short, fromZero: true, optional: true },
  { key: "moe_recomputed_rounds", title: "Recomputed rounds", note: "expert GEMMs run again in the backward pass", text: short, fromZero: true, optional: true },
  { key: "aux_loss", title: "Balance loss", text: short, log: true, optional: true },
  { key: "z_loss", title: "Router z-loss", text: short, log: true, optional: true },
];

const byId = (id) => document.getElementById(id);
const page = { xMode: "step", smoothing: 0, log: false, showRange: true, sync: "expar", zoomed: null, hidden: new Set(), run: 0, loadKind: "moe_load_max_over_mean", drawn: [] };
let report = null;

/* ---- the data ---- */

/* The shortest ends of the names that tell the runs apart: "runs/a" and "runs/b" are "a" and "b". */
function shortNames(names) {
  const parts = names.map((n) => n.split("/").filter((p) => p !== ""));
  for (let n = 1; n <= 8; n++) {
    const ends = parts.map((p) => p.slice(-n).join("/"));
    if (new Set(ends).size === names.length) return ends;
  }
  return names;
}

function takeData(data) {
  const labels = shortNames(data.runs.map((r) => r.name));
  data.runs.forEach((run, i) => {
    run.index = i;
    run.label = labels[i] || run.name;
    run.x = { step: run.step, tokens: run.tokens.map((v) => (isNumber(v) ? v : 0)), time: run.time };
    run.restarts = run.resumed.filter((r) => r[3] > 0);
    const load = run.load.step;
    run.load.bucket = load.length > 1 ? load[load.length - 1] - load[load.length - 2] : load.length ? load[0] : 1;
    if (load.length > 2) run.load.bucket = load[1] - load[0];
  });
  report = data;
}

const shown = () => report.runs.filter((r) => !page.hidden.has(r.index));

page.range = () => {
  if (page.zoomed) return page.zoomed;
  let low = Infinity, high = -Infinity;
  for (const run of shown()) {
    const x = run.x[page.xMode];
    if (x.length === 0) continue;
    low = Math.min(low, x[0]);
    high = Math.max(high, x[x.length - 1]);
  }
  return low <= high ? [page.xMode === "step" && low <= 1 ? 0 : low, high] : [0, 1];
};

page.zoom = (range) => {
  page.zoomed = range;
  byId("whole").hidden = range === null;
  for (const u of page.drawn) u.setData(u.data);
};

/* ---- the table of runs ---- */

const runColumns = [
  ["steps", (r) => whole(r.summary.steps && r.step[r.step.length - 1])],
  ["tokens", (r) => short(r.summary.tokens)],
  ["time", (r) => duration(r.summary.seconds)],
  ["loss", (r) => short(r.summary.last_loss)],
  ["best validation", (r) => (isNumber(r.summary.validation) ? [short(r.summary.validation), element("small", {}, " at " + whole(r.summary.validation_step))] : "–")],
  ["tok/s a rank", (r) => whole(r.summary.tps)],
  ["MFU", (r) => (isNumber(r.summary.mfu) ? r.summary.mfu.toPrecision(3) + "%" : "n/a")],
  ["memory", (r) => (isNumber(r.summary.memory_gib) ? short(+r.summary.memory_gib.toPrecision(3)) + " GiB" : "–")],
  ["restarts", (r) => whole(r.summary.restarts)],
  ["checkpoints", (r) => (r.checkpoints.length ? [whole(r.checkpoints.length), element("small", {}, ", last " + whole(r.checkpoints[r.checkpoints.length - 1]))] : "–")],
];

function runRow(run, columns) {
  const toggle = element("input", { type: "checkbox", onchange: (e) => {
    if (e.target.checked) page.hidden.delete(run.index);
    else page.hidden.add(run.index);
    drawAll();
  } });
  toggle.checked = !page.hidden.has(run.index);
  const name = element("td", {}, element("label", { style: "--own: var(--run-" + (run.index % 8) + ")", title: run.name }, toggle, run.label));
  return element("tr", {}, name, ...columns.map(([label, value]) => element("td", { "data-label": label }, element("span", {}, ...[value(run)].flat()))));
}

const isAbsent = (value) => value === "–" || value === "n/a";

function showRuns() {
  const columns = runColumns.filter(([, value]) => !report.runs.every((r) => isAbsent(value(r))));
  const head = element("tr", {}, element("th", {}, "run"), ...columns.map(([label]) => element("th", {}, label)));
  byId("runs").replaceChildren(element("div", { class: "card scroll" }, element("table", {}, element("thead", {}, head),
    element("tbody", {}, ...report.runs.map((r) => runRow(r, columns))))));
  byId("subtitle").textContent = report.runs.length === 1 ? report.runs[0].name : report.runs.length + " runs";
  document.title = report.runs.map((r) => r.label).join(", ") + " · expar report";
  const notes = [];
  for (const { label, summary } of report.runs) {
    if (summary.damaged > 0)
      notes.push(label + ": " + whole(summary.damaged) + (summary.damaged === 1 ? " line is" : " lines are") + " damaged and left out (first: line " + whole(summary.first_damaged) + ")");
    if (summary.not_finite > 0)
      notes.push(label + ": the loss of " + whole(summary.not_finite) + (summary.not_finite === 1 ? " step" : " steps") + " is not a finite number");
    if (summary.steps === 0) notes.push(label + ": no step yet");
  }
  byId("notes").replaceChildren(...notes.map((n) => element("p", {}, n)));
}

/* ---- charts ---- */

const matters = (chart) => report.runs.some((r) => {
  const values = r.series[chart.key];
  return values && (!chart.optional || values.some((v) => v > 0));
});

function title(text, note, ...more) {
  return element("div", { class: "title" }, element("h2", {}, text, note ? element("small", {}, note) : null), ...more);
}

/* One of a few, above a chart: a run, a kind of load. */
function choice(label, options, chosen, onchoice) {
  const select = element("select", { "aria-label": label, onchange: (e) => onchoice(e.target.value) },
    ...options.map(([value, text]) => element("option", { value }, text)));
  select.value = chosen;
  return select;
}

const runChoice = () => (report.runs.length > 1
  ? choice("run", report.runs.map((r) => [String(r.index), r.label]), String(page.run), (v) => { page.run = Number(v); drawAll(); }) : null);

function drawLines() {
  const cards = charts.filter(matters).map((chart) => {
    const box = element("div", { class: "plot" });
    const note = chart.validation && !report.runs.some((r) => r.validation.length > 0) ? null : chart.note;
    return { chart, box, card: element("div", { class: "card" + (chart.wide ? " wide" : ""), id: "chart-" + chart.key }, title(chart.title, note), box) };
  });
  byId("charts").replaceChildren(...cards.map((c) => c.card));
  for (const { chart, box } of cards) page.drawn.push(lineChart(box, shown(), chart, page));
}

function phaseBar(run) {
  const totals = phaseTotals(run), all = totals.reduce((a, b) => a + b, 0);
  if (!(all > 0)) return [];
  const parts = totals.map((t, k) => element("div", { style: "width:" + 100 * t / all + "%;background:var(--phase-" + k + ")",
    title: phases[k][1] + " " + duration(t) + ", " + (100 * t / all).toFixed(1) + "%" }, t / all > 0.07 ? (100 * t / all).toFixed(0) + "%" : ""));
  return [element("small", {}, report.runs.length > 1 ? run.label + ", " : "", duration(all) + " in all"), element("div", { class: "bar" }, ...parts)];
}

function drawPhases() {
  const run = report.runs[page.run], box = element("div", { class: "plot" });
  const key = element("div", { class: "key" }, ...phases.map(([, name], k) => element("span", {}, element("i", { style: "background:var(--phase-" + k + ")" }), name)));
  byId("phases").replaceChildren(element("div", { class: "card wide", id: "chart-phases" }, title("Time by phase", "seconds of a step", runChoice()),
    ...shown().flatMap(phaseBar), key, box));
  page.drawn.push(phaseChart(box, run, page));
}

function gradient(run) {
  const kind = loadKinds[page.loadKind], range = heatRange(run.load[page.loadKind], kind), canvas = element("canvas", { width: "110", height: "1" });
  if (!range) return null;
  const ctx = canvas.getContext("2d");
  for (let i = 0; i < 110; i++) {
    ctx.fillStyle = heat(i / 109);
    ctx.fillRect(i, 0, 1, 1);
  }
  return element("div", { class: "gradient" }, kind.text(range[0]), canvas, (range[2] ? "≥ " : "") + kind.text(range[1]));
}

function drawLoads() {
  const run = report.runs[page.run], layers = run.load.layers;
  const box = element("div", { class: "plot", style: "height:" + Math.min(Math.max(36 + 14 * layers, 110), 460) + "px" });
  if (!report.runs.some((r) => r.load.layers > 0)) return;
  if (layers === 0) {
    byId("loads").replaceChildren(element("div", { class: "card" }, title("Expert load", "this model has no experts", runChoice())));
    return;
  }
  const kinds = choice("kind of load", Object.entries(loadKinds).map(([key, kind]) => [key, kind.name]), page.loadKind, (v) => { page.loadKind = v; drawAll(); });
  byId("loads").replaceChildren(element("div", { class: "card wide", id: "chart-load" },
    title("Expert load", "layers downwards", gradient(run), kinds, runChoice()), box));
  page.drawn.push(heatChart(box, run, page.loadKind, page));
}

function drawAll() {
  const scrolled = window.scrollY;
  for (const u of page.drawn) u.destroy();
  page.drawn = [];
  page.run = Math.min(page.run, report.runs.length - 1);
  byId("range-label").hidden = !report.runs.some((r) => r.bucket > 1);
  for (const id of ["charts", "phases", "loads"]) byId(id).style.minHeight = byId(id).offsetHeight + "px"; /* no jumps */
  drawLines();
  drawPhases();
  drawLoads();
  for (const id of ["charts", "phases", "loads"]) byId(id).style.minHeight = "";
  window.scrollTo({ top: scrolled, behavior: "instant" });
}

/* ---- configurations ---- */

function showDifferences() {
  const runs = report.runs.filter((r) => Object.keys(r.config).length > 0);
  if (runs.length < 2) {
    byId("differences").replaceChildren();
    return;
  }
  const keys = [...new Set(runs.flatMap((r) => Object.keys(r.config)))].filter((key) => new Set(runs.map((r) => r.config[key])).size > 1);
  const head = element("tr", {}, element("th", {}, "key"), ...runs.map((r) => element("th", {}, r.label)));
  const rows = keys.map((key) => element("tr", {}, element("td", {}, key), ...runs.map((r) =>
    r.config[key] === undefined ? element("td", { class: "unset" }, "not there") : element("td", {}, r.config[key]))));
  const without = report.runs.length - runs.length;
  byId("differences").replaceChildren(element("div", { class: "card" },
    title("Differences of the configurations", without > 0 ? without + " of the runs have no config.toml" : null),
    keys.length ? element("div", { class: "scroll" }, element("table", {}, head, ...rows)) : element("p", {}, "none")));
}

function showConfigs() {
  const cards = report.runs.filter((r) => Object.keys(r.config).length > 0).map((run) => {
    const rows = Object.entries(run.config).map(([key, value]) => element("tr", {}, element("td", {}, key), element("td", {}, value)));
    const filter = element("input", { type: "search", placeholder: "find a key or a value", "aria-label": "find a key or a value", oninput: (e) => {
      const wanted = e.target.value.toLowerCase();
      for (const row of rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
    } });
    return element("details", { class: "card" }, element("summary", {}, "Configuration of " + run.label), filter, element("table", {}, ...rows));
  });
  byId("configs").replaceChildren(...cards);
}

/* ---- controls ---- */

function listen() {
  let waiting = 0;
  const redraw = () => { /* once a frame, however fast a slider moves */
    cancelAnimationFrame(waiting);
    waiting = requestAnimationFrame(drawAll);
  };
  byId("axis").addEventListener("change", (e) => {
    page.xMode = e.target.value;
    page.zoomed = null;
    byId("whole").hidden = true;
    redraw();
  });
  byId("smoothing").addEventListener("input", (e) => {
    page.smoothing = Number(e.target.value);
    byId("smoothing-value").textContent = e.target.value;
    redraw();
  });
  byId("log").addEventListener("change", (e) => { page.log = e.target.checked; redraw(); });
  byId("range").addEventListener("change", (e) => { page.showRange = e.target.checked; redraw(); });
  byId("whole").addEventListener("click", () => page.zoom(null));
}

function followTheme() {
  const system = matchMedia("(prefers-color-scheme: dark)"), themes = ["auto", "light", "dark"];
  let chosen = 0;
  const apply = () => {
    const dark = themes[chosen] === "dark" || (themes[chosen] === "auto" && system.matches);
    document.documentElement.toggleAttribute("data-dark", dark);
    byId("theme").textContent = "theme: " + themes[chosen];
    for (const u of page.drawn) u.redraw(false);
  };
  byId("theme").addEventListener("click", () => { chosen = (chosen + 1) % themes.length; apply(); });
  system.addEventListener("change", apply);
  apply();
}

/* ---- a run that is going on ---- */

const POLL_MS = 2000;
let news = null; /* not drawn yet */

/* Nothing is drawn anew under a pointer that reads values, or under an open menu. */
const isReading = () => document.querySelector(".plot:hover") !== null || document.activeElement.tagName === "SELECT";

async function poll() {
  const live = byId("live");
  try {
    const answer = await fetch("data?version=" + (news || report).version, { cache: "no-store" });
    if (!answer.ok) throw new Error(answer.statusText);
    if (answer.status === 200) news = await answer.json();
    if (news && !isReading()) {
      takeData(news);
      news = null;
      showAll();
    }
    live.className = "";
    live.textContent = "following, step " + report.runs.map((r) => whole(r.step[r.step.length - 1] || 0)).join(", ");
  } catch {
    live.className = "lost";
    live.textContent = "expar report --serve does not answer";
  }
  setTimeout(poll, POLL_MS);
}

function showAll() {
  showRuns();
  drawAll();
  showDifferences();
}

takeData(JSON.parse(byId("data").textContent));
followTheme();
listen();
showAll();
showConfigs();
if (document.documentElement.dataset.live === "yes") {
  byId("live").hidden = false;
  poll();
}
document.documentElement.dataset.ready = "yes";
