// What is laid over the picture. Each layer has an element, and can say what lies under a pixel.
// label, instance and masks are painted here from exact ids, so that classes can be hidden and pointed at.

import { h, rgb, svg } from "./dom.js";
import * as rle from "./rle.js";

const GOLDEN = 0.61803398875;

// The colour of a number, as [r, g, b]; neighbours in number are far apart in hue. pictures.py does the same.
export function numberColour(number) {
  const hue = (((number - 1) % 256) + 1) * GOLDEN % 1;
  const channel = (turn) => {
    const t = ((hue + turn) % 1 + 1) % 1;
    const high = 0.55 + 0.75 * 0.45, low = 2 * 0.55 - high;
    if (t < 1 / 6) return low + (high - low) * 6 * t;
    if (t < 1 / 2) return high;
    if (t < 2 / 3) return low + (high - low) * 6 * (2 / 3 - t);
    return low;
  };
  return [channel(1 / 3), channel(0), channel(-1 / 3)].map((value) => Math.round(value * 255));
}

// Ids of a PNG, exact: no colour management, no smoothing. Red counts 256 where `wide`.
async function readIds(address, wide) {
  const answer = await fetch(address, { credentials: "omit", referrerPolicy: "no-referrer" });
  if (!answer.ok) throw new Error(await answer.text());
  const bitmap = await createImageBitmap(await answer.blob(), { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  const bytes = context.getImageData(0, 0, bitmap.width, bitmap.height).data;
  const ids = new Uint16Array(bitmap.width * bitmap.height);
  for (let i = 0; i < ids.length; i += 1) ids[i] = wide ? bytes[4 * i] * 256 + bytes[4 * i + 1] : bytes[4 * i];
  return { width: bitmap.width, height: bitmap.height, ids };
}

function paint(canvas, width, height, colourAt) {
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  const words = new Uint32Array(image.data.buffer);
  for (let i = 0; i < words.length; i += 1) words[i] = colourAt(i);
  context.putImageData(image, 0, 0);
}

// As a little-endian word of canvas memory: red first.
const word = ([r, g, b], alpha = 255) => ((alpha << 24) | (b << 16) | (g << 8) | r) >>> 0;

const WHITE = 0xffffffff;

// Whether a pixel lies on the outline of its region: one pixel wide between regions, and inside where nothing follows.
function edge(ids, width, i) {
  const id = ids[i], x = i % width;
  return (x > 0 && ids[i - 1] !== id) || (i >= width && ids[i - width] !== id) ||
    (x + 1 < width && ids[i + 1] === 0) || ids[i + width] === 0;
}

export async function label(address, classes) {
  const { width, height, ids } = await readIds(address, false);
  const element = h("canvas", { class: "layer map" });
  const counts = new Array(256).fill(0);
  for (const id of ids) counts[id] += 1;
  const hidden = new Set();
  const draw = () => {
    const colours = new Uint32Array(256);
    classes.forEach((spec, id) => { if (!hidden.has(id)) colours[id] = word(spec.color); });
    paint(element, width, height, (i) => colours[ids[i]]);
  };
  draw();
  return {
    element,
    shares: classes.map((_, id) => counts[id] / ids.length),
    hidden,
    draw,
    at(x, y) {
      const id = ids[Math.floor(y * height) * width + Math.floor(x * width)];
      return classes[id] ? classes[id].name : `id ${id}`;
    },
  };
}

export async function instance(address) {
  const { width, height, ids } = await readIds(address, true);
  const element = h("canvas", { class: "layer map" });
  const colours = new Map();
  const colour = (id) => {
    if (!colours.has(id)) colours.set(id, word(numberColour(id)));
    return colours.get(id);
  };
  paint(element, width, height, (i) => (ids[i] ? (edge(ids, width, i) ? WHITE : colour(ids[i])) : 0));
  const found = new Set(ids);
  found.delete(0);
  return {
    element,
    instances: found.size,
    at(x, y) {
      const id = ids[Math.floor(y * height) * width + Math.floor(x * width)];
      return id ? `instance ${id}` : "";
    },
  };
}

export async function masks(address) {
  const answer = await fetch(address, { credentials: "omit", referrerPolicy: "no-referrer" });
  if (!answer.ok) throw new Error(await answer.text());
  const { size, masks: items } = await answer.json();
  const [height, width] = size;
  if (!(height > 0 && width > 0 && height * width <= 2 ** 28)) throw new Error("masks: no size");
  const found = items.map((item) => rle.ends(String(item.counts), height * width));
  const damaged = found.filter((ends) => ends === null).length;
  // Masks come from large to small: the small ones win.
  const top = new Uint16Array(height * width);
  found.forEach((ends, number) => {
    if (ends) rle.runs(ends, (first, end) => { for (let p = first; p < end; p += 1) top[(p % height) * width + Math.floor(p / height)] = number + 1; });
  });
  const element = h("canvas", { class: "layer map" });
  const colours = [0, ...items.map((_, number) => word(numberColour(number + 1)))];
  const draw = (only = null) => {
    if (only !== null && found[only]) {
      const one = new Uint8Array(height * width);
      rle.runs(found[only], (first, end) => { for (let p = first; p < end; p += 1) one[(p % height) * width + Math.floor(p / height)] = 1; });
      paint(element, width, height, (i) => (one[i] ? colours[only + 1] : 0));
      return;
    }
    paint(element, width, height, (i) => (top[i] && edge(top, width, i) ? WHITE : colours[top[i]]));
  };
  draw();
  return {
    element,
    items,
    damaged,
    draw,
    at(x, y) {
      const id = top[Math.floor(y * height) * width + Math.floor(x * width)];
      return id ? `mask ${id}` : "";
    },
  };
}

export function boxes(value, width, height, classes) {
  const items = (Array.isArray(value) ? value : (value && value.boxes) || []).filter(
    (item) => item && Array.isArray(item.bbox) && item.bbox.length === 4 && item.bbox.every(Number.isFinite));
  const known = new Map(classes.map((spec) => [spec.name, rgb(spec.color)]));
  const names = [...new Set(items.map((item) => String(item.label)))].sort();
  const colour = (name) => known.get(name) || rgb(numberColour(names.indexOf(name) + 1));
  const font = Math.max(width, height) / 64;
  const element = svg("svg", { class: "layer boxes", viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none" },
    items.map(({ label: name, bbox: [x, y, w, hgt] }) => svg("g", {},
      svg("rect", { x, y, width: Math.max(0, w), height: Math.max(0, hgt), stroke: colour(String(name)), fill: "none" }),
      svg("text", { x: x + font / 4, y: Math.max(font, y - font / 4), "font-size": font, fill: colour(String(name)) }, String(name)))));
  return {
    element,
    items,
    colour,
    at(x, y) {
      const px = x * width, py = y * height;
      const hit = items.filter(({ bbox: [left, up, w, hgt] }) => px >= left && py >= up && px < left + w && py < up + hgt);
      return hit.map((item) => String(item.label)).slice(0, 3).join(", ");
    },
  };
}

export function picture(address) {
  return { element: h("img", { class: "layer", src: address, alt: "", draggable: "false" }), at: () => "" };
}

export function caption(text) {
  return { element: h("div", { class: "layer said" }, h("p", {}, text)), at: () => "" };
}
