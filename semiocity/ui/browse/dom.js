// Elements built from data. Texts become text nodes, never markup: captions and names come from anywhere.

const SVG = "http://www.w3.org/2000/svg";

function build(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "css") for (const [key, text] of Object.entries(value)) element.style.setProperty(key, text);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export const h = (tag, attributes, ...children) => build(document.createElement(tag), attributes, children);
export const svg = (tag, attributes, ...children) => build(document.createElementNS(SVG, tag), attributes, children);
export const $ = (id) => document.getElementById(id);

export const count = (number) => Number(number).toLocaleString("en-US").replaceAll(",", "\u202f");
export const plural = (number, noun) => `${count(number)} ${noun}${number === 1 ? "" : "s"}`;

export function size(bytes) {
  const units = ["B", "kB", "MB", "GB"];
  let step = 0;
  while (bytes >= 1000 && step < 3) { bytes /= 1000; step += 1; }
  return `${step && bytes < 100 ? bytes.toFixed(1) : Math.round(bytes)} ${units[step]}`;
}

// A number short enough to read: four significant digits, integers whole.
export function short(value) {
  if (value === null || value === undefined) return "–";
  if (typeof value !== "number") return String(value);
  return Number.isInteger(value) ? count(value) : String(Number(value.toPrecision(4)));
}

// base is where most names live: it goes without saying.
export const title = (name) => name.replace(/^base\./, "").replaceAll("_", " ");

export const rgb = ([r, g, b]) => `rgb(${r}, ${g}, ${b})`;

let fading;
export function toast(text) {
  const box = $("toast");
  box.textContent = text;
  box.hidden = false;
  clearTimeout(fading);
  fading = setTimeout(() => { box.hidden = true; }, 2200);
}

export async function fetchJson(address) {
  const answer = await fetch(address, { credentials: "omit", referrerPolicy: "no-referrer" });
  const text = await answer.text();
  let value = null;
  try { value = JSON.parse(text); } catch { /* a sentence, told below */ }
  if (!answer.ok) throw new Error((value && value.error) || text || `status ${answer.status}`);
  return value;
}
