"use strict";
// Line charts, intervals and critical differences as SVG. Text from the data is set as text, never as markup.

const SVG = "http://www.w3.org/2000/svg";
const COLORS = 8; // --c0 … --c7 in page.css
const DASHES = ["", "7 4", "2 3"];

function svg(parent, tag, attributes = {}, text) {
  const element = document.createElementNS(SVG, tag);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  parent.append(element);
  return element;
}

const colorOf = (i) => "var(--c" + (i % COLORS) + ")";
const dashOf = (i) => DASHES[Math.floor(i / COLORS) % DASHES.length];

// Up to four digits; powers where many zeros would stand.
function shortNumber(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e5 || size < 1e-3) return value.toExponential(Math.abs(Math.log10(size) % 1) < 1e-9 ? 0 : 2).replace("e+", "e").replace("-", "−").replace("e-", "e−");
  return String(Number(value.toPrecision(4))).replace("-", "−");
}

function linearTicks(low, high, about) {
  const raw = (high - low) / about, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].find((m) => m * power >= raw) * power;
  const ticks = [];
  for (let i = Math.ceil(low / step - 1e-9); i <= high / step + 1e-9; i++) ticks.push(Number((i * step).toPrecision(12)));
  return ticks;
}

function logTicks(low, high, about) {
  const first = Math.floor(Math.log10(low)), last = Math.ceil(Math.log10(high)), decades = last - first;
  const within = (t) => t >= low * (1 - 1e-9) && t <= high * (1 + 1e-9);
  for (const factors of [[1, 2, 3, 5, 7], [1, 2, 5], [1]]) {
    const every = factors.length === 1 ? Math.max(1, Math.ceil(decades / about)) : 1;
    const ticks = [];
    for (let d = first; d <= last; d += every) for (const f of factors) if (within(f * 10 ** d)) ticks.push(Number((f * 10 ** d).toPrecision(3)));
    if (ticks.length <= about + 2 || factors.length === 1) return ticks.length > 1 ? ticks : linearTicks(low, high, about);
  }
  return [];
}

// A scale from data to pixels, with its ticks.
function scaleOf(values, log, from, to, about, fixed) {
  const known = values.filter((v) => v !== null && Number.isFinite(v) && (!log || v > 0));
  let low = fixed ? fixed[0] : Math.min(...bounds(known)), high = fixed ? fixed[1] : Math.max(...bounds(known));
  if (!known.length && !fixed) [low, high] = [log ? 0.1 : 0, 1];
  if (low === high) [low, high] = log ? [low / 2, high * 2] : [low - (Math.abs(low) || 1) / 2, high + (Math.abs(high) || 1) / 2];
  if (!fixed && to < from) { // upright axes get a little room
    if (log) { const room = (high / low) ** 0.03; low /= room; high *= room; } else { const room = 0.03 * (high - low); low -= room; high += room; }
  }
  const t = log ? Math.log : (v) => v;
  const at = (v) => from + ((t(v) - t(low)) / (t(high) - t(low))) * (to - from);
  const inverse = (p) => { const s = t(low) + ((p - from) / (to - from)) * (t(high) - t(low)); return log ? Math.exp(s) : s; };
  return { at, inverse, low, high, log, ticks: log ? logTicks(low, high, about) : linearTicks(low, high, about) };
}

function bounds(values) {
  let low = Infinity, high = -Infinity;
  for (const v of values) { if (v < low) low = v; if (v > high) high = v; }
  return [low, high];
}

