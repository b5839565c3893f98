"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const all = (what, within = document) => [...within.querySelectorAll(what)];
const COLOURS = 7;
const DASHES = ["", "7 3", "2 3", "9 3 2 3"];
const colour = (run) => `var(--c${run % COLOURS})`;
const dash = (run) => DASHES[Math.floor(run / COLOURS) % DASHES.length];

// Elements are made of text alone: names of runs and of classes are never read as HTML.
function make(tag, attributes = {}, ...inside) {
  const svg = ["svg", "path", "line", "text", "circle", "g", "title", "desc", "polyline"].includes(tag);
  const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...inside);
  return made;
}
const number = (value, digits = 4) => value === null || value === undefined ? "" :
  Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en") : String(+value.toPrecision(digits));
const percent = (value, digits = 2) => value === null || value === undefined ? "" : (100 * value).toFixed(digits) + "%";
const isShare = (name) => data.shares.includes(name.replace("validation_", ""));
const shown = (name, value) => isShare(name) ? percent(value) : number(value);

// What a reader has chosen stays over a reload: ticks, order, what is open, where the page is.
const PLACE = "lockstep " + location.pathname;
let state = {};
try { state = JSON.parse(sessionStorage.getItem(PLACE)) || {}; } catch { /* it is no page of ours */ }
const keep = (more) => {
  Object.assign(state, more);
  try { sessionStorage.setItem(PLACE, JSON.stringify(state)); } catch { /* there is no room */ }
};

// ---- Tables that are sorted by their titles, and one of them as CSV.
function sort(table, column, direction) {
  const body = table.tBodies[0];
  const key = (row) => row.cells[column].dataset.sort ?? row.cells[column].textContent.trim();
  const rows = [...body.rows].map((row) => [key(row), row]);
  rows.sort(([a], [b]) => {
    if (a === "" || b === "") return (a === "") - (b === "");
    const plain = a !== "" && b !== "" && !isNaN(a) && !isNaN(b) ? a - b : a.localeCompare(b, "en", { numeric: true });
    return direction * plain;
  });
  body.append(...rows.map(([, row]) => row));
  all("th[aria-sort]", table).forEach((head) => head.setAttribute("aria-sort",
    head.cellIndex === column ? (direction > 0 ? "ascending" : "descending") : "none"));
}
all("table.sortable").forEach((table, which) => all("th[aria-sort] button", table).forEach((button) =>
  button.addEventListener("click", () => {
    const head = button.closest("th");
    const direction = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    sort(table, head.cellIndex, direction);
    keep({ [`sort${which}`]: [head.cellIndex, direction] });
  })));
all("table.sortable").forEach((table, which) => {
  const [column, direction] = state[`sort${which}`] || [];
  if (column !== undefined && table.tHead.rows[0].cells[column]) sort(table, column, direction);
});
$("csv").addEventListener("click", () => {
  const text = (cell) => [...cell.childNodes].filter((node) => !(node.classList?.contains("doubt")))
    .map((node) => node.textContent).join(" ").replace(/\s+/g, " ").trim();
  // A cell that a spreadsheet would take for a formula is kept as text.
  const quoted = (value) => `"${(/^[=+@\t]/.test(value) ? "'" : "") + value.replaceAll('"', '""')}"`;
  const lines = [...$("table").rows].map((row) => [...row.cells].slice(1).map((cell) => quoted(text(cell))).join(","));
  const link = make("a", { href: URL.createObjectURL(new Blob([lines.join("\n") + "\n"], { type: "text/csv" })), download: "runs.csv" });
  link.click();
});
all(".copy").forEach((button) => button.addEventListener("click", async () => {
  const code = button.parentElement.querySelector("code");
  try { await navigator.clipboard.writeText(code.textContent); button.textContent = "Copied"; } catch {
    getSelection().selectAllChildren(code); button.textContent = "Selected";
  }
}));

