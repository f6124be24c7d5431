// The page. The address holds the query, so a link, the back button and a reload show the same.

import { Detail } from "./detail.js";
import { $, bytes, count, counted, el, get, post, settled, short } from "./dom.js";
import { Gallery } from "./gallery.js";
import { interval } from "./plots.js";
import { drawDuplicates, drawPlots, drawRejects, drawStatistics, similar } from "./tabs.js";

const TABS = ["samples", "rejects", "duplicates", "statistics"];
const QUERY = ["search", "where", "filter", "sort"];

let dataset = { measures: [], rows: 0 };
let state = read(); // of the address
let asked = 0; // number of the newest query

// Remove the token from the address bar and the history. The cookie is set by now.
history.replaceState(null, "", `${location.pathname}${location.hash}`);

function read() {
  return Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
}

function link(given) {
  const kept = Object.entries({ ...state, row: "", tab: "", ...given }).filter(([, value]) => value !== "" && value !== undefined);
  return `#${new URLSearchParams(kept)}`;
}

/** Change the address and follow it. ``replace``: add no step to the history, as during typing. */
function go(given, { replace = false } = {}) {
  const address = link({ tab: state.tab, ...given });
  history[replace ? "replaceState" : "pushState"](null, "", address === "#" ? location.pathname : address);
  follow();
}

const query = () => Object.fromEntries(QUERY.map((name) => [name, state[name] || ""]));

const gallery = new Gallery($("scroller"), $("canvas"), {
  load: (offset, limit) => get("api/rows", { ...query(), offset, limit }),
  open: (index) => detail.open(index),
  link: (row) => link({ row: row.row }),
});

const detail = new Detail({
  rowAt: (index) => gallery.rowAt(index),
  total: () => gallery.total,
  terms: () => gallery.terms,
  shown: (row, replace) => {
    state = { ...state, row: String(row) };
    history[replace ? "replaceState" : "pushState"](null, "", link({ tab: state.tab, row }));
  },
  closed: (index) => {
    state = { ...state, row: "" };
    history.replaceState(null, "", link({ tab: state.tab }));
    if (index !== null && !$("samples").hidden) gallery.reveal(index, true);
  },
  similar: (group, row) => similar(group, row, (other) => detail.open(null, other)),
});

/** Show what the address says. */
function follow() {
  const before = state;
  state = read();
  const tab = TABS.includes(state.tab) ? state.tab : "samples";
  for (const name of TABS) {
    $(name).hidden = name !== tab;
    $(`tab-${name}`).setAttribute("aria-selected", String(name === tab));
    $(`tab-${name}`).tabIndex = name === tab ? 0 : -1;
  }
  for (const name of ["search", "where"]) if (document.activeElement !== $(name)) $(name).value = state[name] || "";
  $("sort").value = state.sort || "";
  if (tab === "samples") {
    if (!asked || QUERY.some((name) => (before[name] || "") !== (state[name] || ""))) run();
    else gallery.layout();
  } else drawTab(tab);
  if (!state.row) detail.close(true);
  else if (!detail.isOpen || before.row !== state.row) detail.open(null, Number(state.row));
}

async function drawTab(name) {
  const sheet = $(name);
  if (sheet.dataset.drawn) return;
  sheet.dataset.drawn = "yes";
  try {
    if (name === "rejects") await drawRejects(sheet, state);
    if (name === "duplicates") await drawDuplicates(sheet, state, (row) => detail.open(null, row));
    if (name === "statistics") await drawStatistics(sheet, dataset, (given) => link({ filter: "", search: "", where: "", ...given }));
  } catch (error) {
    sheet.append(el("p", { class: "problem", role: "alert" }, error.message));
  }
}

/** Request the first rows, again and again while the search finds more. */
async function run() {
  const mine = (asked += 1);
  drawChips();
  $("count").classList.add("busy");
  for (let shown = false; mine === asked; ) {
    let page;
    try {
      page = await get("api/rows", { ...query(), offset: 0, limit: 100 });
    } catch (error) {
      if (mine === asked) problem(error.message);
      break;
    }
    if (mine !== asked) return;
    problem("");
    if (page.rows.length || page.done) {
      gallery.show(page, { keep: shown });
      shown = true;
    }
    total(page);
    if (page.done) break;
    await new Promise((resolve) => setTimeout(resolve, 150));
  }
  if (mine !== asked) return;
  $("count").classList.remove("busy");
  if (!$("filters").hidden) drawFilters();
  if (!$("save").hidden) drawSave();
}

function total(page) {
  $("total").value = count(page.total);
  $("total").dataset.value = page.total;
  const whole = page.total === dataset.rows && page.done;
  $("total-of").textContent = whole ? (dataset.rows === 1 ? "row" : "rows") : `${page.done ? "" : "so far "}of ${counted(dataset.rows, "row")}`;
  $("nothing").hidden = !(page.done && page.total === 0);
  $("nothing").textContent = dataset.rows ? "No row matches. Try fewer words or a wider range." : "This dataset has no rows.";
}

function problem(words) {
  $("problem").textContent = words;
  $("problem").hidden = !words;
  $("where").setAttribute("aria-invalid", String(Boolean(words)));
}

// Filters: ranges of numbers, "width:512:768;ratio::1"