// A chart with a legend of buttons, a reading at the pointer or by the arrow keys, and zoom along x by dragging.
// series: {name, index, points: [[x, y]], band: [[x, low, high]], errors: [[x, low, high]], step, shown}
class Chart {
  constructor(parent, id, label) {
    this.place = make(parent, "figure", undefined, { class: "chart", id });
    this.label = label;
    this.hidden = new Set();
    this.seen = new Set();
    this.zoom = null;
    this.frame = make(this.place, "div", undefined, { class: "frame" });
    this.reading = make(this.place, "p", "", { class: "reading", "aria-live": "polite" });
    this.legend = make(this.place, "div", undefined, { class: "legend", role: "group", "aria-label": "lines of " + label });
    this.width = 0;
    new ResizeObserver(() => { if (this.spec && Math.abs(this.frame.clientWidth - this.width) > 1) this.draw(); }).observe(this.frame);
  }

  show(spec) {
    this.spec = spec;
    this.zoom = null;
    for (const s of spec.series) if (!this.seen.has(s.name)) { this.seen.add(s.name); if (s.shown === false) this.hidden.add(s.name); }
    this.draw();
  }

  draw() {
    const { series, x, y } = this.spec;
    this.names();
    const width = (this.width = Math.max(260, this.frame.clientWidth || 800)), narrow = width < 560, height = narrow ? 280 : 360;
    const shown = series.filter((s) => !this.hidden.has(s.name));
    const left = 58, right = width - 10, top = 8, bottom = height - 42;
    const X = scaleOf(shown.flatMap((s) => s.points.map((p) => p[0])), x.log, left, right, narrow ? 5 : 9, this.zoom || x.range);
    const inside = (v) => v >= X.low && v <= X.high;
    const heights = shown.flatMap((s) => [...s.points.filter((p) => inside(p[0])).map((p) => p[1]), ...[...(s.band || []), ...(s.errors || [])].filter((p) => inside(p[0])).flatMap((p) => [p[1], p[2]])]);
    const Y = scaleOf(heights, y.log, bottom, top, 6, y.range);
    const root = document.createElementNS(SVG, "svg");
    this.frame.replaceChildren(root);
    for (const [k, v] of Object.entries({ viewBox: "0 0 " + width + " " + height, role: "img", tabindex: 0, "aria-label": this.label + ": " + y.title + " against " + x.title + ", " + shown.map((s) => s.name).join(", ") })) root.setAttribute(k, v);
    const clip = "clip-" + this.place.id;
    svg(svg(svg(root, "defs"), "clipPath", { id: clip }), "rect", { x: left, y: top - 2, width: right - left, height: bottom - top + 4 });
    for (const t of X.ticks) { svg(root, "line", { x1: X.at(t), x2: X.at(t), y1: top, y2: bottom, class: "grid" }); svg(root, "text", { x: X.at(t), y: bottom + 16, class: "tick middle" }, shortNumber(t)); }
    for (const t of Y.ticks) { svg(root, "line", { x1: left, x2: right, y1: Y.at(t), y2: Y.at(t), class: "grid" }); svg(root, "text", { x: left - 6, y: Y.at(t) + 4, class: "tick end" }, shortNumber(t)); }
    svg(root, "text", { x: (left + right) / 2, y: height - 6, class: "title middle" }, x.title);
    svg(root, "text", { x: 0, y: 0, class: "title middle", transform: "translate(13 " + (top + bottom) / 2 + ") rotate(-90)" }, y.title);
    const plot = svg(root, "g", { "clip-path": "url(#" + clip + ")" });
    const usable = (v, S) => v !== null && Number.isFinite(v) && (!S.log || v > 0);
    let lost = 0;
    const spots = [];
    shown.forEach((s, nth) => {
      const color = colorOf(s.index);
      const dodge = s.errors ? (nth - (shown.length - 1) / 2) * Math.min(7, 0.7 * (X.at(2) - X.at(1)) / Math.max(1, shown.length)) : 0;
      const band = (s.band || []).filter((p) => usable(p[0], X) && usable(p[1], Y) && usable(p[2], Y));
      if (band.length > 1) svg(plot, "path", { d: "M" + band.map((p) => X.at(p[0]).toFixed(1) + " " + Y.at(p[1]).toFixed(1)).join("L") + "L" + band.slice().reverse().map((p) => X.at(p[0]).toFixed(1) + " " + Y.at(p[2]).toFixed(1)).join("L") + "Z", style: "fill:" + color + ";fill-opacity:.13;stroke:none" });
      for (const [at, low, high] of s.errors || []) {
        const px = X.at(at) + dodge, ends = [usable(low, Y) ? Y.at(low) : null, usable(high, Y) ? Y.at(high) : null], own = s.points.find((p) => p[0] === at);
        if (!own || !usable(own[1], Y)) continue;
        ends.forEach((end) => { if (end !== null) { svg(plot, "line", { x1: px, x2: px, y1: Y.at(own[1]), y2: end, style: "stroke:" + color, class: "error" }); svg(plot, "line", { x1: px - 2.5, x2: px + 2.5, y1: end, y2: end, style: "stroke:" + color, class: "error" }); } });
      }
      const points = s.points.filter((p) => p[1] !== null && p[0] !== null);
      const drawn = points.filter((p) => usable(p[0], X) && usable(p[1], Y));
      lost += points.length - drawn.length;
      const at = drawn.map((p) => [X.at(p[0]) + dodge, Y.at(p[1])]);
      let d = "";
      at.forEach((p, i) => { d += i === 0 ? "M" : s.step ? "H" + p[0].toFixed(1) + "V" : "L"; d += i && s.step ? p[1].toFixed(1) : p[0].toFixed(1) + " " + p[1].toFixed(1); });
      if (at.length > 1) svg(plot, "path", { d, class: "line", style: "stroke:" + color + ";stroke-dasharray:" + (dashOf(s.index) || "none") });
      if (at.length < 3 || s.errors || s.marks) at.forEach((p) => svg(plot, "circle", { cx: p[0].toFixed(1), cy: p[1].toFixed(1), r: 3, style: "fill:" + color }));
      if (at.length) spots.push(drawn.map((p, i) => ({ name: s.name, x: p[0], y: p[1], px: at[i][0], py: at[i][1], color })));
    });
    if (!spots.length) svg(root, "text", { x: (left + right) / 2, y: (top + bottom) / 2, class: "title middle" }, shown.length ? "nothing to draw on these axes" : "no line chosen: click a name below");
    this.note = lost ? lost + " value" + (lost > 1 ? "s" : "") + " of 0 or less cannot be drawn on a log axis." : "";
    this.reading.textContent = this.note;
    this.listen(root, spots, X, { left, right, top, bottom, width });
  }

