"use strict";
/* Drawing: number formats, one line chart a value, the phases of a step, the heat map of expert load. uPlot draws lines and axes. */

/* ---- numbers as text ---- */

const isNumber = (v) => typeof v === "number" && Number.isFinite(v);

function short(v) {
  if (!isNumber(v)) return "–";
  const size = Math.abs(v);
  for (const [unit, name] of [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]])
    if (size >= (unit === 1e3 ? 1e4 : unit)) return +(v / unit).toPrecision(4) + name;
  return size !== 0 && size < 1e-3 ? v.toExponential(2) : String(+v.toPrecision(5));
}

const whole = (v) => (isNumber(v) ? Math.round(v).toLocaleString("en-US") : "–");

function bytes(v) {
  if (!isNumber(v)) return "–";
  const units = ["B", "kB", "MB", "GB", "TB"];
  let i = 0;
  for (; Math.abs(v) >= 1000 && i < units.length - 1; i++) v /= 1000;
  return +v.toPrecision(4) + " " + units[i];
}

function seconds(v) {
  if (!isNumber(v)) return "–";
  if (v === 0) return "0 s";
  if (v < 1e-3) return +(v * 1e6).toPrecision(3) + " µs";
  if (v < 1) return +(v * 1e3).toPrecision(3) + " ms";
  return +v.toPrecision(4) + " s";
}

/* 90061 -> "1d 1h" */
function duration(v) {
  if (!isNumber(v)) return "–";
  const s = Math.round(v);
  const parts = [[86400, "d"], [3600, "h"], [60, "m"], [1, "s"]].map(([unit, name], i, all) =>
    [Math.floor((i ? s % all[i - 1][0] : s) / unit), name]);
  const first = parts.findIndex(([n]) => n > 0);
  if (first < 0) return v > 0 ? seconds(v) : "0s";
  return parts.slice(first, first + 2).filter(([n], i) => i === 0 || n > 0).map(([n, name]) => n + name).join(" ");
}

const xNames = { step: "step", tokens: "tokens", time: "time" };
const xText = { step: whole, tokens: short, time: duration };
const wholeSteps = Array.from({ length: 40 }, (_, i) => [1, 2, 5][i % 3] * 10 ** Math.floor(i / 3));
const timeSteps = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400, 172800, 432000, 864000, 2592000];

/* ---- colours ---- */

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const runColor = (i) => css("--run-" + (i % 8));
const phaseColor = (i) => css("--phase-" + i);

/* Viridis: equally spaced in brightness, and readable by colour-blind eyes. */
const viridis = [[68, 1, 84], [72, 40, 120], [62, 74, 137], [49, 104, 142], [38, 130, 142], [31, 158, 137], [53, 183, 121], [110, 206, 88], [181, 222, 43], [253, 231, 37]];
function heat(t) {
  const at = Math.min(Math.max(t, 0), 1) * (viridis.length - 1), i = Math.min(Math.floor(at), viridis.length - 2);
  return "rgb(" + viridis[i].map((c, k) => Math.round(c + (viridis[i + 1][k] - c) * (at - i))).join(",") + ")";
}

function element(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name === "class") made.className = value;
    else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name === "style") made.style.cssText = value;
    else made.setAttribute(name, value);
  }
  made.append(...children.filter((c) => c !== null && c !== undefined));
  return made;
}

/* ---- what all charts share ---- */

/* Where x lies in ascending values: the first index that is not below it. */
function lowerBound(values, x) {
  let low = 0, high = values.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (values[middle] < x) low = middle + 1;
    else high = middle;
  }
  return low;
}

/* Exponential mean, corrected for its start as TensorBoard has it; a gap stays a gap. */
function smooth(values, weight) {
  if (weight <= 0) return values;
  let mean = 0, debias = 0;
  return values.map((v) => {
    if (!isNumber(v)) return null;
    mean = mean * weight + (1 - weight) * v;
    debias = debias * weight + (1 - weight);
    return mean / debias;
  });
}

/* The range of an axis with one value only would be empty. */
const widened = ([low, high]) => (low < high ? [low, high] : [low - 1, high + 1]);

function axes(text, xMode) {
  const line = { stroke: () => css("--muted"), grid: { stroke: () => css("--grid"), width: 1 }, ticks: { show: false }, font: "11px system-ui, sans-serif" };
  return [
    { ...line, size: 26, space: 64, values: (u, ticks) => ticks.map(xText[xMode]), ...(xMode === "tokens" ? {} : { incrs: xMode === "time" ? timeSteps : wholeSteps }) },
    { ...line, values: (u, ticks) => ticks.map((v) => (v === null ? "" : text(v))),
      size: (u, labels) => (labels ? Math.max(34, 14 + 6.4 * Math.max(...labels.map((l) => l.length))) : 40) },
  ];
}

