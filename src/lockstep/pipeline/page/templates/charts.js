// ---- Axes.
function ticks(low, high, count) {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((k) => k * power).find((s) => s >= rough);
  const found = [];
  for (let at = Math.ceil(low / step - 1e-9) * step; at <= high + step * 1e-9; at += step) found.push(+at.toPrecision(12));
  return found;
}
// Of a logarithmic axis: powers of ten, every second or third of them where there are very many.
function powers(low, high) {
  const found = [], first = Math.floor(Math.log10(low)), last = Math.ceil(Math.log10(high));
  const every = Math.ceil((last - first) / 8);
  for (let p = Math.ceil(first / every) * every; p <= last; p += every) {
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
const first = data.runs.length > 12 ? 6 : 12;
const ticked = new Set(state.ticked || data.runs.map((_, at) => at).filter((at) => at < first || data.runs[at].open));
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
const hasNone = (name, flip) => data.runs.some((run, at) => ticked.has(at) &&
  (run.curves[name] || []).some((v) => v !== null && (flip ? 1 - v : v) <= 0));
// Losses that are drawn, and other numbers that are no shares, of more than this factor are drawn by
// their logarithm, until the reader says otherwise: else one outlier flattens all that matters.
const LOGARITHMIC_FROM = 100;
const isWide = () => names.filter((name) => !isShare(name)).some((name) => {
  const [low, high] = range(name, true);
  return high > LOGARITHMIC_FROM * low;
});
function drawCurves() {
  const log = $("log").checked = state.log ?? isWide(), epoch = +$("epoch").value;
  const figures = names.map(() => make("figure"));
  $("curves").replaceChildren(...figures);  // all of them, before one is measured
  names.forEach((name, which) => {
    const figure = figures[which], flip = log && isShare(name), [low, high] = range(name, log), [title, part] = label(name);
    figure.append(make("figcaption", {}, flip ? `1 − ${title.toLowerCase()}` : title, make("span", {}, ` · ${part}${log ? ", logarithmic" + (hasNone(name, flip) ? "; 0 is at the bottom" : "") : ""}`)));
    const width = Math.max(260, figure.clientWidth - 16);
    const digits = high - low < 0.02 ? 2 : high - low < 0.2 ? 1 : 0;
    const chart = frame(width, 230, `${title}, ${part}`, `By epoch, of ${ticked.size} runs; the table below has the values.`,
      { low: 1, high: Math.max(2, length), text: String, title: "epoch", whole: true },
      { low, high, log, text: isShare(name) ? (v) => `${(100 * v).toPrecision(12) * 1 >= 1 || !log ? (100 * v).toFixed(log ? 0 : digits) : +(100 * v).toPrecision(2)}%` : (v) => number(v, 3, 1e5) });
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
  keep({ ticked: [...ticked], epoch: +$("epoch").value });
  drawCurves(); choose(+$("epoch").value); drawTraffic();
}
all("#table input[data-run]").forEach((box) => box.addEventListener("change", () => {
  ticked[box.checked ? "add" : "delete"](+box.dataset.run); tick();
}));
$("all").addEventListener("click", () => { data.runs.forEach((_, at) => ticked.add(at)); tick(); });
$("none").addEventListener("click", () => { ticked.clear(); tick(); });
$("log").addEventListener("change", () => { keep({ log: $("log").checked }); tick(); });
$("epoch").max = length;
$("epoch").value = Math.min(state.epoch && state.epoch !== state.length ? state.epoch : length, length);
$("epoch").addEventListener("input", () => { choose(+$("epoch").value); keep({ epoch: +$("epoch").value, length }); });

// ---- Speed against traffic.
function drawTraffic() {
  const runs = data.runs.map((run, at) => ({ ...run, at })).filter((run) => run.rate);
  if (!runs.some((run) => run.sent)) return;  // nothing to compare speed with
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
