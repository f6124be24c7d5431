// A grid with one tile for each row. Only the tiles in sight exist, so six million rows cost no more than 600.

import { el, marked, thumbnail } from "./dom.js";

const PAGE = 100; // rows of one request
const KEPT = 60; // pages in memory
const TALLEST = 4_000_000; // pixels; browsers draw nothing past some 16 million
const GAP = 16;
const TEXT = 74; // pixels below a picture: three lines of caption

export class Gallery {
  /** load(offset, limit) → promise of {rows, total, done}. open(index): called when a tile is chosen. link(row) → its
   * address. */
  constructor(scroller, canvas, { load, open, link }) {
    Object.assign(this, { scroller, canvas, load, open, link });
    this.tiles = new Map();
    this.clear();
    scroller.addEventListener("scroll", () => this.scrolled(), { passive: true });
    new ResizeObserver(() => this.layout()).observe(scroller);
    canvas.addEventListener("keydown", (event) => this.moved(event));
  }

  clear() {
    this.pages = new Map();
    this.loading = new Map();
    this.total = 0;
    this.terms = [];
    this.version = (this.version || 0) + 1;
  }

  /** Show new rows, given their first page. ``keep``: the same rows, and more of them were found. */
  show(first, { keep = false } = {}) {
    if (!keep) {
      this.clear();
      for (const tile of this.tiles.values()) tile.remove();
      this.tiles.clear();
      this.scroller.scrollTop = 0;
      this.offset = this.last = 0;
    }
    this.total = first.total;
    this.terms = first.terms;
    this.pages.set(0, first.rows);
    this.layout();
  }

  layout() {
    const style = getComputedStyle(this.scroller);
    const width = this.scroller.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
    if (width <= 0) return;
    const at = this.columns ? Math.floor(this.virtual() / this.height) * this.columns : 0;
    const wanted = width < 600 ? 150 : 220;
    this.columns = Math.max(2, Math.floor((width + GAP) / (wanted + GAP)));
    this.width = Math.floor((width - GAP * (this.columns - 1)) / this.columns);
    this.picture = Math.round(this.width * 0.75);
    this.height = this.picture + TEXT + GAP;
    this.whole = Math.ceil(this.total / this.columns) * this.height;
    this.tall = Math.min(this.whole, TALLEST);
    this.canvas.style.height = `${this.tall}px`;
    for (const [index, tile] of this.tiles) this.place(tile, index);
    if (at && this.scroller.scrollTop) this.goto(Math.floor(at / this.columns) * this.height);
    this.draw();
  }

  // The canvas is at most TALLEST pixels tall. If the grid is taller, ``offset`` is the distance in pixels from the
  // canvas's scroll position to the grid's. A small step scrolls pixel by pixel and keeps the offset. A drag of the
  // scroll bar goes to the same share of the grid.
  virtual() {
    return this.scroller.scrollTop + (this.offset || 0);
  }

  scrolled() {
    const top = this.scroller.scrollTop;
    const view = this.scroller.clientHeight;
    if (this.whole > this.tall) {
      if (Math.abs(top - (this.last || 0)) > view) {
        this.offset = (top / (this.tall - view)) * (this.whole - view) - top;
      }
      const inside = Math.min(Math.max(top + this.offset, 0), this.whole - view);
      this.offset = inside - top;
      clearTimeout(this.settling);
      this.settling = setTimeout(() => this.goto(this.virtual()), 200);
    } else {
      this.offset = 0;
    }
    this.last = top;
    this.draw();
  }

  goto(virtual) {
    const view = this.scroller.clientHeight;
    const share = this.whole > view ? virtual / (this.whole - view) : 0;
    this.scroller.scrollTop = this.whole > this.tall ? share * (this.tall - view) : virtual;
    this.last = this.scroller.scrollTop;
    this.offset = this.whole > this.tall ? virtual - this.last : 0;
    this.draw();
  }

  /** Scroll until a tile is in sight. ``focus``: focus it. */
  reveal(index, focus = false) {
    const top = Math.floor(index / this.columns) * this.height;
    const view = this.scroller.clientHeight;
    const now = this.virtual();
    if (top < now) this.goto(top);
    else if (top + this.height > now + view) this.goto(top + this.height - view);
    else this.draw();
    if (focus) this.tiles.get(index)?.focus({ preventScroll: true });
  }

  firstInSight() {
    return Math.min(Math.ceil(this.virtual() / this.height) * this.columns, Math.max(this.total - 1, 0));
  }