/**
 * A uPlot in `box` with a tip that follows the pointer. `page` has xMode, range() of x, zoom([low, high] or null) and sync.
 * tip(u, x) gives the tip's children, or null.
 */
function plot(box, page, options, data, tip) {
  const bubble = element("div", { class: "tip", hidden: "" });
  const showTip = (u) => {
    const { left, top } = u.cursor;
    const own = u.over.matches(":hover");
    const children = own && left >= 0 ? tip(u, u.posToVal(left, "x")) : null;
    bubble.hidden = !children;
    if (!children) return;
    bubble.replaceChildren(...children);
    const width = bubble.offsetWidth, room = u.over.clientWidth;
    bubble.style.left = Math.max(0, left + 14 + width > room ? left - width - 14 : left + 14) + "px";
    bubble.style.top = Math.min(Math.max(top - 20, 0), Math.max(0, u.over.clientHeight - bubble.offsetHeight)) + "px";
  };
  const made = new uPlot({
    width: Math.max(box.clientWidth, 120), height: Math.max(box.clientHeight, 120), legend: { show: false }, padding: [8, 22, 0, 0],
    ...options,
    scales: { x: { time: false, range: () => widened(page.range()) }, ...options.scales },
    cursor: {
      y: false, sync: { key: page.sync, scales: ["x", null] }, drag: { x: true, y: false, setScale: false, dist: 6 },
      bind: { dblclick: () => () => { page.zoom(null); return null; } }, ...options.cursor,
    },
    hooks: {
      ...options.hooks,
      setCursor: [showTip],
      setSelect: [(u) => {
        if (u.select.width < 6) return;
        const zoomed = [u.posToVal(u.select.left, "x"), u.posToVal(u.select.left + u.select.width, "x")];
        u.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
        page.zoom(zoomed);
      }],
    },
  }, data, box);
  made.over.append(bubble);
  made.over.addEventListener("mouseleave", () => { bubble.hidden = true; });
  new ResizeObserver(() => {
    if (box.clientWidth > 0 && (box.clientWidth !== made.width || box.clientHeight !== made.height))
      made.setSize({ width: box.clientWidth, height: box.clientHeight });
  }).observe(box);
  return made;
}

/* ---- lines ---- */

/* The columns of one run for one chart: x, value, and with smoothing or ranges the fainter ones. */
function runLines(run, chart, page) {
  const points = run.x[page.xMode];
  const clean = (values) => (page.log && chart.log ? values.map((v) => (v > 0 ? v : null)) : values);
  const mean = clean(run.series[chart.key]);
  const weight = chart.exact ? 0 : page.smoothing;
  const lines = [{ kind: "main", values: smooth(mean, weight) }];
  if (weight > 0) lines.unshift({ kind: "raw", values: mean });
  else if (page.showRange && run.series[chart.key + ".low"])
    lines.unshift({ kind: "high", values: clean(run.series[chart.key + ".high"]) }, { kind: "low", values: clean(run.series[chart.key + ".low"]) });
  return { points, lines };
}

/* Tables for uPlot.join() and the series that belong to their columns. */
function lineTables(runs, chart, page) {
  const tables = [], series = [{}], bands = [];
  for (const run of runs) {
    if (!run.series[chart.key]) continue;
    const { points, lines } = runLines(run, chart, page), color = () => runColor(run.index);
    tables.push([points, ...lines.map((l) => l.values)]);
    for (const { kind } of lines) {
      if (kind === "low") bands.push({ series: [series.length - 1, series.length], fill: () => color() + "33" });
      const faint = kind === "low" || kind === "high";
      series.push({ run, kind, stroke: faint ? "transparent" : kind === "raw" ? () => color() + "55" : color,
        width: kind === "main" ? 1.6 : 1, points: kind === "main" ? { size: 4 } : { show: false } });
    }
  }
  for (const run of chart.validation ? runs.filter((r) => r.validation.length > 0) : []) {
    const x = { step: 0, tokens: 1, time: 2 }[page.xMode];
    tables.push([run.validation.map((v) => v[x]), run.validation.map((v) => v[3])]);
    series.push({ run, kind: "validation", stroke: () => runColor(run.index), width: 1.2, dash: [5, 4],
      points: { show: run.validation.length < 400, size: 5, fill: () => css("--card") } });
  }
  return { tables, series, bands };
}

