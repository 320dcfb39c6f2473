"use strict";
// Everything from the data goes into the page as text, never as markup.
const data = JSON.parse(document.getElementById("data").textContent);
const page = document.getElementById("page");
const COLORS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#7A5195"];
const DASHES = ["solid", "dash", "dot"];
const MOST_SHOWN = 6; // curves at first; the legend shows the others

function make(parent, tag, text, attributes = {}) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  parent.append(element);
  return element;
}

function style(name) {
  const i = Math.max(0, data.order.indexOf(name));
  return { color: COLORS[i % COLORS.length], dash: DASHES[Math.floor(i / COLORS.length) % DASHES.length], width: 2 };
}

// Plotly reads a little HTML in labels.
const label = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

function plot(parent, traces, layout) {
  const place = make(parent, "div", undefined, { class: "plot" });
  draw(place, traces, layout);
  return place;
}

function draw(place, traces, layout) {
  const narrow = page.clientWidth < 600;
  const base = {
    margin: { l: 56, r: 12, t: 10, b: 46 },
    font: { size: 12 },
    legend: narrow ? { orientation: "h", y: -0.36, yanchor: "top" } : {},
    hovermode: "closest",
  };
  Plotly.react(place, traces, { ...base, ...layout }, { responsive: true, displaylogo: false });
}

function table(parent, name, head, rows, link) {
  const controls = make(parent, "div", undefined, { class: "controls" });
  const filter = make(controls, "input", undefined, { type: "search", placeholder: "filter …", "aria-label": "filter " + name });
  const count = make(controls, "small", "");
  const element = make(make(parent, "div", undefined, { class: "scroll" }), "table", undefined, { id: name });
  const top = make(make(element, "thead"), "tr");
  const body = make(element, "tbody");
  let by = null, up = true;
  const headers = head.map((title, i) => {
    const header = make(top, "th", undefined, { "aria-sort": "none" });
    make(header, "button", title, { type: "button" }).addEventListener("click", () => {
      up = by === i ? !up : true;
      by = i;
      headers.forEach((h, j) => h.setAttribute("aria-sort", j !== i ? "none" : up ? "ascending" : "descending"));
      show();
    });
    return header;
  });
  function compare(a, b) {
    const [x, y] = [a[by][1], b[by][1]];
    if (typeof x !== typeof y) return typeof x === "number" ? -1 : 1; // what was not measured stands last
    const order = typeof x === "number" ? x - y : x < y ? -1 : x > y ? 1 : 0;
    return up ? order : -order;
  }
  function show() {
    const wanted = filter.value.toLowerCase();
    const kept = rows.filter((row) => row.some((cell) => String(cell[0]).toLowerCase().includes(wanted)));
    if (by !== null) kept.sort(compare);
    body.replaceChildren();
    for (const row of kept) {
      const line = make(body, "tr");
      row.forEach((cell, i) => {
        const place = make(line, "td", link && i === 0 ? undefined : cell[0], String(cell[0]).length > 60 ? { class: "long" } : {});
        if (link && i === 0) make(place, "a", cell[0], { href: "#run/" + encodeURIComponent(cell[0]) });
      });
    }
    count.textContent = kept.length + " of " + rows.length;
  }
  filter.addEventListener("input", show);
  show();
}

function menu(parent, name, options, onchange) {
  const outer = make(parent, "label", name + " ");
  const select = make(outer, "select", undefined, { id: "menu-" + name });
  options.forEach((option) => make(select, "option", option, { value: option }));
  select.addEventListener("change", onchange);
  return select;
}

function check(parent, name, checked, onchange) {
  const outer = make(parent, "label", "");
  const box = make(outer, "input", undefined, { type: "checkbox", id: "check-" + name });
  box.checked = checked;
  outer.append(" " + name);
  box.addEventListener("change", onchange);
  return box;
}

