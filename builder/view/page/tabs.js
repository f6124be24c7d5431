// The other tabs: rejects, duplicates, statistics.

import { bytes, count, counted, el, get, thumbnail } from "./dom.js";
import { histogram } from "./plots.js";

const STEP = 60; // rejects, or groups, of one request
const PICTURES = "Some pictures are missing. To show pictures of rejects, start the viewer with --source SOURCE. It reads them only from uncompressed tars.";

/** The samples that did not become rows, by reason. */
export async function drawRejects(sheet, state) {
  let reason = state.reason || "";
  const list = el("div", { class: "cards" });
  const chips = el("div", { class: "chips", role: "group", "aria-label": "Reasons" });
  const load = async (offset) => {
    const page = await get("api/rejects", { reason, offset, limit: STEP });
    if (!offset) {
      const all = Object.values(page.reasons).reduce((sum, each) => sum + each, 0);
      const chip = (name, number, label) => el("button", {
        type: "button", class: "chip", "aria-pressed": String(name === reason),
        onclick: () => { reason = name; load(0); },
      }, label, " ", el("b", {}, count(number)));
      chips.replaceChildren(chip("", all, "all"), ...Object.entries(page.reasons).map(([name, number]) => chip(name, number, name)));
      list.replaceChildren();
    }
    const pictured = page.rows.some((each) => each.picture);
    if (page.rows.some((each) => !each.picture && each.reason !== "image_missing")) note.hidden = false;
    list.append(...page.rows.map((each) => reject(each, pictured)));
    more(list, offset + page.rows.length, page.total, load);
  };
  const note = el("p", { class: "lead", hidden: true }, PICTURES);
  sheet.replaceChildren(el("h2", {}, "Rejects"), note, chips, list);
  await load(0);
  if (!list.children.length) list.append(el("p", { class: "empty" }, "There are no rejects, or this dataset does not record them."));
}

function reject(each, pictured) {
  const card = el("article", { class: "card" });
  if (each.picture) {
    const image = el("img", { alt: `${each.key}, as the source has it`, src: `rejects/${each.number}`, loading: "lazy" });
    image.addEventListener("error", () => image.replaceWith(el("a", { class: "broken", href: `rejects/${each.number}` }, "not a picture: download the bytes")));
    card.append(el("div", { class: "picture" }, image));
  } else if (pictured) card.append(el("div", { class: "picture broken" }, "no picture"));
  card.append(el("div", { class: "words" },
    el("b", { class: "reason" }, each.reason), el("p", {}, each.detail || ""),
    el("p", { class: "quiet" }, each.key || "", each.source ? ` · ${each.source}` : "")));
  return card;
}

/** Groups of duplicates, side by side. */
export async function drawDuplicates(sheet, state, open) {
  const list = el("div", { class: "groups" });
  const about = el("p", { class: "lead" });
  const load = async (offset) => {
    const page = await get("api/duplicates", { offset, limit: STEP / 3 });
    if (!offset) {
      const what = page.total
        ? `${counted(page.total, "group")} with ${counted(page.rows, "row")}. laion6m select --unique keeps the first row of each group.`
        : "There are no duplicates.";
      about.textContent = `${what} ${page.note}`;
    }
    list.append(...page.groups.map((group) => el("article", { class: "group" },
      el("h3", {}, counted(group.length, "row")), similar(group, null, open))));
    more(list, offset + page.groups.length, page.total, load);
  };
  sheet.replaceChildren(el("h2", {}, "Duplicates"), about, list);
  await load(0);
}

/** The pictures of one group, side by side. */
export function similar(group, current, open) {
  return el("div", { class: "strip" }, group.map((each) => el("button", {
    type: "button", class: each.kept ? "kept" : "", "aria-current": String(each.row === current),
    onclick: () => open(each.row), title: each.caption,
  }, el("img", { src: thumbnail(each.row, 160), alt: each.caption.slice(0, 200), loading: "lazy" }),
  el("span", {}, `${each.width} × ${each.height}`), el("span", { class: "quiet" }, each.kept ? "kept" : bytes(each.size)))));
}

/** How the dataset was made, histograms, phrases. */
export async function drawStatistics(sheet, dataset, link) {
  const plots = el("div", { class: "plots" });
  const words = el("div", { class: "columns" }, el("p", { class: "quiet" }, "Reading captions …"));
  sheet.replaceChildren(el("h2", {}, "Statistics"), made(dataset), plots, el("h2", {}, "Captions"), words);
  await drawPlots(plots, dataset, {}, (filter) => link({ filter }));
  const found = await get("api/phrases");
  const table = (title, note, phrases) => phrases.length ? el("section", {},
    el("h3", {}, title), el("p", { class: "quiet" }, note),
    el("ol", { class: "shares" }, phrases.map(({ text, share }) => {
      const bar = el("span", { class: "share" }, `${(share * 100).toFixed(share < 0.1 ? 1 : 0)} %`);
      bar.style.setProperty("--share", share);
      return el("li", {}, el("a", { href: link({ search: `"${text.slice(0, 200).replaceAll('"', "")}"` }) }, text), bar);
    }))) : null;
  const of = `Of ${counted(found.sampled, "caption")}, evenly spaced`;
  words.replaceChildren(...[
    table("First words", `${of}: the first three words.`, found.openings),
    table("Repeated phrases", `${of}: three to five words that occur more than once.`, found.frequent),
    table("Repeated captions", `${of}: whole captions that occur more than once.`, found.repeated),
  ].filter(Boolean));
  if (!words.children.length) words.append(el("p", { class: "quiet" }, "No words are repeated."));
}

/** Histograms of all measures. Each is one request, so the quick ones do not wait for the slow ones. */
export async function drawPlots(box, dataset, query, link) {
  const places = dataset.measures.map(() => el("figure", { class: "plot waiting" }));
  box.replaceChildren(...places);
  await Promise.all(dataset.measures.map(async ({ name }, at) => {
    try {
      places[at].replaceWith(histogram(await get(`api/histograms/${name}`, query), link));
    } catch (error) {
      places[at].replaceChildren(el("p", { class: "quiet" }, error.message));
    }
  }));
}

function made(dataset) {
  const line = [counted(dataset.rows, "row")];
  if (dataset.image_bytes) line.push(`${bytes(dataset.image_bytes)} of images`);
  if (Object.keys(dataset.formats).length) {
    line.push(Object.entries(dataset.formats).sort((a, b) => b[1] - a[1]).map(([name, number]) => `${name} ${count(number)}`).join(", "));
  }
  const box = el("div", { class: "made" }, el("p", { class: "lead" }, line.join(" · ")));
  const most = Math.max(1, ...dataset.funnel.map((step) => step.rows));
  box.append(el("dl", { class: "funnel" }, dataset.funnel.map((step) => {
    const bar = el("dd", {}, count(step.rows));
    bar.style.setProperty("--share", step.rows / most);
    return el("div", { class: step.kind }, el("dt", {}, step.name), bar);
  })));
  return box;
}

function more(list, shown, total, load) {
  if (shown >= total) return;
  const button = el("button", { type: "button", class: "more", onclick: () => { button.remove(); load(shown); } },
    `Show more (${count(total - shown)} left)`);
  list.append(button);
}