function drawRestarts(u, runs, page) {
  const { ctx, bbox } = u, x = { step: 0, tokens: 1, time: 2 }[page.xMode];
  ctx.save();
  ctx.font = 11 * devicePixelRatio + "px system-ui, sans-serif";
  ctx.textAlign = "center";
  ctx.lineWidth = devicePixelRatio;
  for (const run of runs)
    for (const restart of run.restarts) {
      const at = Math.round(u.valToPos(restart[x], "x", true));
      if (!(at >= bbox.left && at <= bbox.left + bbox.width)) continue;
      ctx.strokeStyle = ctx.fillStyle = runColor(run.index);
      ctx.globalAlpha = 0.75;
      ctx.setLineDash([2 * devicePixelRatio, 3 * devicePixelRatio]);
      ctx.beginPath();
      ctx.moveTo(at, bbox.top + 12 * devicePixelRatio);
      ctx.lineTo(at, bbox.top + bbox.height);
      ctx.stroke();
      ctx.fillText("↻", at, bbox.top + 10 * devicePixelRatio);
    }
  ctx.restore();
}

/* "● run  3.41 (3.2 to 3.9)", a line for each run that has a value near the pointer. */
function lineTip(u, chart, page, pointer) {
  const rows = [], at = (i) => (u.cursor.idxs ? u.cursor.idxs[i] : u.cursor.idx);
  const near = 0.01 * (u.scales.x.max - u.scales.x.min);
  let x = null;
  u.series.forEach((s, i) => {
    const idx = i > 0 ? at(i) : null;
    const value = idx === null || idx === undefined ? null : u.data[i][idx];
    if (i === 0 || (s.kind !== "main" && s.kind !== "validation") || value === null || value === undefined) return;
    const here = u.data[0][idx], run = s.run, all = run.x[page.xMode];
    if (pointer < all[0] - near || pointer > all[all.length - 1] + near) return;
    const k = lowerBound(all, here);
    const low = run.series[chart.key + ".low"], high = run.series[chart.key + ".high"];
    x = x === null ? here : x;
    const row = element("div", {}, element("i", { style: "background:" + runColor(run.index) }),
      run.label + (s.kind === "validation" ? " validation  " : "  "), element("b", {}, chart.text(value)));
    const notes = [];
    if (s.kind === "main" && page.smoothing > 0 && !chart.exact && isNumber(run.series[chart.key][k])) notes.push("unsmoothed " + chart.text(run.series[chart.key][k]));
    else if (s.kind === "main" && low && isNumber(low[k])) notes.push(chart.text(low[k]) + " to " + chart.text(high[k]));
    if (page.xMode !== "step" && isNumber(run.x.step[k])) notes.push("step " + whole(run.x.step[k]));
    const restart = run.restarts.find((r) => r[0] === run.x.step[k]);
    if (restart) notes.push("resumed from step " + whole(restart[3]));
    if (notes.length) row.append(" ", element("small", {}, notes.join(", ")));
    rows.push(row);
  });
  if (x === null) return null;
  return [element("small", {}, xNames[page.xMode] + " " + xText[page.xMode](x)), ...rows];
}

function lineChart(box, runs, chart, page) {
  const { tables, series, bands } = lineTables(runs, chart, page);
  const data = tables.length === 1 ? tables[0] : tables.length === 0 ? [[], []] : uPlot.join(tables);
  const y = page.log && chart.log ? { distr: 3 } : chart.fromZero ? { range: (u, low, high) => [0, high > 0 ? high * 1.06 : 1] } : {};
  return plot(box, page, {
    series: tables.length ? series : [{}, {}], bands, axes: axes(chart.text, page.xMode), scales: { y },
    hooks: { draw: [(u) => drawRestarts(u, runs, page)] },
  }, data, (u, x) => lineTip(u, chart, page, x));
}

/* ---- where the time of a step goes ---- */

const phases = [
  ["data_time_s", "data wait"], ["forward_backward_s", "forward and backward"], ["optimizer_s", "optimizer"],
  ["checkpoint_s", "checkpoint"], ["validation_s", "validation"], [null, "other"],
];

/* Seconds of each phase at each point; "other" is what is left of the step. */
function phaseTimes(run) {
  const n = run.x.step.length, none = new Array(n).fill(0);
  const known = phases.slice(0, -1).map(([key]) => (run.series[key] || none).map((v) => v || 0));
  const total = run.series.time_s || none;
  return [...known, total.map((t, i) => Math.max(0, (t || 0) - known.reduce((sum, p) => sum + p[i], 0)))];
}

function phaseTotals(run) {
  const last = run.x.step.length - 1, weight = (i) => (i < last ? run.bucket : run.summary.steps - run.bucket * last);
  return phaseTimes(run).map((values) => values.reduce((sum, v, i) => sum + v * weight(i), 0));
}