const ranges = () => (state.filter || "").split(";").filter(Boolean);

/** The ranges with one more. It replaces a range of the same column. */
function withRange(range) {
  const column = range.split(":")[0];
  return [...ranges().filter((each) => each.split(":")[0] !== column), range].join(";");
}

function drawChips() {
  $("chips").replaceChildren(...ranges().map((range) => {
    const [name, low, high] = range.split(":");
    const measure = dataset.measures.find((each) => each.name === name) || { label: name, unit: "" };
    const words = `${measure.label} ${interval(low && Number(low), high && Number(high), (value) => short(value, measure.unit))}`;
    const others = ranges().filter((each) => each !== range).join(";");
    return el("button", { type: "button", class: "chip", "aria-label": `Remove ${words}`, onclick: () => go({ filter: others }) }, words, " ✕");
  }));
}

const drawFilters = () => drawPlots($("filters"), dataset, query(), (filter) => link({ filter: withRange(filter) }));

// Selection: the command that makes it, and a button that makes it here

async function drawSave() {
  const given = await get("api/selection", query()).catch((error) => ({ command: error.message }));
  const said = el("p", { class: "quiet", "aria-live": "polite" });
  const rows = el("code", {}, given.command);
  const copy = el("button", { type: "button", onclick: () => navigator.clipboard?.writeText(given.command).then(() => (copy.textContent = "Copied")) }, "Copy");
  $("save").replaceChildren(el("p", { class: "command" }, rows, copy), given.note ? el("p", { class: "quiet" }, given.note) : "");
  if (dataset.save) {
    const name = el("input", { type: "text", "aria-label": "Name of the selection", placeholder: "name", required: true, pattern: "[\\w.\\-]+" });
    const send = async (event) => {
      event.preventDefault();
      try {
        const saved = await post("api/selections", { name: name.value, ...query() });
        said.textContent = `Saved ${counted(saved.rows, "row")} as ${saved.out}`;
      } catch (error) {
        said.textContent = error.message;
      }
    };
    $("save").append(el("form", { class: "command", onsubmit: send }, el("span", {}, `Save in ${dataset.save}/`), name, el("button", {}, "Save")));
  } else $("save").append(el("p", { class: "quiet" }, "To save here, start the viewer with: laion6m view DATASET --save FOLDER"));
  $("save").append(said);
}

function toggle(button, box, draw) {
  button.addEventListener("click", () => {
    box.hidden = !box.hidden;
    button.setAttribute("aria-expanded", String(!box.hidden));
    if (!box.hidden) draw();
  });
}

// Keyboard and mouse

const typed = settled(100, () => go({ search: $("search").value }, { replace: true }));
$("search").addEventListener("input", typed);
$("query").addEventListener("submit", (event) => event.preventDefault());
$("query").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || !["search", "where"].includes(event.target.id)) return;
  event.preventDefault();
  const given = { search: $("search").value, where: $("where").value };
  if (QUERY.some((name) => name in given && given[name] !== (state[name] || ""))) go(given);
  else if (!$("problem").hidden) run();
});
$("sort").addEventListener("change", () => go({ sort: $("sort").value }));
toggle($("filters-button"), $("filters"), drawFilters);
toggle($("save-button"), $("save"), drawSave);
for (const name of TABS) $(`tab-${name}`).addEventListener("click", () => go({ tab: name === "samples" ? "" : name, row: "" }));
document.querySelector("nav").addEventListener("keydown", (event) => {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!step) return;
  const next = $(`tab-${TABS[(TABS.indexOf(event.target.id.slice(4)) + step + TABS.length) % TABS.length]}`);
  next.focus();
  next.click();
  event.stopPropagation();
});
document.addEventListener("keydown", (event) => {
  const typing = event.target.matches?.("input, select, textarea");
  if (detail.isOpen || typing || event.altKey || event.ctrlKey || event.metaKey || $("samples").hidden) return;
  if (event.key === "/") $("search").focus();
  else if (/^Arrow/.test(event.key) && event.target === document.body && gallery.total) detail.open(gallery.firstInSight());
  else return;
  event.preventDefault();
});
addEventListener("popstate", follow);
addEventListener("hashchange", follow);

async function start() {
  dataset = await get("api/dataset");
  document.title = `${dataset.name} · laion6m`;
  $("name").textContent = dataset.name;
  $("about").textContent = [counted(dataset.rows, "row"), dataset.image_bytes ? bytes(dataset.image_bytes) : "", dataset.kind].filter(Boolean).join(" · ");
  const choices = [["", "Dataset order"], ["random", "Shuffled"]];
  for (const { name, label, unit } of dataset.measures) {
    const what = unit === "words" || unit === "characters" ? `${label}, ${unit}` : label;
    choices.push([name, `${what} ↑`], [`-${name}`, `${what} ↓`]);
  }
  $("sort").append(...choices.map(([value, words]) => el("option", { value }, words)));
  if (!dataset.sql) $("where").placeholder = "SQL needs: pip install 'laion6m[sql]'";
  for (const [name, number] of [["rejects", dataset.rejects], ["duplicates", dataset.duplicates]]) {
    if (number) $(`tab-${name}`).append(" ", el("span", { class: "badge" }, count(number)));
  }
  follow();
}

start().catch((error) => problem(error.message));