  names() {
    const focused = document.activeElement && this.legend.contains(document.activeElement) ? document.activeElement.textContent : null;
    this.legend.replaceChildren();
    const { series } = this.spec;
    const all = (label, hide) => { const b = make(this.legend, "button", label, { type: "button", class: "few" }); b.addEventListener("click", () => { series.forEach((s) => (hide ? this.hidden.add(s.name) : this.hidden.delete(s.name))); this.draw(); }); return b; };
    const buttons = [];
    for (const s of series) {
      const on = !this.hidden.has(s.name);
      const button = make(this.legend, "button", undefined, { type: "button", "aria-pressed": String(on) });
      const sign = svg(button, "svg", { viewBox: "0 0 26 10", width: 26, height: 10, "aria-hidden": "true" });
      svg(sign, "line", { x1: 0, x2: 26, y1: 5, y2: 5, style: "stroke:" + colorOf(s.index) + ";stroke-dasharray:" + (dashOf(s.index) || "none"), class: "line" });
      button.append(s.name);
      button.addEventListener("click", () => { if (on) this.hidden.add(s.name); else this.hidden.delete(s.name); this.draw(); });
      buttons.push(button);
    }
    if (series.length > 3) buttons.push(all("all", false), all("none", true));
    if (this.zoom) { const reset = make(this.legend, "button", "whole range", { type: "button", class: "few" }); reset.addEventListener("click", () => { this.zoom = null; this.draw(); }); buttons.push(reset); }
    const again = buttons.find((b) => b.textContent === focused);
    if (again) again.focus();
  }

