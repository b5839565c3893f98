"use strict";
// Of every text that is seen: how much there is, and where its contrast with what lies behind it is
// below 4.5, or 3 where it is large (WCAG 2.2, 1.4.3).
const contrast = () => {
  const pen = Object.assign(document.createElement("canvas"), { width: 1, height: 1 })
    .getContext("2d", { willReadFrequently: true });
  const read = (colour) => {
    pen.clearRect(0, 0, 1, 1); pen.fillStyle = colour; pen.fillRect(0, 0, 1, 1);
    return [...pen.getImageData(0, 0, 1, 1).data].map((v) => v / 255);
  };
  const over = (top, below) => top.slice(0, 3).map((v, k) => v * top[3] + below[k] * (1 - top[3]));
  const behind = (element) => {
    const layers = [];
    for (let at = element; at; at = at.parentElement) layers.push(read(getComputedStyle(at).backgroundColor));
    return layers.reverse().reduce((below, top) => over(top, below), [1, 1, 1]);
  };
  const light = (c) => c.map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, k) => sum + v * [0.2126, 0.7152, 0.0722][k], 0);
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const poor = []; let seen = 0;
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement, style = getComputedStyle(element);
    if (!walker.currentNode.data.trim() || !element.checkVisibility() || element.closest("script, style, option, title, desc, .unseen, .skip, canvas")) continue;
    const below = behind(element);
    const ink = over(read(element instanceof SVGElement ? style.fill : style.color), below);
    const [a, b] = [light(ink), light(below)];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    const size = parseFloat(style.fontSize), large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
    seen += 1;
    if (ratio < (large ? 3 : 4.5)) poor.push(`${element.tagName}.${element.className} "${walker.currentNode.data.trim().slice(0, 30)}" ${ratio.toFixed(2)}`);
  }
  return [seen, [...new Set(poor)].slice(0, 10)];
};

// What cannot be used without sight or a mouse: headings that leave a level out, what has no name.
const unnamed = () => {
  const wrong = [];
  let level = 0;
  for (const head of document.querySelectorAll("h1, h2, h3, h4")) {
    if (+head.tagName[1] > level + 1) wrong.push("heading " + head.textContent);
    level = +head.tagName[1];
  }
  for (const one of document.querySelectorAll("button, select, input, a")) {
    const named = one.getAttribute("aria-label") || one.textContent.trim() || one.labels?.[0]?.textContent.trim();
    if (!named && one.checkVisibility()) wrong.push(one.outerHTML.slice(0, 80));
  }
  for (const table of document.querySelectorAll("table")) if (!table.caption?.textContent.trim()) wrong.push("table without a caption");
  for (const chart of document.querySelectorAll("svg")) {
    const named = chart.getAttribute("role") === "img" && chart.querySelector("title, desc");
    if (!named && chart.getAttribute("aria-hidden") !== "true") wrong.push(chart.outerHTML.slice(0, 80));
  }
  for (const picture of document.images) if (!picture.alt) wrong.push(picture.outerHTML.slice(0, 80));
  const ids = [...document.querySelectorAll("[id]")].map((one) => one.id);
  ids.filter((id, at) => ids.indexOf(id) !== at).forEach((id) => wrong.push("twice: " + id));
  for (const mark of ["header", "main", "nav", "footer"]) if (!document.querySelector(mark)) wrong.push("no " + mark);
  return wrong;
};

// Choose each thing in every list, and click what can be clicked; return how many there were.
const chooseAll = () => {
  let count = 0;
  for (const list of document.querySelectorAll("select")) {
    if (!list.checkVisibility()) continue;
    for (const option of [...list.options].slice(0, 12)) {
      list.value = option.value; list.dispatchEvent(new Event("change")); count += 1;
    }
  }
  for (const box of document.querySelectorAll("input[type=radio], #log")) { box.click(); count += 1; }
  return count;
};
