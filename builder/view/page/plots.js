// Histograms as SVG. Each bar is a link that filters the rows to those in the bar.

import { count, counted, el, short, svg } from "./dom.js";

const WIDTH = 240;
const HEIGHT = 84;

/** ``link(filter)`` → the address for "column:low:high". */
export function histogram(plot, link) {
  const figure = el("figure", { class: "plot" });
  const range = (value) => short(value, plot.unit === "bytes" ? "bytes" : "");
  figure.append(el("figcaption", {}, plot.label, el("span", {}, plot.unit && plot.unit !== "bytes" ? plot.unit : "")));
  if (!plot.counts.length) {
    figure.append(el("p", { class: "quiet" }, "no values"));
    return figure;
  }
  const most = Math.max(...plot.counts, 1);
  const wide = WIDTH / plot.counts.length;
  const drawing = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "group" });
  drawing.setAttribute("aria-label", `Histogram of ${plot.label}`);
  plot.counts.forEach((number, at) => {
    const chosen = plot.selected ? plot.selected[at] : number;
    const low = at === 0 ? "" : plot.edges[at];
    const high = at === plot.counts.length - 1 ? "" : plot.edges[at + 1];
    const words = `${interval(low, high, range)}: ${counted(number, "row")}`
      + (plot.selected ? `, ${count(chosen)} of them selected` : "");
    const bar = svg("a", { href: link(`${plot.name}:${low}:${high}`), "aria-label": words });
    bar.append(svg("title", {}, words), svg("rect", { class: "reach", x: at * wide, y: 0, width: wide, height: HEIGHT }));
    bar.append(column("all", at * wide, wide, number / most));
    if (plot.selected) bar.append(column("chosen", at * wide, wide, chosen / most));
    drawing.append(bar);
  });
  figure.append(drawing);
  const ends = el("p", { class: "ends" }, el("span", {}, range(plot.edges[0])), el("span", {}, range(plot.edges.at(-1))));
  const middle = `median ${short(plot.median, plot.unit)} · ${range(plot.minimum)} to ${range(plot.maximum)}`
    + (plot.missing ? ` · ${count(plot.missing)} without` : "");
  figure.append(ends, el("p", { class: "quiet" }, middle));
  return figure;
}

function column(kind, left, wide, share) {
  const tall = share > 0 ? Math.max(share * (HEIGHT - 2), 1.5) : 0;
  return svg("rect", { class: kind, x: left + wide * 0.08, y: HEIGHT - tall, width: wide * 0.84, height: tall });
}

/** "512 to 768", "under 512", "768 and more". */
export function interval(low, high, range) {
  if (low === "") return high === "" ? "all" : `under ${range(high)}`;
  return high === "" ? `${range(low)} and more` : `${range(low)} to ${range(high)}`;
}
