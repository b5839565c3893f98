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
const number = (value, digits = 4, most = Infinity) => value === null || value === undefined ? "" :
  value && (Math.abs(value) >= most || Math.abs(value) < 1 / most) ? (+value.toPrecision(digits)).toExponential().replace("+", "") : Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en") : String(+value.toPrecision(digits));
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
