// Make elements, ask the server, format numbers. Text is always set as text, never as HTML.

const SVG = "http://www.w3.org/2000/svg";

/** el("a", {href, class, onclick, data: {testid}}, "text", child, …) */
export function el(name, given = {}, ...children) {
  return build(document.createElement(name), given, children);
}

export function svg(name, given = {}, ...children) {
  return build(document.createElementNS(SVG, name), given, children);
}

function build(element, given, children) {
  for (const [name, value] of Object.entries(given)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "data") Object.assign(element.dataset, value);
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

export const $ = (id) => document.getElementById(id);

/** The server's answer. If it is an error, throws an Error with its message. */
export async function get(path, given = {}) {
  const query = new URLSearchParams(Object.entries(given).filter(([, value]) => value !== "" && value !== undefined));
  return answer(await fetch(`${path}?${query}`));
}

export async function post(path, document) {
  const headers = { "Content-Type": "application/json" };
  return answer(await fetch(path, { method: "POST", headers, body: JSON.stringify(document) }));
}

async function answer(response) {
  const document = await response.json().catch(() => ({ error: `error: status ${response.status}` }));
  if (!response.ok) throw new Error(document.error);
  return document;
}

export const thumbnail = (row, side = 320) => `thumbnails/${row}?side=${side}`;

export const count = (number) => Number(number).toLocaleString("en");

/** 1, "row" → "1 row"; 2000, "row" → "2,000 rows". */
export const counted = (number, noun) => `${count(number)} ${noun}${Number(number) === 1 ? "" : "s"}`;

export function bytes(number) {
  if (!(number >= 0)) return "unknown";
  for (const unit of ["bytes", "kB", "MB", "GB"]) {
    if (number < 1000) return unit === "bytes" ? `${number} bytes` : `${number.toPrecision(3)} ${unit}`;
    number /= 1000;
  }
  return `${number.toPrecision(3)} TB`;
}

/** A measured number: 1234567 → "1,234,567", 0.1875 → "0.188". */
export function short(number, unit = "") {
  if (unit === "bytes") return bytes(Math.round(number));
  const text = Number.isInteger(number) || Math.abs(number) >= 100
    ? Math.round(number).toLocaleString("en")
    : String(Number(number.toPrecision(3)));
  return unit ? `${text} ${unit}` : text;
}

/** The text in pieces. The pieces that match a term are <mark>. */
export function marked(text, terms) {
  if (!terms.length) return [text];
  const pattern = terms.map((term) => term.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")).join("|");
  return text.split(new RegExp(`(${pattern})`, "iu")).map((part, at) => (at % 2 ? el("mark", {}, part) : part));
}

/** Calls ``call`` after so many milliseconds without a new call. */
export function settled(milliseconds, call) {
  let timer = 0;
  return (...values) => {
    clearTimeout(timer);
    timer = setTimeout(() => call(...values), milliseconds);
  };
}