// ---- Axes.
function ticks(low, high, count) {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((k) => k * power).find((s) => s >= rough);
  const found = [];
  for (let at = Math.ceil(low / step - 1e-9) * step; at <= high + step * 1e-9; at += step) found.push(+at.toPrecision(12));
  return found;
}
function powers(low, high) {
  const found = [];
  for (let p = Math.floor(Math.log10(low)); p <= Math.ceil(Math.log10(high)); p++) {
    for (const k of high / low > 300 ? [1] : high / low > 12 ? [1, 3] : [1, 1.5, 2, 3, 5, 7]) {
      const at = k * 10 ** p;
      if (at >= low * 0.999 && at <= high * 1.001) found.push(at);
    }
  }
  return found;
}
// A chart of a width in pixels, so that its text is as large on a phone as on a desk.
function frame(width, height, title, about, x, y) {
  const left = 52, right = 14, top = 8, bottom = 34;
  const id = `t${frame.count = (frame.count || 0) + 1}`;
  const svg = make("svg", { class: "chart", viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-labelledby": `${id} ${id}d` },
    make("title", { id }, title), make("desc", { id: `${id}d` }, about));
  const scale = (axis, from, to) => {
    const f = axis.log ? Math.log : (v) => v, [a, b] = [f(axis.low), f(axis.high)];
    return (value) => from + (b > a ? (f(value) - a) / (b - a) : 0.5) * (to - from);
  };
  const at = { x: scale(x, left, width - right), y: scale(y, height - bottom, top) };
  for (const value of y.log ? powers(y.low, y.high) : ticks(y.low, y.high, Math.max(3, height / 55))) {
    svg.append(make("line", { class: "grid", x1: left, x2: width - right, y1: at.y(value), y2: at.y(value) }),
      make("text", { x: left - 6, y: at.y(value) + 4, "text-anchor": "end" }, y.text(value)));
  }
  for (const value of ticks(x.low, x.high, width / 90)) {
    if (x.whole && value % 1) continue;
    svg.append(make("text", { x: at.x(value), y: height - bottom + 16, "text-anchor": "middle" }, x.text(value)));
  }
  svg.append(make("text", { x: width - right, y: height - 4, "text-anchor": "end" }, x.title));
  return { svg, at, left, right: width - right, top, bottom: height - bottom };
}

// ---- Learning: the curves of the runs that are ticked, the others pale behind them.
const ticked = new Set(state.ticked || data.runs.map((_, at) => at).slice(0, data.runs.length > 12 ? 6 : 12));
const length = Math.max(1, ...data.runs.map((run) => run.curves.epoch.at(-1) || 0));
const names = ["loss", "validation_loss", data.main, `validation_${data.main}`]
  .filter((name, at, every) => every.indexOf(name) === at && data.runs.some((run) => run.curves[name]));
const label = (name) => {
  const of = name.replace("validation_", "");
  const named = of === "loss" ? "loss" : (data.titles[of] || of);
  return [named[0].toUpperCase() + named.slice(1), name.startsWith("validation_") ? "validation part" : "training"];
};
function range(name, log) {
  const base = name.replace("validation_", "");
  const from = data.runs.flatMap((run, at) => ticked.has(at) || !ticked.size ?
    [base, `validation_${base}`].flatMap((n) => run.curves[n] || []) : []);
  const values = from.filter((v) => v !== null).map((v) => log && isShare(name) ? 1 - v : v).filter((v) => !log || v > 0);
  if (!values.length) return [0.1, 1];
  let [low, high] = [Math.min(...values), Math.max(...values)];
  if (low === high) [low, high] = log ? [low / 2, high * 2] : [low - 0.5, high + 0.5];
  return [low, high];
}
function drawCurves() {
  const log = $("log").checked, epoch = +$("epoch").value;
  const figures = names.map(() => make("figure"));
  $("curves").replaceChildren(...figures);  // all of them, before one is measured
  names.forEach((name, which) => {
    const figure = figures[which], flip = log && isShare(name), [low, high] = range(name, log), [title, part] = label(name);
    figure.append(make("figcaption", {}, flip ? `1 − ${title.toLowerCase()}` : title, make("span", {}, ` · ${part}${log ? ", logarithmic; 0 is at the bottom" : ""}`)));
    const width = Math.max(260, figure.clientWidth - 16);
    const digits = high - low < 0.02 ? 2 : high - low < 0.2 ? 1 : 0;
    const chart = frame(width, 230, `${title}, ${part}`, `By epoch, of ${ticked.size} runs; the table below has the values.`,
      { low: 1, high: Math.max(2, length), text: String, title: "epoch", whole: true },
      { low, high, log, text: isShare(name) ? (v) => `${(100 * v).toPrecision(12) * 1 >= 1 || !log ? (100 * v).toFixed(log ? 0 : digits) : +(100 * v).toPrecision(2)}%` : (v) => number(v, 3) });
    const order = data.runs.map((_, at) => at).sort((a, b) => ticked.has(a) - ticked.has(b));
    for (const at of order) {
      const curves = data.runs[at].curves, values = curves[name];
      if (!values || (!ticked.has(at) && ticked.size === 0)) continue;
      let path = "", pen = "M";
      values.forEach((raw, k) => {
        const value = raw === null ? null : flip ? 1 - raw : raw;
        if (value === null) { pen = "M"; return; }
        const y = log && value <= 0 ? chart.bottom : Math.min(chart.bottom, Math.max(chart.top, chart.at.y(value)));
        path += `${pen}${chart.at.x(curves.epoch[k]).toFixed(1)} ${y.toFixed(1)}`; pen = "L";
      });
      if (!path) continue;
      const on = ticked.has(at);
      const line = make("path", { class: on ? "curve" : "curve pale", d: path.includes("L") ? path : path + "h.1", "stroke-dasharray": on ? dash(at) : "", "stroke-linecap": "round" }, make("title", {}, data.runs[at].name));
      if (on) line.style.stroke = colour(at);
      chart.svg.append(line);
    }
    const cursor = make("line", { class: "cursor", x1: chart.at.x(epoch), x2: chart.at.x(epoch), y1: chart.top, y2: chart.bottom });
    chart.svg.append(cursor);
    chart.svg.addEventListener("pointermove", (event) => {
      const box = chart.svg.getBoundingClientRect();
      const share = ((event.clientX - box.left) * (width / box.width) - chart.left) / (chart.right - chart.left);
      choose(Math.round(1 + share * (Math.max(2, length) - 1)));
    });
    figure.dataset.left = chart.left; figure.dataset.right = chart.right;
    figure.append(chart.svg);
  });
}
function choose(epoch) {
  epoch = Math.min(length, Math.max(1, epoch));
  $("epoch").value = epoch;
  $("at").textContent = `${epoch} of ${length}`;
  all("#curves figure").forEach((figure) => {
    const left = +figure.dataset.left, right = +figure.dataset.right, line = figure.querySelector(".cursor");
    const x = left + (epoch - 1) / (Math.max(2, length) - 1) * (right - left);
    line.setAttribute("x1", x); line.setAttribute("x2", x);
  });
  const rows = data.runs.flatMap((run, at) => {
    if (!ticked.has(at) || !run.curves.epoch.length) return [];
    let k = run.curves.epoch.findIndex((e) => e >= epoch);
    if (k < 0) k = run.curves.epoch.length - 1;
    const key = make("svg", { class: "key", viewBox: "0 0 22 8", "aria-hidden": "true" }, make("path", { d: "M0 4H22", class: "curve", "stroke-dasharray": dash(at) }));
    key.firstChild.style.stroke = colour(at);
    const reached = run.curves.epoch[k];
    return [make("tr", {}, make("th", { scope: "row", class: run.name.length > 26 ? "long" : "" }, key, run.name), make("td", { class: "number" }, String(reached)),
      ...names.map((name) => make("td", { class: "number" }, shown(name, run.curves[name]?.[k]))))];
  });
  $("values").tHead.replaceChildren(make("tr", {}, make("th", { scope: "col" }, "run"), make("th", { scope: "col", class: "number" }, "epoch"),
    ...names.map((name) => make("th", { scope: "col", class: "number" }, label(name).join(", ").toLowerCase()))));
  $("values").tBodies[0].replaceChildren(...rows);
}
function tick() {
  all("#table input[data-run]").forEach((box) => { box.checked = ticked.has(+box.dataset.run); });
  keep({ ticked: [...ticked], log: $("log").checked, epoch: +$("epoch").value });
  drawCurves(); choose(+$("epoch").value); drawTraffic();
}
all("#table input[data-run]").forEach((box) => box.addEventListener("change", () => {
  ticked[box.checked ? "add" : "delete"](+box.dataset.run); tick();
}));
$("all").addEventListener("click", () => { data.runs.forEach((_, at) => ticked.add(at)); tick(); });
$("none").addEventListener("click", () => { ticked.clear(); tick(); });
// A loss that falls by more than this factor is drawn by its logarithm, as in the report.
const losses = data.runs.flatMap((run) => run.curves.loss || []).filter((v) => v > 0);
$("log").checked = state.log ?? Math.max(...losses) > 20 * Math.min(...losses);
$("log").addEventListener("change", tick);
$("epoch").max = length;
$("epoch").value = Math.min(state.epoch && state.epoch !== state.length ? state.epoch : length, length);
$("epoch").addEventListener("input", () => { choose(+$("epoch").value); keep({ epoch: +$("epoch").value, length }); });

// ---- Speed against traffic.
function drawTraffic() {
  const runs = data.runs.map((run, at) => ({ ...run, at })).filter((run) => run.rate);
  if (!runs.length) return;
  const figure = make("figure", {}, make("figcaption", {}, "Speed against traffic", make("span", {}, ` · ${data.unit}/s, median epoch and quartiles; MB sent in training`)));
  $("traffic").replaceChildren(figure);
  const width = Math.max(260, figure.clientWidth - 16);
  const highest = Math.max(...runs.map((run) => run.rate[2])), most = Math.max(...runs.map((run) => run.sent)) / 1e6 || 1;
  const chart = frame(width, 280, "Speed against traffic", `${runs.length} runs; the table of runs has the numbers.`,
    { low: 0, high: most * 1.05, text: (v) => number(v, 3), title: "MB sent" }, { low: 0, high: highest * 1.05, text: (v) => number(v, 3) });
  // Names keep off the points, and off each other.
  const taken = runs.map((run) => [chart.at.x(run.sent / 1e6) - 5, chart.at.y(run.rate[0]) - 5, 10, 10]);
  for (const run of runs) {
    const x = chart.at.x(run.sent / 1e6), [y, low, high] = run.rate.map(chart.at.y), on = ticked.has(run.at);
    const group = make("g", {}, make("title", {}, `${run.name}: ${number(run.rate[0])} ${data.unit}/s, ${number(run.sent / 1e6)} MB`),
      make("line", { x1: x, x2: x, y1: low, y2: high, "stroke-width": 1.5 }), make("circle", { cx: x, cy: y, r: 4.5 }));
    group.style.stroke = on ? colour(run.at) : "var(--line)"; group.style.fill = on ? colour(run.at) : "var(--line)";
    chart.svg.append(group);
    if (!on) continue;
    const long = 7 * run.name.length;
    const places = [[x + 9, y], [x - 9 - long, y], [x + 9, y - 13], [x + 9, y + 13], [x - 9 - long, y - 13], [x + 9, y - 26]];
    const place = places.map(([a, b]) => [a, b - 7, long, 14]).find((box) => box[0] > 0 && box[0] + long < width && box[1] > 0 &&
      taken.every(([a, b, w, h]) => box[0] > a + w || box[0] + box[2] < a || box[1] > b + h || box[1] + box[3] < b));
    if (!place) continue;  // pointed at, it says its name
    taken.push(place);
    const left = place[0] < x;
    chart.svg.append(make("text", { class: "label", x: left ? place[0] + long : place[0], y: place[1] + 11, "text-anchor": left ? "end" : "start" }, run.name));
  }
  figure.append(chart.svg);
}

// ---- Errors.
function table(caption, head, rows, kind = "") {
  return make("div", { class: "wide", tabindex: 0, role: "region", "aria-label": caption }, make("table", { class: kind }, make("caption", {}, make("span", {}, caption)),
    make("thead", {}, make("tr", {}, ...head.map((text) => make("th", { scope: "col" }, text)))), make("tbody", {}, ...rows)));
}
function drawErrors() {
  const name = $("errors-run").value, model = document.querySelector("input[name=model]:checked").value, into = $("errors-of");
  keep({ errors: name, model });
  const found = Object.hasOwn(data.errors, name) ? data.errors[name][model] : null;
  if (!found) {
    into.replaceChildren(make("p", { class: "hint" }, "Nothing is recorded of single samples."));
    return;
  }
  const which = make("p", { class: "hint" }, `${name}, ${model} model (${data.models[name][model]}):`);
  if (found.largest) {
    into.replaceChildren(which, table(`The ${found.largest.length} largest errors`, ["sample", "output", "target", "predicted", "error"],
      found.largest.map((row) => make("tr", {}, ...row.map((v, k) => make("td", { class: "number" }, k < 2 ? String(v) : number(v)))))));
    return;
  }
  const classes = data.classes, wrong = found.samples - found.right;
  which.textContent += ` ${found.right.toLocaleString("en")} of ${found.samples.toLocaleString("en")} right, ${wrong} wrong.`;
  const recall = Object.fromEntries(found.recall.map(([k, n, right]) => [k, n ? right / n : null]));
  const left = make("div", {}), right = make("div", {});
  if (found.matrix) {
    // Colour is for errors alone, to one scale for every run: the share of the class, full at 20 %.
    left.append(table("Confusion matrix: true classes down, predicted ones across; coloured are errors, as a share of the class", ["", ...classes, "recall"],
      found.matrix.map((row, k) => make("tr", {}, make("th", { scope: "row" }, classes[k]), ...row.map((n, j) => {
        const cell = make("td", { class: k === j ? "right" : "" }, n ? String(n) : "");
        const share = n / Math.max(1, row.reduce((a, b) => a + b));
        if (k !== j && n) cell.style.background = `rgb(var(--heat) / ${(0.12 + 0.5 * Math.min(1, share / 0.2)).toFixed(2)})`;
        return cell;
      }), make("td", { class: "number" }, percent(recall[k], 1)))), "matrix"));
  } else {
    left.append(table("Classes with the lowest recall", ["class", "recall", "samples"], found.recall.map(([k, n, hit]) =>
      make("tr", {}, make("th", { scope: "row" }, classes[k]), make("td", { class: "number" }, n ? percent(hit / n, 1) : ""), make("td", { class: "number" }, String(n))))));
  }
  right.append(make("h3", {}, model === "last" ? `The ${found.mistakes.length} mistakes it was surest of` : `${found.mistakes.length} mistakes`));
  right.append(make("ul", { class: "pictures" }, ...found.mistakes.map(([sample, was, said, sure, file]) => {
    const picture = data.pictures[sample], item = make("li", {});
    if (picture) item.append(make("img", { src: picture, alt: `sample ${sample}: ${was}, taken for ${said}` }));
    item.append(make("b", {}, was), " → ", make("b", {}, said));
    item.append(make("span", { class: "soft" }, (sure === null ? "" : `${percent(sure, 1)}, `) + (file || `sample ${sample}`)));
    return item;
  })));
  if (!found.mistakes.length) right.replaceChildren(make("p", { class: "same" }, "No mistake at all."));
  const pairs = make("details", { id: "confused" }, make("summary", {}, "The most frequent confusions"), table("true → predicted", ["true", "predicted", "samples"],
    found.pairs.map(([a, b, n]) => make("tr", {}, make("td", {}, classes[a]), make("td", {}, classes[b]), make("td", { class: "number" }, String(n))))));
  pairs.open = !found.matrix || (state.open || []).includes("confused");
  if (found.pairs.length) left.append(pairs);
  into.replaceChildren(which, make("div", { class: "errors" }, left, right));
}
const able = data.runs.map((run) => run.name).filter((name) => Object.hasOwn(data.errors, name));
$("errors-run").append(...able.map((name) => make("option", { value: name }, name)));
if (able.includes(state.errors)) $("errors-run").value = state.errors;
all("input[name=model]").forEach((box) => { box.checked = box.value === (state.model || "last"); box.addEventListener("change", drawErrors); });
$("errors-run").addEventListener("change", drawErrors);

// ---- Compare: what `lockstep diff` says of two runs.
function drawDifference() {
  const [a, b] = [+$("first").value, +$("second").value], into = $("difference");
  keep({ pair: [a, b] });
  const swapped = a > b, pair = data.diff.pairs[swapped ? `${b} ${a}` : `${a} ${b}`];
  if (a === b || !pair) {
    into.replaceChildren(make("p", { class: "hint" }, a === b ? "That is one run." : `lockstep diff compares these two.`));
    return;
  }
  const same = !pair.different.length;
  const turned = (both) => swapped && both.includes(" | ") ? both.split(" | ").reverse().join(" | ") : both;
  const verdict = make("p", { class: same ? "same" : "apart" }, make("b", {}, same ? "The same bits: " : "Different bits: "),
    same ? data.diff.compared.join(", ") + "." : pair.different.join(", ") + ". History: " + pair.begins + ".");
  const rows = pair.causes.map(([title, name, both]) => {
    const at = both.split(" | ");
    const cells = at.length === 2 ? (swapped ? [at[1], at[0]] : at) : [turned(both), ""];
    return make("tr", {}, make("td", {}, title), make("th", { scope: "row" }, name), ...cells.map((text) => make("td", { class: "free" }, text)));
  });
  into.replaceChildren(verdict, rows.length ? table("What the two runs were not trained from alike", ["", "", data.runs[a].name, data.runs[b].name], rows) :
    make("p", { class: "hint" }, "Both were trained from the same, in the same way."));
}
const option = (at) => make("option", { value: at }, data.runs[at].name);
if (data.diff.runs.length > 1) {
  $("first").append(...data.diff.firsts.map(option));
  $("second").append(...data.diff.runs.map(([at]) => option(at)));
  const [a, b] = state.pair || [data.diff.runs[0][0], data.diff.runs[1][0]];
  $("first").value = a; $("second").value = b;
  if (!$("first").value) $("first").selectedIndex = 0;
  if (!$("second").value) $("second").selectedIndex = 1;
  all("#pair select").forEach((select) => select.addEventListener("change", drawDifference));
  if (data.diff.firsts.length < data.diff.runs.length) {
    $("pair").append(make("span", { class: "hint" }, "Of so many runs each is compared with the first; lockstep diff compares any two."));
  }
  drawDifference();
} else {
  $("pair").hidden = true;
  $("difference").append(make("p", { class: "hint" }, "There is one run; lockstep diff compares it with any other on the disk."));
}

// ---- What stays where it is, and what comes again.
drawErrors(); tick();
all("details[id]").forEach((one) => {
  if ((state.open || []).includes(one.id)) one.open = true;
});
document.addEventListener("toggle", () => keep({ open: all("details[open][id]").map((one) => one.id) }), true);
function reveal() {
  const to = location.hash && $(decodeURIComponent(location.hash.slice(1)));
  for (let at = to; at; at = at.parentElement) if (at.tagName === "DETAILS") at.open = true;
  if (to?.tagName === "DETAILS") to.scrollIntoView();
}
addEventListener("hashchange", reveal);
reveal();
addEventListener("beforeprint", () => all("details:not(#each)").forEach((one) => { one.open = true; }));
let drawn = innerWidth;
addEventListener("resize", () => { if (innerWidth !== drawn) { drawn = innerWidth; tick(); } });
const seen = new IntersectionObserver((entries) => entries.forEach((entry) => {
  const link = document.querySelector(`nav a[href="#${entry.target.id}"]`);
  if (link && entry.isIntersecting) {
    all("nav a").forEach((one) => one.removeAttribute("aria-current"));
    link.setAttribute("aria-current", "true");
  }
}), { rootMargin: "0px 0px -70% 0px" });
all("h2[id]").forEach((head) => seen.observe(head));

if (data.refresh) {
  history.scrollRestoration = "manual";
  if (state.scroll) scrollTo(0, state.scroll);
  let left = data.refresh, paused = state.paused || false;
  const pause = $("pause");
  const tell = () => {
    pause.textContent = paused ? "Go on" : "Pause";
    pause.setAttribute("aria-pressed", paused);
    $("next").textContent = paused ? "paused" : `loads itself again every ${data.refresh} s`;
  };
  pause.addEventListener("click", () => { paused = !paused; left = data.refresh; keep({ paused }); tell(); });
  // A list that is open would close under the reader's hand.
  addEventListener("pointerdown", (event) => { if (event.target.tagName === "SELECT") left = 2 * data.refresh; });
  addEventListener("keydown", () => { left = Math.max(left, data.refresh / 2); });
  setInterval(() => {
    if (paused || document.hidden || --left > 0) return;
    keep({ scroll: scrollY });
    location.reload();
  }, 1000);
  tell();
} else if (state.scroll) {
  scrollTo(0, state.scroll);
  keep({ scroll: 0 });
}