  listen(root, spots, X, box) {
    const mark = svg(root, "circle", { r: 5, class: "mark", visibility: "hidden" });
    const guide = svg(root, "line", { y1: box.top, y2: box.bottom, class: "guide", visibility: "hidden" });
    const area = svg(root, "rect", { y: box.top, height: box.bottom - box.top, class: "area", visibility: "hidden" });
    let line = -1, spot = 0, start = null;
    const read = (i, j) => {
      [line, spot] = [i, j];
      const p = spots[i][j];
      for (const [k, v] of Object.entries({ cx: p.px, cy: p.py, visibility: "visible", style: "stroke:" + p.color })) mark.setAttribute(k, v);
      for (const [k, v] of Object.entries({ x1: p.px, x2: p.px, visibility: "visible" })) guide.setAttribute(k, v);
      this.reading.textContent = p.name + ": " + this.spec.y.title + " " + shortNumber(p.y) + " at " + this.spec.x.title + " " + shortNumber(p.x);
    };
    const clear = () => { mark.setAttribute("visibility", "hidden"); guide.setAttribute("visibility", "hidden"); this.reading.textContent = this.note; };
    const place = (event) => { const r = root.getBoundingClientRect(), f = box.width / r.width; return [(event.clientX - r.left) * f, (event.clientY - r.top) * f]; };
    root.addEventListener("pointermove", (event) => {
      const [px, py] = place(event);
      if (start !== null) { area.setAttribute("visibility", "visible"); area.setAttribute("x", Math.min(start, px)); area.setAttribute("width", Math.abs(px - start)); return; }
      let best = Infinity, at = null;
      spots.forEach((own, i) => own.forEach((p, j) => { const away = (p.px - px) ** 2 + (p.py - py) ** 2; if (p.px >= box.left - 1 && p.px <= box.right + 1 && away < best) { best = away; at = [i, j]; } }));
      if (at && best < 1600) read(...at); else clear();
    });
    root.addEventListener("pointerleave", () => { if (start === null) clear(); });
    root.addEventListener("pointerdown", (event) => { const [px] = place(event); if (event.pointerType === "mouse" && px >= box.left && px <= box.right) { start = px; root.setPointerCapture(event.pointerId); } });
    root.addEventListener("pointerup", (event) => {
      const [px] = place(event), from = start;
      start = null;
      area.setAttribute("visibility", "hidden");
      if (from !== null && Math.abs(px - from) > 8) { const ends = [from, Math.min(box.right, Math.max(box.left, px))].sort((a, b) => a - b); this.zoom = ends.map(X.inverse); this.draw(); }
    });
    root.addEventListener("dblclick", () => { this.zoom = null; this.draw(); });
    root.addEventListener("keydown", (event) => {
      if (!spots.length || !["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown"].includes(event.key)) return;
      event.preventDefault();
      if (line < 0) return read(0, 0);
      if (event.key === "ArrowLeft") return read(line, Math.max(0, spot - 1));
      if (event.key === "ArrowRight") return read(line, Math.min(spots[line].length - 1, spot + 1));
      const next = (line + (event.key === "ArrowDown" ? 1 : spots.length - 1)) % spots.length, x = spots[line][spot].px;
      const nearest = spots[next].reduce((best, p, j) => (Math.abs(p.px - x) < Math.abs(spots[next][best].px - x) ? j : best), 0);
      return read(next, nearest);
    });
  }
}