const median = (values) => {
  const ordered = values.slice().sort((a, b) => a - b);
  return (ordered[(ordered.length - 1) >> 1] + ordered[ordered.length >> 1]) / 2;
};

// A line for the median over the seeds, a band from the least to the greatest.
function band(group, runs, metric, axis, shown) {
  const at = new Map();
  for (const run of runs) {
    (run.curve[metric] || []).forEach((value, i) => {
      const x = (run.curve[axis] || [])[i];
      if (value === null || x === null || x === undefined) return;
      const key = run.curve.step[i];
      if (!at.has(key)) at.set(key, { x: [], y: [] });
      at.get(key).x.push(x);
      at.get(key).y.push(value);
    });
  }
  const steps = [...at.keys()].sort((a, b) => a - b);
  if (!steps.length) return [];
  const x = steps.map((s) => median(at.get(s).x));
  const line = style(group);
  const common = { x, legendgroup: group, visible: shown ? true : "legendonly" };
  const edge = { ...common, mode: "lines", line: { width: 0, color: line.color }, showlegend: false, hoverinfo: "skip" };
  const traces = [];
  if (runs.length > 1) {
    traces.push({ ...edge, y: steps.map((s) => Math.min(...at.get(s).y)) });
    traces.push({ ...edge, y: steps.map((s) => Math.max(...at.get(s).y)), fill: "tonexty", fillcolor: line.color + "26" });
  }
  traces.push({ ...common, y: steps.map((s) => median(at.get(s).y)), mode: x.length < 3 ? "markers" : "lines", line, marker: { color: line.color }, name: label(group) });
  return traces;
}

function curves(parent) {
  make(parent, "h2", "Curves", { id: "curves" });
  make(parent, "p", "Median over the seeds, band from the least to the greatest. Click a name to show or hide it.");
  const tasks = [...new Set(data.runs.map((run) => run.task))];
  const known = [...new Set(data.runs.flatMap((run) => Object.keys(run.curve)))];
  const metrics = known.filter((metric) => !["step", "cost/gradients", "time/train_seconds"].includes(metric));
  const axes = ["step", "cost/gradients", "time/train_seconds"].filter((axis) => known.includes(axis));
  const controls = make(parent, "div", undefined, { class: "controls" });
  const show = () => {
    const own = data.runs.filter((run) => run.task === task.value);
    const traces = data.order.flatMap((group, i) => band(group, own.filter((run) => run.group === group), metric.value, axis.value, i < MOST_SHOWN));
    draw(place, traces, {
      xaxis: { title: { text: axis.value }, type: logx.checked ? "log" : "linear" },
      yaxis: { title: { text: metric.value }, type: logy.checked ? "log" : "linear", exponentformat: "power" },
    });
  };
  const task = menu(controls, "task", tasks, show);
  const metric = menu(controls, "metric", metrics, show);
  const axis = menu(controls, "against", axes, show);
  const logx = check(controls, "log x", false, show);
  const logy = check(controls, "log y", true, show);
  if (metrics.includes("test/loss")) metric.value = "test/loss";
  const place = make(parent, "div", undefined, { class: "plot", id: "curve-plot" });
  show();
}

function profile(parent) {
  make(parent, "h2", "Performance profile", { id: "profile" });
  make(parent, "p", "Share of (task, seed) problems whose target was reached with at most τ times the fewest gradients that anyone needed. It depends on who else is in.");
  const { factors, series } = data.profiles;
  const traces = data.order.map((name) => ({ x: factors, y: series[name], name: label(name), mode: "lines", line: { ...style(name), shape: "hv" } }));
  plot(parent, traces, { xaxis: { title: { text: "τ, times the fewest gradients" }, type: "log" }, yaxis: { title: { text: "share of problems" }, range: [-0.02, 1.02] } });
}