function phaseChart(box, run, page) {
  const times = phaseTimes(run).map((values) => smooth(values, page.smoothing));
  let below = new Array(run.x.step.length).fill(0);
  const stacked = times.map((values) => (below = below.map((v, i) => v + values[i])));
  const order = phases.map((_, i) => i).reverse(); /* the highest first: what is lower is drawn over it */
  const series = order.map((i) => ({ label: phases[i][1], width: 0, fill: () => phaseColor(i), fillTo: 0, points: { show: false },
    paths: uPlot.paths.stepped({ align: -1 }) }));
  return plot(box, page, {
    series: [{}, ...series], axes: axes(seconds, page.xMode), scales: { y: { range: (u, low, high) => [0, high > 0 ? high * 1.04 : 1] } },
    hooks: { draw: [(u) => drawRestarts(u, [run], page)] },
  }, [run.x[page.xMode], ...order.map((i) => stacked[i])], (u) => {
    const i = u.cursor.idx;
    if (i === null || i === undefined) return null;
    const total = stacked[stacked.length - 1][i] || 0;
    return [element("small", {}, xNames[page.xMode] + " " + xText[page.xMode](run.x[page.xMode][i]) + ", " + seconds(total) + " a step"),
      ...times.map((values, k) => [values[i], k]).filter(([v]) => v > 0).reverse().map(([v, k]) =>
        element("div", {}, element("i", { style: "background:" + phaseColor(k) }), phases[k][1] + "  ", element("b", {}, seconds(v)),
          element("small", {}, " " + (100 * v / total).toFixed(1) + "%")))];
  });
}

/* ---- expert load ---- */

const loadKinds = {
  moe_load_max_over_mean: { name: "busiest expert / mean", text: (v) => short(+v.toPrecision(3)), low: 1 },
  moe_load_busiest_rank_share: { name: "share of the busiest rank", text: (v) => (100 * v).toPrecision(3) + "%", low: null },
};

/* From the even load, or the smallest value, to what only one cell of a hundred exceeds. */
function heatRange(rows, kind) {
  const sorted = rows.flat().filter(isNumber).sort((a, b) => a - b);
  if (sorted.length === 0) return null;
  const low = kind.low === null ? sorted[0] : kind.low, high = sorted[Math.floor(0.99 * (sorted.length - 1))];
  return [low, high > low ? high : low + 1e-6, sorted[sorted.length - 1] > high];
}

function heatChart(box, run, key, page) {
  const kind = loadKinds[key], rows = run.load[key], x = run.load[page.xMode], layers = run.load.layers;
  const [low, high] = heatRange(rows, kind) || [0, 1];
  const left = (i) => (i > 0 ? x[i - 1] : page.xMode === "step" ? x[0] - run.load.bucket : 0);
  const draw = (u) => {
    const { ctx, bbox } = u;
    ctx.save();
    ctx.beginPath();
    ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
    ctx.clip();
    for (let i = 0; i < x.length; i++) {
      const from = Math.floor(u.valToPos(left(i), "x", true)), to = Math.ceil(u.valToPos(x[i], "x", true));
      if (to < bbox.left || from > bbox.left + bbox.width) continue;
      for (let l = 0; l < layers; l++) {
        if (!isNumber(rows[l][i])) continue;
        const top = Math.floor(u.valToPos(l, "y", true)), bottom = Math.ceil(u.valToPos(l + 1, "y", true));
        ctx.fillStyle = heat((rows[l][i] - low) / (high - low));
        ctx.fillRect(from, top, to - from, bottom - top);
      }
    }
    ctx.restore();
    drawRestarts(u, [run], page);
  };
  const [xAxis, yAxis] = axes((v) => String(v), page.xMode);
  return plot(box, page, {
    series: [{}, { paths: () => null, points: { show: false } }],
    axes: [{ ...xAxis, grid: { show: false } }, { ...yAxis, grid: { show: false }, incrs: [1, 2, 5, 10, 20, 50, 100], space: 18,
      values: (u, ticks) => ticks.map((v) => (v < layers ? String(v) : "")) }],
    scales: { y: { dir: -1, range: () => [0, layers] } }, cursor: { y: true, points: { show: false } }, hooks: { draw: [draw] },
  }, [x, x.map(() => 0)], (u, at) => {
    const i = lowerBound(x, at), layer = Math.floor(u.posToVal(u.cursor.top, "y"));
    if (i >= x.length || !(layer >= 0 && layer < layers) || !isNumber(rows[layer][i])) return null;
    const first = i > 0 ? run.load.step[i - 1] + 1 : run.load.step[0] - run.load.bucket + 1, last = run.load.step[i];
    return [element("small", {}, "layer " + layer + ", " + (first < last ? "steps " + whole(Math.max(first, 1)) + " to " + whole(last) : "step " + whole(last))),
      element("div", {}, kind.name + "  ", element("b", {}, kind.text(rows[layer][i])))];
  });
}