// A row for each name: a bar from low to high, a dot at the value. An infinite end is an arrow.
// rows: {name, value, low, high, text, href}
function intervals(parent, id, rows, options) {
  const place = make(parent, "figure", undefined, { class: "chart intervals", id });
  make(place, "figcaption", options.title);
  const longest = Math.max(...rows.map((r) => r.name.length), 4), width = 460, row = 21;
  const tall = rows.length > 30, top = tall ? 22 : 6; // a tall plot has its axis above, too
  const left = Math.min(200, 16 + 9 * longest), right = width - 12, bottom = top + row * rows.length;
  const ends = rows.flatMap((r) => [r.low, r.value, r.high]).filter((v) => v !== null && Number.isFinite(v));
  const X = scaleOf(ends.length ? ends : [0, 1], false, left + 8, right - 8, 6, options.range);
  const root = svg(place, "svg", { viewBox: "0 0 " + width + " " + (bottom + 34), role: "img", "aria-label": options.title + ": " + rows.map((r) => r.name + " " + r.text).join("; ") });
  const labels = tall ? [bottom + 14, 12] : [bottom + 14];
  for (const t of X.ticks.filter((t) => !options.whole || Number.isInteger(t))) {
    svg(root, "line", { x1: X.at(t), x2: X.at(t), y1: top, y2: bottom, class: "grid" });
    for (const y of labels) svg(root, "text", { x: X.at(t), y, class: "tick middle" }, shortNumber(t));
  }
  svg(root, "text", { x: (left + right) / 2, y: bottom + 30, class: "title middle" }, options.axis);
  rows.forEach((r, i) => {
    const y = top + row * (i + 0.5), color = colorOf(i);
    const link = svg(root, "a", { href: r.href, "aria-label": r.name + ": " + r.text });
    svg(link, "title", {}, r.name + ": " + r.text);
    svg(link, "rect", { x: 0, y: y - row / 2, width, height: row, class: "row" }); // what a pointer can hit
    svg(link, "text", { x: left - 2, y: y + 4, class: "name end" }, r.name.length > 22 ? r.name.slice(0, 21) + "…" : r.name);
    const at = (v, open) => (v === null || !Number.isFinite(v) ? open : X.at(v)), a = at(r.low, left + 2), b = at(r.high, right - 2);
    if (r.low === null && r.high === null && r.value === null) { svg(link, "text", { x: left + 8, y: y + 4, class: "tick" }, r.text); return; }
    svg(link, "line", { x1: a, x2: b, y1: y, y2: y, class: "bar", style: "stroke:" + color });
    if (r.low === null) svg(link, "path", { d: "M" + (a + 6) + " " + (y - 5) + "l-6 5 6 5", class: "arrow", style: "stroke:" + color });
    if (r.high === null) svg(link, "path", { d: "M" + (b - 6) + " " + (y - 5) + "l6 5 -6 5", class: "arrow", style: "stroke:" + color });
    if (r.value !== null) svg(link, "circle", { cx: X.at(r.value), cy: y, r: 4.5, style: "fill:" + color, class: "dot" });
  });
}

