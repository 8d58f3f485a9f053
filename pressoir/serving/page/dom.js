// Elements and numbers. Whatever comes from a user or a server goes in as text nodes, never as HTML.

export const byId = (id) => document.getElementById(id);

/** An element with attributes; children are elements, or strings, which become text. */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** The disc of the first model, the square of the second, for sight; `name` is its text. */
export function named(side, name) {
  return element("span", { class: side, dir: "auto" }, element("i", { class: "mark inline", "aria-hidden": "true" }), name);
}

/** A bar of a share (0…1) of its track's length; the number stands beside it as text. */
export function bar(share, side = null) {
  const filled = element("i");
  const track = element("span", { class: side ? `bar ${side}` : "bar", "aria-hidden": "true" }, filled);
  const length = `${(100 * Math.min(Math.max(share || 0, 0), 1)).toFixed(2)}%`;
  // In the next frame, so that it grows; set as a property, which a strict content security policy allows.
  requestAnimationFrame(() => { filled.style.inlineSize = length; });
  return track;
}

/** Say something to those who hear the page. */
export function announce(text) {
  byId("status").textContent = text;
}

const NARROW = "\u202f"; // no-break, so that a unit stays with its number
const known = (value) => value !== null && value !== undefined && Number.isFinite(value);

/** 97.4 %; never 100 or 0 for what is not quite that. */
export function percent(share) {
  if (!known(share)) return "–";
  const value = 100 * share;
  if (value < 100 && value >= 99.95) return `>${NARROW}99.9${NARROW}%`;
  if (value > 0 && value < 0.05) return `<${NARROW}0.1${NARROW}%`;
  return `${value === 100 || value === 0 ? value : value.toFixed(1)}${NARROW}%`;
}

/** Three digits that count. */
export function digits(value) {
  if (!known(value)) return "–";
  return value.toFixed(value < 9.995 ? 2 : value < 99.95 ? 1 : 0);
}

export const milliseconds = (value) => (known(value) ? `${digits(value)}${NARROW}ms` : "–");
export const times = (value) => (known(value) ? `${digits(value)}×` : "–");

/** Of 10^6 bytes each. */
export function megabytes(value) {
  if (!known(value)) return "–";
  return value >= 1000 ? `${digits(value / 1000)}${NARROW}GB` : `${digits(value)}${NARROW}MB`;
}

export const count = (value) => (known(value) ? value.toLocaleString("en") : "–");
export const plural = (number, one, many = `${one}s`) => `${count(number)} ${number === 1 ? one : many}`;

/** The middle value; null of none. */
export function median(values) {
  const sorted = values.filter(known).sort((x, y) => x - y);
  if (!sorted.length) return null;
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

/** Wilson's 95 % interval of a share (E. B. Wilson, 1927), the server's too; null of nothing. */
export function wilson(successes, total) {
  if (!total) return null;
  const z = 1.959964, p = successes / total, scale = 1 + (z * z) / total;
  const centre = (p + (z * z) / (2 * total)) / scale;
  const half = (z / scale) * Math.sqrt((p * (1 - p)) / total + (z * z) / (4 * total * total));
  return [Math.max(0, centre - half), Math.min(1, centre + half)];
}
