"use strict";
// The page is a list of parts, drawn in order. Everything from the data goes in as text, never as markup.
const page = document.getElementById("page");
const MOST_LINES = 6; // of a chart at first; its legend shows the others
const MOST_GROUPS = 8; // of a comparison at first: as many as colors
const MOST_ROWS = 200; // of a table at first
let data;

function make(parent, tag, text, attributes = {}) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  parent.append(element);
  return element;
}

const indexOf = (name) => Math.max(0, data.order.indexOf(name));
const words = (text) => text.toLowerCase().split(/\s+/).filter(Boolean);

// A sentence; each command in it, which stands in backticks, gets a box of its own.
function sentence(parent, tag, text, attributes) {
  const element = make(parent, tag, undefined, attributes);
  const pieces = text.split(/`(python -m [^`]*)`/); // every second one is a command
  pieces.forEach((piece, i) => (i % 2 ? make(element, "code", piece) : element.append(piece)));
  pieces.filter((_, i) => i % 2).forEach((found) => command(element, found));
  return element;
}

function command(parent, text, id) {
  const box = make(parent, "div", undefined, { class: "command" });
  make(box, "pre", text, id ? { id } : {});
  const button = make(box, "button", "copy", { type: "button", "aria-label": "copy the command" });
  button.addEventListener("click", async () => {
    const done = await copy(text);
    button.textContent = done ? "copied" : "press Ctrl+C";
    if (!done) getSelection().selectAllChildren(box.querySelector("pre"));
    setTimeout(() => (button.textContent = "copy"), 1500);
  });
}

async function copy(text) {
  try { await navigator.clipboard.writeText(text); return true; } catch { /* not everywhere from a file */ }
  const area = make(document.body, "textarea", undefined, { readonly: "" });
  area.value = text;
  area.select();
  let done = false;
  try { done = document.execCommand("copy"); } catch { /* then it is selected, to be copied by hand */ }
  area.remove();
  return done;
}

// {id, head, about: {column: what it means}, rows: [[[shown, sorted by], …], …], key: columns that name a row, runs: whether the first is a run}
function table(parent, part) {
  const controls = make(parent, "div", undefined, { class: "controls" });
  const filter = make(controls, "input", undefined, { type: "search", placeholder: "filter: words, all of them", "aria-label": "filter " + part.id });
  const count = make(controls, "small", "", { "aria-live": "polite" });
  const more = make(controls, "button", "show all", { type: "button" });
  const around = make(parent, "div", undefined, { class: "scroll", tabindex: 0, role: "region", "aria-label": part.title || part.id });
  const element = make(around, "table", undefined, { id: part.id });
  const top = make(make(element, "thead"), "tr"), body = make(element, "tbody");
  const about = part.about || {};
  let by = null, up = true, most = MOST_ROWS;
  const headers = part.head.map((title, i) => {
    const header = make(top, "th", undefined, { "aria-sort": "none", scope: "col" });
    const attributes = { type: "button" };
    if (about[title]) attributes.title = about[title];
    make(header, "button", title, attributes).addEventListener("click", () => {
      up = by === i ? !up : true;
      by = i;
      headers.forEach((h, j) => h.setAttribute("aria-sort", j !== i ? "none" : up ? "ascending" : "descending"));
      show();
    });
    return header;
  });
  const keyOf = (row) => (part.key || [0]).map((i) => row[i][0]).join(" ");
  function compare(a, b) {
    const [x, y] = [a[by][1], b[by][1]];
    if (typeof x !== typeof y) return typeof x === "number" ? -1 : 1; // what was not measured stands last
    const order = typeof x === "number" ? x - y : x < y ? -1 : x > y ? 1 : 0;
    return up ? order : -order;
  }
  function show() {
    const wanted = words(filter.value);
    const kept = part.rows.filter((row) => { const text = row.map((cell) => cell[0]).join(" ").toLowerCase(); return wanted.every((w) => text.includes(w)); });
    if (by !== null) kept.sort(compare);
    body.replaceChildren();
    for (const row of kept.slice(0, most)) {
      const key = keyOf(row), line = make(body, "tr", undefined, { "data-key": key });
      row.forEach((cell, i) => {
        const first = i === (part.key || [0])[0];
        const place = make(line, "td", first && part.runs ? undefined : cell[0], String(cell[0]).length > 60 ? { class: "long" } : {});
        if (first && part.runs) make(place, "a", cell[0], { href: "#run/" + encodeURIComponent(cell[0]) });
        if (first) make(place, "a", "#", { class: "anchor", href: "#row/" + part.id + "/" + encodeURIComponent(key), "aria-label": "link to the row " + key, title: "link to this row" });
      });
    }
    const all = kept.length > most && kept.length === part.rows.length ? "" : " of " + part.rows.length;
    count.textContent = (kept.length > most ? "first " + most + " of " : "") + kept.length + all + " rows";
    more.hidden = kept.length <= most;
  }
  filter.addEventListener("input", show);
  more.addEventListener("click", () => { most = Infinity; show(); });
  show();
  if (part.rows.length < 2) { filter.hidden = true; count.hidden = true; }
  const explained = part.head.filter((title) => about[title]);
  if (explained.length) {
    const box = make(parent, "details");
    make(box, "summary", "What the columns say");
    const list = make(box, "dl");
    for (const title of explained) { make(list, "dt", title); make(list, "dd", about[title]); }
  }
  tables.set(part.id, (key) => {
    if (!part.rows.some((row) => keyOf(row) === key)) return null;
    filter.value = "";
    if (part.rows.length > most) most = Infinity;
    show();
    return [...body.children].find((line) => line.dataset.key === key);
  });
}
const tables = new Map();

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
function line(group, runs, metric, axis, shown) {
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
  const steps = [...at.keys()].sort((a, b) => a - b), x = steps.map((s) => median(at.get(s).x));
  return {
    name: group, index: indexOf(group), shown,
    points: steps.map((s, i) => [x[i], median(at.get(s).y)]),
    band: runs.length > 1 ? steps.map((s, i) => [x[i], Math.min(...at.get(s).y), Math.max(...at.get(s).y)]) : undefined,
  };
}

const AXES = ["step", "cost/gradients", "time/train_seconds"];

function curves(parent, part) {
  const tasks = [...new Set(data.runs.map((run) => run.task))];
  const known = [...new Set(data.runs.flatMap((run) => Object.keys(run.curve)))];
  if (!known.length) return make(parent, "p", "No curves: so many runs do not fit into a page. python -m optbench.report RUN… draws those of chosen runs.");
  const metrics = known.filter((metric) => !AXES.includes(metric));
  const controls = make(parent, "div", undefined, { class: "controls" });
  const show = () => {
    const own = data.runs.filter((run) => run.task === task.value);
    const groups = data.order.filter((group) => own.some((run) => run.group === group));
    chart.show({
      series: groups.map((group, i) => line(group, own.filter((run) => run.group === group), metric.value, axis.value, i < MOST_LINES)).filter((s) => s.points.length),
      x: { title: axis.value, log: logx.checked }, y: { title: metric.value, log: logy.checked },
    });
  };
  const task = menu(controls, "task", tasks, show);
  const metric = menu(controls, "metric", metrics, show);
  const axis = menu(controls, "against", AXES.filter((a) => known.includes(a)), show);
  const logx = check(controls, "log x", false, show), logy = check(controls, "log y", true, show);
  if (metrics.includes("test/loss")) metric.value = "test/loss";
  const chart = new Chart(parent, "curve-plot", "curves");
  show();
}

function profile(parent, part) {
  const chart = new Chart(parent, "profile-plot", "performance profile");
  chart.show({
    series: part.names.map((name, i) => ({ name, index: indexOf(name), step: true, shown: i < 2 * MOST_LINES, points: part.factors.map((f, j) => [f, part.series[name][j]]) })),
    x: { title: "τ, times the fewest gradients", log: true }, y: { title: "share of problems", range: [0, 1] },
  });
}

function tuning(parent, part) {
  const controls = make(parent, "div", undefined, { class: "controls" });
  const show = () => {
    const chosen = part.curves[task.value];
    chart.show({
      series: part.names.map((name, i) => ({
        name, index: indexOf(name), shown: i < MOST_LINES,
        points: chosen[name].map((p, j) => [j + 1, p[0]]), errors: chosen[name].map((p, j) => [j + 1, p[1], p[2]]),
      })),
      x: { title: "k, tuning points", range: [0.5, chosen[part.names[0]].length + 0.5] }, y: { title: part.select[task.value], log: log.checked },
    });
  };
  const task = menu(controls, "tuned task", Object.keys(part.curves), show);
  const log = check(controls, "log values", true, show);
  const chart = new Chart(parent, "tuning-plot", "what tuning buys");
  show();
}

function oneRun(run) {
  const old = document.getElementById("run");
  if (old) old.remove();
  if (!run) return;
  const box = document.createElement("section");
  Object.assign(box, { id: "run", className: "run", tabIndex: -1 });
  document.getElementById("runs-place").before(box);
  make(box, "h3", run.name);
  make(box, "p", run.optimizer + " on " + run.task + ", seed " + run.seed + ": " + run.status + " at step " + run.step);
  const close = make(box, "button", "close (Esc)", { type: "button" });
  close.addEventListener("click", () => { location.hash = "#runs-title"; });
  command(box, run.command, "command");
  make(box, "h3", "Optimizer");
  make(box, "pre", JSON.stringify(run.settings, null, 2));
  const x = run.curve.step || [];
  for (const [title, metrics] of [["Loss", ["train/loss", "val/loss", "test/loss"]], ["Sharpness", ["sharpness/lambda_max", "edge/threshold"]], ["Distance to the edge", ["edge/distance"]], ["Gap", ["gap/loss", "gap/error"]]]) {
    const present = metrics.filter((metric) => (run.curve[metric] || []).some((value) => value !== null));
    if (!present.length) continue;
    make(box, "h3", title);
    new Chart(box, "run-" + title.replaceAll(" ", "-"), title).show({
      series: present.map((metric, i) => ({ name: metric, index: i, marks: x.length < 80, points: x.map((s, j) => [s, run.curve[metric][j]]).filter((p) => p[1] !== null) })),
      x: { title: "step" }, y: { title: title === "Gap" ? "test minus train" : title.toLowerCase(), log: title !== "Gap" },
    });
  }
  make(box, "h3", "Values at the end, and where they come from");
  const facts = { ...run.facts, ...run.last };
  table(box, { id: "facts", head: ["quantity", "value"], rows: Object.entries(facts).map(([key, value]) => [[key, key], [String(value), typeof value === "number" ? value : String(value)]]) });
  box.scrollIntoView();
  box.focus({ preventScroll: true });
}

function runs(parent) {
  make(parent, "div", undefined, { id: "runs-place" });
  const number = (value) => (value === undefined || value === null ? ["–", ""] : [shortNumber(value), value]);
  const metrics = ["test/loss", "test/error", "sharpness/lambda_max"];
  table(parent, {
    id: "runs", title: "runs", runs: true, head: ["run", "optimizer", "task", "seed", "status", ...metrics],
    rows: data.runs.map((run) => [[run.name, run.name], [run.optimizer, run.optimizer], [run.task, run.task], [String(run.seed), run.seed], [run.status, run.status], ...metrics.map((m) => number(run.last[m]))]),
  });
}

const PARTS = {
  text: (parent, part) => sentence(parent, "p", part.text, part.class ? { class: part.class } : {}),
  title: (parent, part) => make(parent, "h3", part.text),
  list: (parent, part) => { const list = make(parent, "ul"); part.lines.forEach((text) => sentence(list, "li", text, text.startsWith("WARNING") ? { class: "warning" } : {})); },
  intervals: (parent, part) => { const pair = make(parent, "div", undefined, { class: "pair" }); part.plots.forEach((p) => intervals(pair, p.id, p.rows, p)); },
  differences: (parent, part) => criticalDifferences(parent, part.names, part.ranks, part.cliques),
  panels: (parent, part) => new Panels(parent, part.groups, part.panels, MOST_GROUPS),
  table, curves, profile, tuning, runs,
};

function route() {
  document.querySelectorAll("tr.chosen").forEach((row) => row.classList.remove("chosen"));
  const [, kind, rest] = location.hash.match(/^#(run|row)\/(.*)$/) || [];
  let name = "", key = "";
  try {
    if (kind === "run") name = decodeURIComponent(rest);
    if (kind === "row") { const cut = rest.indexOf("/"); [name, key] = [decodeURIComponent(rest.slice(0, cut)), decodeURIComponent(rest.slice(cut + 1))]; }
  } catch { return; } // not a link of ours
  oneRun(kind === "run" ? data.runs.find((run) => run.name === name) : null);
  const find = kind === "row" && tables.get(name);
  const row = find && find(key);
  if (row) { row.classList.add("chosen"); row.scrollIntoView({ block: "center" }); }
}

function theme() {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  let chosen = null;
  const button = make(document.getElementById("contents"), "button", "", { type: "button", id: "theme" });
  const apply = () => { const now = chosen ?? (dark.matches ? "dark" : "light"); document.documentElement.dataset.theme = now; button.textContent = now === "dark" ? "light page" : "dark page"; };
  button.addEventListener("click", () => { chosen = document.documentElement.dataset.theme === "dark" ? "light" : "dark"; apply(); });
  dark.addEventListener("change", apply);
  apply();
}

function build() {
  document.title = "optbench: " + data.title;
  page.replaceChildren();
  make(page, "h1", data.title);
  const origin = make(page, "dl", undefined, { class: "origin" });
  for (const [key, value] of data.origin) { make(origin, "dt", key); make(origin, "dd", value); }
  const contents = document.getElementById("contents");
  for (const section of data.sections) {
    const parent = make(page, "section", undefined, { id: section.id + "-part" });
    if (section.title) {
      make(parent, "h2", section.title, { id: section.id });
      make(contents, "a", section.short || section.title, { href: "#" + section.id });
    }
    for (const part of section.parts) PARTS[part.kind](parent, part);
  }
  theme();
  addEventListener("hashchange", route);
  addEventListener("keydown", (event) => {
    if (event.key === "Escape" && document.getElementById("run")) location.hash = "#runs-title";
    if (event.key === "/" && !/INPUT|SELECT|TEXTAREA/.test(document.activeElement.tagName)) { event.preventDefault(); const first = page.querySelector("input[type=search]:not([hidden])"); if (first) { first.focus(); first.select(); } }
  });
  route();
}

async function open() {
  const bytes = Uint8Array.from(atob(document.getElementById("data").textContent), (c) => c.charCodeAt(0));
  if (typeof DecompressionStream === "undefined") { page.textContent = "This page needs a browser of 2023 or later: this one cannot unpack its data."; return; }
  data = JSON.parse(await new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text());
  build();
}
open();