// Mean ranks, the best at the left; a bar joins those that the test does not tell apart.
function criticalDifferences(parent, names, ranks, cliques) {
  const order = names.map((name, i) => [name, ranks[i], i]).sort((a, b) => a[1] - b[1]), n = order.length;
  const width = 760, half = Math.ceil(n / 2), left = 150, right = width - 150, line = 40, gap = 8 + 9 * cliques.length, row = 19;
  const place = make(parent, "figure", undefined, { class: "chart wide", id: "cd" });
  const root = svg(make(place, "div", undefined, { class: "sideways", tabindex: 0, role: "region", "aria-label": "critical differences" }), "svg", { viewBox: "0 0 " + width + " " + (line + gap + row * half + 16), role: "img", "aria-label": "mean ranks: " + order.map((o) => o[0] + " " + o[1].toFixed(2)).join(", ") });
  const X = scaleOf([1, n], false, left, right, 12, [1, n]);
  svg(root, "line", { x1: left, x2: right, y1: line, y2: line, class: "axis" });
  for (const t of linearTicks(1, n, 12).filter(Number.isInteger)) { svg(root, "line", { x1: X.at(t), x2: X.at(t), y1: line - 5, y2: line, class: "axis" }); svg(root, "text", { x: X.at(t), y: line - 10, class: "tick middle" }, String(t)); }
  order.forEach(([name, rank, index], i) => {
    const atLeft = i < half, y = line + gap + row * (atLeft ? i : n - 1 - i) + 10, end = atLeft ? left - 14 : right + 14;
    svg(root, "path", { d: "M" + X.at(rank) + " " + line + "V" + y + "H" + end, class: "line thin", style: "stroke:" + colorOf(index) });
    svg(root, "circle", { cx: X.at(rank), cy: line, r: 4, style: "fill:" + colorOf(index) });
    svg(root, "text", { x: atLeft ? end - 4 : end + 4, y: y + 4, class: atLeft ? "name end" : "name" }, (name.length > 15 ? name.slice(0, 14) + "…" : name) + " " + rank.toFixed(1));
  });
  const at = new Map(order);
  cliques.forEach((members, i) => { const own = members.map((m) => X.at(at.get(m))), y = line + 9 + 9 * i; svg(root, "line", { x1: Math.min(...own) - 5, x2: Math.max(...own) + 5, y1: y, y2: y, class: "clique" }); });
}

// Panels that share their horizontal axis, one legend, and one reading: what all lines are at the step that is pointed at.
// panels: {name, second: name of what is dashed, title, log, level, range, note, lines: [{index, second, points: [[x, y]], band: [[x, low, high]]}]}
class Panels {
  constructor(parent, groups, panels, most) {
    this.groups = groups;
    this.panels = panels;
    this.hidden = new Set(groups.map((_, i) => i).filter((i) => i >= most));
    this.legend = make(parent, "div", undefined, { class: "legend", role: "group", "aria-label": "groups" });
    this.place = make(parent, "div", undefined, { class: "panels" });
    this.reading = make(parent, "p", "", { class: "reading", "aria-live": "polite" });
    this.values = make(make(parent, "div", undefined, { class: "scroll values", tabindex: 0, role: "region", "aria-label": "values at a step" }), "table", undefined, { id: "panel-values" });
    this.frames = panels.map((panel) => {
      const figure = make(this.place, "figure", undefined, { class: "chart" });
      make(figure, "figcaption", panel.title);
      const frame = make(figure, "div", undefined, { class: "frame" });
      make(figure, "small", panel.note);
      return frame;
    });
    this.width = 0;
    new ResizeObserver(() => { if (Math.abs(this.frames[0].clientWidth - this.width) > 1) this.draw(); }).observe(this.frames[0]);
    this.draw();
  }

  draw() {
    this.names();
    const shown = this.panels.map((panel) => panel.lines.filter((line) => !this.hidden.has(line.index)));
    this.steps = [...new Set(shown.flat().flatMap((line) => line.points.map((p) => p[0])))].sort((a, b) => a - b);
    this.width = this.frames[0].clientWidth;
    this.guides = this.panels.map((panel, i) => this.panel(this.frames[i], panel, shown[i]));
    this.shown = shown;
    if (this.steps.length) this.mark(this.steps.length - 1);
    this.clear();
  }

