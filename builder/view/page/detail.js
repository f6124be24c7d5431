// One sample: the original picture, its caption, and all its facts.

import { $, bytes, count, counted, el, get, marked, thumbnail } from "./dom.js";

const MOST = 200; // entries of one level of an annotation

export class Detail {
  /** rowAt(index) → promise of a row. shown(row, replace) is called when a sample is shown, closed(index) when the
   * detail was closed. */
  constructor({ rowAt, total, terms, shown, closed, similar }) {
    Object.assign(this, { rowAt, total, terms, shown, closed, similar });
    this.box = $("detail");
    this.box.addEventListener("click", (event) => event.target === this.box && this.close());
    document.addEventListener("keydown", (event) => this.key(event));
  }

  get isOpen() {
    return !this.box.hidden;
  }

  /** Open a sample. ``index``: its place among the hits; null for a ``row`` that the address names. */
  async open(index, row) {
    const brief = row === undefined ? await this.rowAt(index) : { row };
    if (!brief) return;
    this.index = index;
    const asked = (this.asked = brief.row);
    let sample;
    try {
      sample = await get(`api/rows/${brief.row}`);
    } catch (error) {
      sample = { row: brief.row, key: `row ${brief.row}`, caption: "", problem: error.message };
    }
    if (asked !== this.asked) return; // another sample was opened meanwhile
    const before = this.isOpen;
    if (!before) this.back = document.activeElement;
    this.box.replaceChildren(this.draw(sample));
    this.box.hidden = false;
    document.body.classList.add("covered");
    if (!before) this.box.querySelector(".close").focus();
    this.shown(sample.row, before);
    for (const near of index === null ? [] : [index + 1, index - 1]) {
      if (near >= 0 && near < this.total()) {
        this.rowAt(near).then((next) => next && (new Image().src = `images/${next.row}`)).catch(() => {});
      }
    }
  }

  close(quietly = false) {
    if (!this.isOpen) return;
    this.box.hidden = true;
    this.box.replaceChildren();
    this.asked = null;
    document.body.classList.remove("covered");
    this.back?.focus?.({ preventScroll: true });
    if (!quietly) this.closed(this.index);
  }

  step(by) {
    if (this.index === null) return;
    const to = this.index + by;
    if (to >= 0 && to < this.total()) this.open(to);
  }

  key(event) {
    if (!this.isOpen || event.altKey || event.ctrlKey || event.metaKey) return;
    if (event.key === "Escape") this.close();
    else if (event.key === "ArrowLeft") this.step(-1);
    else if (event.key === "ArrowRight") this.step(1);
    else if (event.key === "Tab") return this.trap(event);
    else return;
    event.preventDefault();
    event.stopImmediatePropagation();
  }

  /** Tab stays inside the detail. */
  trap(event) {
    const stops = [...this.box.querySelectorAll("button:not(:disabled), a[href], summary")];
    const ends = event.shiftKey ? [stops[0], stops.at(-1)] : [stops.at(-1), stops[0]];
    if (document.activeElement === ends[0] || !this.box.contains(document.activeElement)) {
      ends[1].focus();
      event.preventDefault();
    }
  }

  draw(sample) {
    const place = this.index === null ? `row ${count(sample.row)}` : `${count(this.index + 1)} of ${count(this.total())}`;
    const button = (label, mark, act, disabled = false) => el("button", { "aria-label": label, title: label, onclick: act, disabled }, mark);
    const bar = el("div", { class: "bar" },
      button("Previous (left arrow)", "←", () => this.step(-1), !(this.index > 0)),
      button("Next (right arrow)", "→", () => this.step(1), this.index === null || this.index + 1 >= this.total()),
      el("span", { class: "quiet" }, place),
      el("a", { class: "plain", href: `images/${sample.row}`, target: "_blank", rel: "noopener" }, "Original"),
      el("button", { class: "close", "aria-label": "Close (Escape)", title: "Close (Escape)", onclick: () => this.close() }, "✕"));
    bar.querySelectorAll("button").forEach((each) => each.setAttribute("type", "button"));
    const text = el("div", { class: "text" }, bar);
    text.append(el("p", { class: "long", data: { testid: "detail-caption" } }, marked(sample.caption, this.terms())));
    if (sample.problem) text.append(el("p", { class: "problem" }, `error: ${sample.problem}`));
    const facts = el("dl", { class: "facts" });
    const fact = (name, value) => value && facts.append(el("dt", {}, name), el("dd", {}, value));
    fact("Key", sample.key);
    if (sample.width) fact("Size", `${sample.width} × ${sample.height} px, ${bytes(sample.size)}`);
    if (sample.path !== undefined) fact("Path", sample.path);
    if (sample.place) fact("Stored in", `${sample.place.file}, byte ${count(sample.place.offset)}`);
    if (sample.position >= 0) fact("Listed", `entry ${count(sample.position)}`);
    fact("Digest", sample.digest && el("code", {}, sample.digest));
    for (const [name, value] of Object.entries(sample.columns || {})) fact(name, value === null ? "none" : written(value));
    text.append(facts);
    const alike = text.appendChild(el("div", { class: "alike" }));
    get(`api/rows/${sample.row}/similar`).then((group) => {
      if (group.length) alike.append(el("h3", {}, "Duplicate group"), this.similar(group, sample.row));
    }).catch(() => {});
    if (sample.annotation !== undefined && sample.annotation !== "") {
      text.append(el("h3", {}, "Annotation"), tree(sample.annotation));
    }
    return el("div", { class: "pair" }, picture(sample), text);
  }
}

/** The original picture. If the browser cannot draw it, a large thumbnail. */
function picture(sample) {
  const image = el("img", { alt: sample.caption || sample.key, src: `images/${sample.row}` });
  image.style.setProperty("--behind", `url("${thumbnail(sample.row)}")`);
  const other = () => {
    if (image.src.includes("thumbnails/")) image.replaceWith(el("p", { class: "empty" }, "This picture cannot be shown."));
    else image.src = thumbnail(sample.row, 1600);
  };
  image.addEventListener("error", other);
  return el("div", { class: "matte" }, image);
}

/** A JSON value as a tree. Its branches open and close. */
function tree(value, depth = 0) {
  if (value === null || typeof value !== "object") return el("span", { class: `value ${typeof value}` }, written(value));
  const entries = Object.entries(value);
  const list = el("dl", { class: "tree" });
  for (const [name, inner] of entries.slice(0, MOST)) {
    const nested = inner !== null && typeof inner === "object" && Object.keys(inner).length;
    list.append(el("dt", {}, name));
    if (!nested) list.append(el("dd", {}, tree(inner, depth + 1)));
    else {
      const what = Array.isArray(inner) ? counted(inner.length, "value") : counted(Object.keys(inner).length, "field");
      list.append(el("dd", {}, el("details", { open: depth < 1 }, el("summary", {}, what), depth < 40 ? tree(inner, depth + 1) : "…")));
    }
  }
  if (entries.length > MOST) list.append(el("dd", { class: "quiet" }, `and ${count(entries.length - MOST)} more`));
  return list;
}

function written(value) {
  return typeof value === "object" && value !== null ? JSON.stringify(value) : String(value);
}
