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
  const classes = Object.hasOwn(data.other_classes, name) ? data.other_classes[name] : data.classes, wrong = found.samples - found.right;
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
  const verdict = make("p", { class: same ? "same" : "apart" }, make("b", {}, same ? "The same bits: " : "Different bits: "),
    same ? data.diff.compared.join(", ") + "." : pair.different.join(", ") + ". History: " + (swapped ? pair.swapped : pair.begins) + ".");
  const rows = pair.causes.map(([title, name, one, other]) => make("tr", {}, make("td", {}, title), make("th", { scope: "row" }, name),
    ...(swapped ? [other, one] : [one, other]).map((text) => make("td", { class: "free" }, text))));
  if (pair.code) rows.push(make("tr", {}, make("td", {}, "code"), make("td", { class: "free", colspan: 3 }, pair.code)));
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