  panel(frame, panel, lines) {
    const width = Math.max(260, frame.clientWidth || 500), height = width < 420 ? 210 : 250, left = 52, right = width - 16, top = 6, bottom = height - 36;
    const X = scaleOf(this.steps, false, left, right, width < 420 ? 5 : 7, this.steps.length > 1 ? [this.steps[0], this.steps[this.steps.length - 1]] : undefined);
    const Y = scaleOf([...lines.flatMap((line) => [...line.points.map((p) => p[1]), ...line.band.flatMap((p) => [p[1], p[2]])]), ...(panel.level === null || !lines.length ? [] : [panel.level])], panel.log, bottom, top, 5, panel.range || undefined);
    const root = document.createElementNS(SVG, "svg");
    frame.replaceChildren(root);
    for (const [k, v] of Object.entries({ viewBox: "0 0 " + width + " " + height, role: "img", tabindex: 0, "aria-label": panel.title + " against step, " + [...new Set(lines.map((line) => this.groups[line.index]))].join(", ") })) root.setAttribute(k, v);
    const clip = "clip-panel-" + this.panels.indexOf(panel);
    svg(svg(svg(root, "defs"), "clipPath", { id: clip }), "rect", { x: left, y: top - 2, width: right - left, height: bottom - top + 4 });
    for (const t of X.ticks) { svg(root, "line", { x1: X.at(t), x2: X.at(t), y1: top, y2: bottom, class: "grid" }); svg(root, "text", { x: X.at(t), y: bottom + 15, class: "tick middle" }, shortNumber(t)); }
    for (const t of Y.ticks) { svg(root, "line", { x1: left, x2: right, y1: Y.at(t), y2: Y.at(t), class: "grid" }); svg(root, "text", { x: left - 5, y: Y.at(t) + 4, class: "tick end" }, shortNumber(t)); }
    svg(root, "text", { x: (left + right) / 2, y: height - 4, class: "title middle" }, "step");
    const plot = svg(root, "g", { "clip-path": "url(#" + clip + ")" });
    const usable = (v) => v !== null && Number.isFinite(v) && (!Y.log || v > 0);
    const at = (p, i) => X.at(p[0]).toFixed(1) + " " + Y.at(p[i]).toFixed(1);
    if (panel.level !== null && lines.length) svg(plot, "line", { x1: left, x2: right, y1: Y.at(panel.level), y2: Y.at(panel.level), class: "level" });
    for (const line of lines) {
      const color = colorOf(line.index), band = line.band.filter((p) => usable(p[1]) && usable(p[2])), points = line.points.filter((p) => usable(p[1]));
      if (band.length > 1) svg(plot, "path", { d: "M" + band.map((p) => at(p, 1)).join("L") + "L" + band.slice().reverse().map((p) => at(p, 2)).join("L") + "Z", style: "fill:" + color + ";fill-opacity:.15;stroke:none" });
      if (points.length > 1) svg(plot, "path", { d: "M" + points.map((p) => at(p, 1)).join("L"), class: "line", style: "stroke:" + color + ";stroke-dasharray:" + (line.second ? "5 3" : dashOf(line.index) || "none") });
      if (points.length < 3) points.forEach((p) => svg(plot, "circle", { cx: X.at(p[0]), cy: Y.at(p[1]), r: 3, style: "fill:" + color }));
    }
    if (!lines.length) svg(root, "text", { x: (left + right) / 2, y: (top + bottom) / 2, class: "title middle" }, panel.lines.length ? "no group chosen" : "not measured");
    const guide = svg(root, "line", { y1: top, y2: bottom, class: "guide", visibility: "hidden" });
    const marks = svg(root, "g");
    const point = (event) => { const r = root.getBoundingClientRect(); this.read(X.inverse(((event.clientX - r.left) * width) / r.width)); };
    root.addEventListener("pointermove", point);
    root.addEventListener("pointerdown", point);
    root.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") this.clear(); });
    root.addEventListener("keydown", (event) => {
      const move = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
      if (!move || !this.steps.length) return;
      event.preventDefault();
      const now = this.now === null ? (move > 0 ? -1 : this.steps.length) : this.now;
      this.mark(Math.max(0, Math.min(this.steps.length - 1, now + move)));
    });
    return { X, Y, guide, marks, usable };
  }

  read(x) {
    if (!this.steps.length) return;
    let best = 0;
    this.steps.forEach((s, i) => { if (Math.abs(s - x) < Math.abs(this.steps[best] - x)) best = i; });
    this.mark(best);
  }