function tuning(parent) {
  make(parent, "h2", "What tuning buys", { id: "tuning" });
  make(parent, "p", "Median of the best validation among k random points of the search space, with its exact 95 % interval; where the line is flat, no tuning is needed. An open end of an interval is not drawn.");
  const controls = make(parent, "div", undefined, { class: "controls" });
  const show = () => {
    const chosen = data.tuning[task.value];
    const traces = data.order.map((name, i) => {
      const own = chosen[name];
      const reach = (end) => own.map((p) => (p[0] === null || p[end] === null ? 0 : Math.abs(p[end] - p[0])));
      return { x: own.map((_, j) => j + 1), y: own.map((p) => p[0]), name: label(name), mode: "lines+markers", line: style(name), visible: i < MOST_SHOWN ? true : "legendonly", error_y: { type: "data", symmetric: false, array: reach(2), arrayminus: reach(1), thickness: 1, width: 3 } };
    });
    const about = data.tasks.find((t) => t.name === task.value);
    draw(place, traces, { xaxis: { title: { text: "k, tuning points" }, dtick: 1 }, yaxis: { title: { text: about.select }, type: "log", exponentformat: "power" } });
  };
  const task = menu(controls, "tuned task", Object.keys(data.tuning), show);
  const place = make(parent, "div", undefined, { class: "plot" });
  show();
}

function differences(parent) {
  const { names, ranks, difference, cliques } = data.ranks;
  if (names.length < 2 || difference === null) return;
  make(parent, "h2", "Critical differences", { id: "ranks" });
  make(parent, "p", "Mean rank over the tasks, the best at the left. A bar joins those that Nemenyi's test does not tell apart: mean ranks less than " + difference.toFixed(2) + " apart.");
  const order = names.map((name, i) => [name, ranks[i]]).sort((a, b) => a[1] - b[1]);
  const half = Math.ceil(order.length / 2), top = 0.6 + cliques.length * 0.5;
  const traces = [], annotations = [], n = order.length, wing = 0.1 * n;
  order.forEach(([name, rank], i) => {
    const left = i < half, level = -(top + (left ? i : n - 1 - i)), end = left ? 1 - wing : n + wing;
    traces.push({ x: [rank, rank, end], y: [0, level, level], mode: "lines", line: { color: style(name).color, width: 1.5 }, hoverinfo: "skip" });
    traces.push({ x: [rank], y: [0], mode: "markers", marker: { color: style(name).color, size: 8 }, name: label(name), hovertemplate: label(name) + ": %{x:.2f}<extra></extra>" });
    annotations.push({ x: end, y: level, text: label(name) + " " + rank.toFixed(1), showarrow: false, xanchor: left ? "left" : "right", yanchor: "bottom" });
  });
  const at = new Map(order);
  cliques.forEach((members, i) => {
    const own = members.map((name) => at.get(name));
    traces.push({ x: [Math.min(...own) - 0.03 * n, Math.max(...own) + 0.03 * n], y: [-(0.4 + i * 0.5), -(0.4 + i * 0.5)], mode: "lines", line: { color: "#000", width: 5 }, hoverinfo: "skip" });
  });
  const place = plot(parent, traces, {
    showlegend: false, annotations, margin: { l: 10, r: 10, t: 40, b: 10 },
    xaxis: { side: "top", range: [1 - wing - 0.02 * n, n + wing + 0.02 * n], tickvals: order.map((_, i) => i + 1), zeroline: false, showgrid: false },
    yaxis: { visible: false, range: [-(top + half), 0.3] },
  });
  place.id = "cd";
}

