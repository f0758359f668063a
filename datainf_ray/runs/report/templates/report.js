"use strict";
// Filters what is shown, and lists the rows that are ticked. The page is whole without it.
(function () {
  const all = (selector, within) => Array.from((within || document).querySelectorAll(selector));
  const tools = document.getElementById("tools");
  const picked = document.getElementById("picked");
  const words = document.getElementById("words");
  const query = document.getElementById("query");
  const label = document.getElementById("label");  // none where there is nothing to choose from
  const value = document.getElementById("value");
  const out = document.getElementById("out");
  const chosen = new Map();
  const rows = all("tr[data-row]");
  const texts = new Map(rows.map((row) => [row, row.textContent.toLowerCase()]));
  document.documentElement.classList.add("js");
  tools.hidden = false;

  function has(row, box, key) {
    if (!box || box.value === "") return true;
    return box.value === "differs" ? "differs" in row.dataset : row.dataset[key] === box.value;
  }

  function filter() {
    const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
    const narrowed = wanted.length > 0 || [label, value].some((box) => box && box.value !== "");
    let count = 0;
    for (const row of rows) {
      row.hidden = !(has(row, label, "label") && has(row, value, "value") && wanted.every((word) => texts.get(row).includes(word)));
      count += row.hidden ? 0 : 1;
    }
    for (const page of all("details.page")) {
      const there = all("tr[data-row]", page).some((row) => !row.hidden);
      page.hidden = !there;
      if (narrowed) page.open = there;
    }
    for (const one of all("details.query")) {
      const there = all("tr[data-row]", one).some((row) => !row.hidden);
      one.hidden = (query.value !== "" && one.dataset.query !== query.value) || (narrowed && !there);
      if (!one.hidden && (narrowed || query.value !== "")) one.open = true;
    }
    document.getElementById("count").textContent = narrowed ? count + (count === 1 ? " row" : " rows") : "";
  }

  // A link to a row that is filtered away shows all rows again: it would lead nowhere.
  function follow(event) {
    const link = event.target.closest("a[href^='#row-']");
    const row = link && document.getElementById(link.getAttribute("href").slice(1));
    if (!row || (!row.hidden && !row.closest("details.query").hidden)) return;
    for (const box of [words, query, label, value]) if (box) box.value = "";
    filter();
  }

  function tell(as) {
    const names = Array.from(chosen.values());
    const ids = names.map((name) => " --ids '" + name + "'").join("");
    out.value = as === "ids" ? names.join("\n") : tools.dataset.command + ids + tools.dataset.to;
  }

  function tick(event) {
    const box = event.target;
    if (!box.matches || !box.matches("input.tick")) return;
    const row = box.closest("tr").dataset.row;
    if (box.checked) chosen.set(row, box.closest("tr").dataset.name);
    else chosen.delete(row);
    for (const other of all("tr[data-row='" + row + "'] input.tick")) other.checked = box.checked;
    picked.hidden = chosen.size === 0;
    document.getElementById("many").textContent = chosen.size + (chosen.size === 1 ? " row ticked" : " rows ticked");
    tell("command");
  }

  function copy(event) {
    const button = event.target.closest("button[data-copy]");
    if (!button) return;
    tell(button.dataset.copy);
    out.focus();
    out.select();
    let done = false;
    try { done = document.execCommand("copy"); } catch (error) { done = false; }
    document.getElementById("copied").textContent = done ? "copied" : "press Ctrl+C";
  }

  words.addEventListener("input", filter);
  for (const box of [query, label, value]) if (box) box.addEventListener("change", filter);
  document.addEventListener("change", tick);
  document.addEventListener("click", copy);
  document.addEventListener("click", follow);
})();