  // What a line is at a step: straight between its measurements, nothing beyond them.
  static valueOf(line, x) {
    const i = line.points.findIndex((p) => p[0] >= x);
    if (i < 0) return null;
    const b = line.points[i];
    if (b[0] === x) return b[1];
    if (i === 0) return null;
    const a = line.points[i - 1];
    return a[1] === null || b[1] === null ? null : a[1] + ((b[1] - a[1]) * (x - a[0])) / (b[0] - a[0]);
  }

  mark(i) {
    this.now = i;
    const step = this.steps[i], rows = new Map();
    this.panels.forEach((panel, k) => {
      const { X, Y, guide, marks, usable } = this.guides[k];
      for (const [key, v] of Object.entries({ x1: X.at(step), x2: X.at(step), visibility: "visible" })) guide.setAttribute(key, v);
      marks.replaceChildren();
      for (const line of this.shown[k]) {
        const value = Panels.valueOf(line, step), name = (line.second ? panel.second : panel.name);
        if (value === null) continue;
        if (usable(value) && value >= Y.low && value <= Y.high) svg(marks, "circle", { cx: X.at(step), cy: Y.at(value), r: 3.5, class: "mark", style: "stroke:" + colorOf(line.index) });
        if (!rows.has(line.index)) rows.set(line.index, new Map());
        rows.get(line.index).set(name, value);
      }
    });
    this.reading.textContent = "at step " + shortNumber(step) + (rows.size ? ":" : ": nothing measured");
    const heads = [...new Set(this.panels.flatMap((panel, k) => [...new Set(this.shown[k].map((line) => (line.second ? panel.second : panel.name)))]))];
    this.values.replaceChildren();
    const top = make(make(this.values, "thead"), "tr");
    for (const head of ["group", ...heads]) make(top, "th", head, { scope: "col", class: "plain" });
    const body = make(this.values, "tbody");
    for (const [index, own] of [...rows].sort((a, b) => a[0] - b[0])) {
      const line = make(body, "tr");
      const name = make(line, "td");
      this.sign(name, index);
      name.append(this.groups[index]);
      heads.forEach((head) => make(line, "td", own.has(head) ? shortNumber(own.get(head)) : "–"));
    }
  }

  // The table keeps what was read last.
  clear() {
    this.now = null;
    for (const { guide, marks } of this.guides) { guide.setAttribute("visibility", "hidden"); marks.replaceChildren(); }
  }

  sign(parent, index) {
    const sign = svg(parent, "svg", { viewBox: "0 0 26 10", width: 26, height: 10, "aria-hidden": "true" });
    svg(sign, "line", { x1: 0, x2: 26, y1: 5, y2: 5, style: "stroke:" + colorOf(index) + ";stroke-dasharray:" + (dashOf(index) || "none"), class: "line" });
  }

  names() {
    const focused = document.activeElement && this.legend.contains(document.activeElement) ? document.activeElement.textContent : null;
    this.legend.replaceChildren();
    const change = (hide, wanted) => { wanted.forEach((i) => (hide ? this.hidden.add(i) : this.hidden.delete(i))); this.draw(); };
    const button = (label, act, attributes) => { const b = make(this.legend, "button", undefined, { type: "button", ...attributes }); b.append(label); b.addEventListener("click", act); return b; };
    const buttons = this.groups.map((name, i) => {
      const on = !this.hidden.has(i), b = button(name, () => change(on, [i]), { "aria-pressed": String(on) });
      this.sign(b, i);
      b.prepend(b.lastChild);
      return b;
    });
    const all = this.groups.map((_, i) => i);
    if (all.length > 3) buttons.push(button("all", () => change(false, all), { class: "few" }), button("none", () => change(true, all), { class: "few" }));
    const again = buttons.find((b) => b.textContent === focused);
    if (again) again.focus();
  }
}