  draw() {
    if (!this.columns) return;
    const top = this.virtual();
    const first = Math.max(0, Math.floor(top / this.height) - 1) * this.columns;
    const last = Math.min(this.total, (Math.ceil((top + this.scroller.clientHeight) / this.height) + 1) * this.columns);
    for (const [index, tile] of this.tiles) {
      if ((index < first || index >= last) && tile !== document.activeElement) {
        tile.remove();
        this.tiles.delete(index);
      } else this.place(tile, index);
    }
    for (let index = first; index < last; index += 1) {
      let tile = this.tiles.get(index);
      if (!tile) {
        tile = el("a", { class: "tile", data: { testid: "tile", index } });
        tile.addEventListener("click", (event) => {
          if (event.metaKey || event.ctrlKey || event.shiftKey || !this.row(index)) return;
          event.preventDefault();
          this.open(index);
        });
        this.tiles.set(index, tile);
        this.place(tile, index);
        this.canvas.append(tile);
      }
      if (!tile.dataset.key && this.row(index)) this.fill(tile, index, this.row(index));
    }
    for (let page = Math.floor(first / PAGE); page * PAGE < last; page += 1) this.want(page);
  }

  place(tile, index) {
    const row = Math.floor(index / this.columns);
    tile.style.width = `${this.width}px`;
    tile.style.setProperty("--picture", `${this.picture}px`);
    const left = (index % this.columns) * (this.width + GAP);
    tile.style.transform = `translate(${left}px, ${row * this.height - (this.offset || 0)}px)`;
  }

  fill(tile, index, row) {
    tile.dataset.key = row.key;
    tile.href = this.link(row);
    const image = el("img", { alt: row.caption.slice(0, 300), decoding: "async", src: thumbnail(row.row) });
    image.addEventListener("load", () => image.classList.add("seen"));
    image.addEventListener("error", () => image.replaceWith(el("span", { class: "broken" }, "no preview")));
    const size = `${row.width} × ${row.height}`;
    tile.append(el("span", { class: "picture" }, image, el("span", { class: "size" }, size)));
    tile.append(el("span", { class: "caption" }, marked(excerpt(row.caption, this.terms, Math.floor(this.width / 7) * 2), this.terms)));
  }

  row(index) {
    return this.pages.get(Math.floor(index / PAGE))?.[index % PAGE];
  }

  /** The row at an index. It is requested if it is not here. */
  async rowAt(index) {
    if (!this.row(index)) await this.want(Math.floor(index / PAGE), 0);
    return this.row(index);
  }

  /** Request a page, if it is not here. Waits first: a page that was scrolled past meanwhile is not requested. */
  want(page, wait = 80) {
    const expected = Math.min(PAGE, this.total - page * PAGE);
    if ((this.pages.get(page)?.length || 0) >= expected) return Promise.resolve();
    if (this.loading.has(page)) return this.loading.get(page);
    const version = this.version;
    const asked = new Promise((resolve) => setTimeout(resolve, wait)).then(async () => {
      const passed = wait && !this.inSight(page); // scrolled past in the meantime
      try {
        if (passed || version !== this.version) return;
        const { rows } = await this.load(page * PAGE, PAGE);
        if (version !== this.version) return;
        this.pages.set(page, rows);
        if (this.pages.size > KEPT) this.pages.delete(this.pages.keys().next().value);
      } finally {
        if (version === this.version) this.loading.delete(page);
      }
      this.draw();
    });
    this.loading.set(page, asked);
    asked.catch(() => {});
    return asked;
  }

  inSight(page) {
    const first = Math.floor(this.virtual() / this.height - 1) * this.columns;
    const last = (Math.ceil((this.virtual() + this.scroller.clientHeight) / this.height) + 1) * this.columns;
    return page * PAGE < last && (page + 1) * PAGE > first;
  }

  moved(event) {
    const from = Number(event.target.dataset?.index);
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -this.columns, ArrowDown: this.columns };
    const ends = { Home: 0, End: this.total - 1 };
    if (!Number.isInteger(from) || event.altKey || event.ctrlKey || event.metaKey) return;
    const to = event.key in ends ? ends[event.key] : from + steps[event.key];
    if (event.key === " ") this.open(from);
    else if (!(to >= 0 && to < this.total)) return;
    else this.reveal(to, true);
    event.preventDefault();
  }
}

/** The part of a long caption that holds the first hit. If the hit is among the first ``letters``, the beginning. */
function excerpt(caption, terms, letters) {
  const at = Math.min(...terms.map((term) => caption.toLowerCase().indexOf(term.toLowerCase())).filter((found) => found >= 0));
  if (!(at > letters) || at === Infinity) return caption.slice(0, 400);
  const start = caption.lastIndexOf(" ", at - 30);
  return `…${caption.slice(start < 0 ? at - 30 : start, at + 400)}`;
}
