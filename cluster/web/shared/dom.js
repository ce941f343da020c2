// Building the document. Whatever comes from a run is untrusted: it becomes text here, never markup.

const SVG = "http://www.w3.org/2000/svg";

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  node.append(...children.flat(Infinity).filter((child) => child != null && child !== false));
  return node;
}

/** An element; strings among its children become text, functions named on... listen. */
export const el = (tag, attributes = {}, ...children) => filled(document.createElement(tag), attributes, children);

/** The same in SVG. */
export const svg = (tag, attributes = {}, ...children) =>
  filled(document.createElementNS(SVG, tag), attributes, children);

/** Text that stands among others: marks in it that turn the direction of writing end with it. */
export const quoted = (text) => el("bdi", {}, text);

/** Put others in the place of an element's children; the focus stays on a link that is there again. */
export function renew(parent, children) {
  const focused = parent.contains(document.activeElement) && document.activeElement.getAttribute("href");
  parent.replaceChildren(...children);
  if (focused) [...parent.querySelectorAll("a")].find((link) => link.getAttribute("href") === focused)?.focus();
}

/** Text with `names` in backticks set as code. */
export const prose = (text) => text.split("`").map((part, n) => (n % 2 ? el("code", {}, part) : part));

/** What the server answers to a question, by path and parameters; a list gives a parameter several times. */
export async function ask(path, parameters = {}) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters)) {
    for (const one of [value].flat()) if (one != null) query.append(name, one);
  }
  const answer = await fetch(`${path}?${query}`);
  const found = await answer.json();
  if (!answer.ok) throw new Error(typeof found.detail === "string" ? found.detail : answer.statusText);
  return found;
}

/** A number as people read it, with at most so many digits that count. */
export function number(value, digits = 3) {
  if (value == null) return "–";
  const size = Math.abs(value);
  if (size >= 1e6 || (size > 0 && size < 1e-3)) return value.toExponential(digits - 1).replace("-", "−");
  return value.toLocaleString("en", { maximumSignificantDigits: Math.max(digits, Math.ceil(Math.log10(size + 1))) })
    .replace("-", "−");
}

export const signed = (value, digits = 3) => (value >= 0 && value != null ? "+" : "") + number(value, digits);

/** Seconds as people say them. */
export function duration(seconds) {
  if (seconds < 10) return `${number(seconds, 2)} s`;
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return seconds < 172800 ? `${(seconds / 3600).toFixed(1)} h` : `${Math.round(seconds / 86400)} days`;
}