function oneRun(run) {
  const old = document.getElementById("run");
  if (old) old.remove();
  if (!run) return;
  const box = document.createElement("section");
  box.id = "run";
  box.className = "run";
  document.getElementById("runs-place").before(box);
  make(box, "h3", run.name);
  make(box, "p", run.optimizer + " on " + run.task + ", seed " + run.seed + ": " + run.status + " at step " + run.step);
  make(box, "pre", run.command, { id: "command" });
  make(box, "h3", "Optimizer");
  make(box, "pre", JSON.stringify(run.settings, null, 2));
  const x = run.curve.step || [];
  for (const [title, metrics] of [["Loss", ["train/loss", "val/loss", "test/loss"]], ["Sharpness", ["sharpness/lambda_max", "edge/threshold"]], ["Distance to the edge", ["edge/distance"]], ["Gap", ["gap/loss", "gap/error"]]]) {
    const present = metrics.filter((metric) => (run.curve[metric] || []).some((value) => value !== null));
    if (!present.length) continue;
    make(box, "h3", title);
    const traces = present.map((metric, i) => ({ x, y: run.curve[metric], name: metric, mode: "lines+markers", connectgaps: true, marker: { size: 4 }, line: { color: COLORS[i] } }));
    plot(box, traces, { xaxis: { title: { text: "step" } }, yaxis: { type: title === "Gap" ? "linear" : "log", exponentformat: "power" } });
  }
  const facts = { ...run.facts, ...run.last };
  make(box, "h3", "Values at the end, and where they come from");
  table(box, "facts", ["quantity", "value"], Object.entries(facts).map(([key, value]) => [[key, key], [String(value), typeof value === "number" ? value : String(value)]]));
  box.scrollIntoView();
}

function runs(parent) {
  make(parent, "h2", "Runs", { id: "runs-title" });
  make(parent, "p", "Choose one for its configuration, the command that makes it again, and its curves.");
  make(parent, "div", undefined, { id: "runs-place" });
  const number = (value) => (value === undefined ? ["–", ""] : [String(value), value]);
  const rows = data.runs.map((run) => [[run.name, run.name], [run.optimizer, run.optimizer], [run.task, run.task], [String(run.seed), run.seed], [run.status, run.status], number(run.last["test/loss"]), number(run.last["test/error"]), number(run.last["sharpness/lambda_max"])]);
  table(parent, "runs", ["run", "optimizer", "task", "seed", "status", "test/loss", "test/error", "sharpness/lambda_max"], rows, true);
}

function route() {
  const chosen = location.hash.startsWith("#run/") ? decodeURIComponent(location.hash.slice(5)) : "";
  oneRun(data.runs.find((run) => run.name === chosen));
}

document.title = "optbench: " + data.title;
make(page, "h1", data.title);
make(page, "p", data.about);
(data.alarms || []).forEach((line) => make(page, "p", "Alarm: " + line, { class: "alarm" }));
if (data.standings) {
  table(page, "standings", data.standings.head, data.standings.rows);
  make(page, "p", "Score: 0 at the start, 1 at a fixed reference; interquartile mean over tasks and seeds, with its 95 % interval. “May be”: the ranks that are possible, for all entrants together with 95 % confidence.");
  make(page, "h2", "How sure", { id: "sure" });
  const list = make(page, "ul");
  data.words.forEach((line) => make(list, "li", line));
  if (data.robust.rows.length) {
    make(page, "h3", "The ranking under other choices");
    table(page, "robust", data.robust.head, data.robust.rows);
  }
}
if (data.refused && data.refused.length) {
  make(page, "h2", "Listed, not ranked", { id: "refused" });
  const list = make(page, "ul");
  data.refused.forEach(([name, why]) => make(list, "li", name + ": " + why));
}
if (data.runs.length) curves(page);
if (data.standings && data.order.length) {
  profile(page);
  differences(page);
  tuning(page);
  make(page, "h2", "Task by task");
  for (const task of data.tasks) {
    make(page, "h3", task.name);
    make(page, "p", task.about + ". Medians over the seeds [least, greatest].");
    table(page, "task-" + task.name, task.head, task.rows);
  }
  make(page, "h2", "Pairs");
  make(page, "p", "The first minus the second, paired by task and seed: BCa interval, rank-biserial correlation, Wilcoxon’s p after Holm.");
  table(page, "pairs", data.pairs.head, data.pairs.rows);
}
runs(page);
window.addEventListener("hashchange", route);
route();
