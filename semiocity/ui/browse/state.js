// The address holds the state: what is searched, which page, which sample, which layers. Everything can be linked to.

const LOOKS = new Set(["key", "layer", "tile", "show"]);
let listener = () => {};

export const onChange = (call) => { listener = call; };
export const params = () => new URLSearchParams(location.search);
export const get = (name) => params().get(name) || "";

// The part of the address that decides which rows there are, for the server.
export function query() {
  const kept = params();
  for (const name of LOOKS) kept.delete(name);
  return kept;
}

// The address with changes: null removes a parameter, an array gives it several values.
export function address(changes) {
  const next = params();
  for (const [name, value] of Object.entries(changes)) {
    next.delete(name);
    for (const item of [value].flat()) if (item !== null && item !== undefined) next.append(name, item);
  }
  const text = next.toString();
  return location.pathname + (text ? `?${text}` : "");
}

export function go(changes, { replace = false } = {}) {
  const next = address(changes);
  if (next === location.pathname + location.search) return;
  history[replace ? "replaceState" : "pushState"](null, "", next);
  listener();
}

// A change of what is searched begins on the first page.
export const filter = (changes, options) => go({ page: null, ...changes }, options);

export function toggled(name, value) {
  const values = params().getAll(name);
  return values.includes(value) ? values.filter((item) => item !== value) : [...values, value];
}

// Layers of the sample page that are on: field → opacity in percent.
export function shown() {
  const found = new Map();
  for (const item of params().getAll("show")) {
    const cut = item.lastIndexOf(":");
    const percent = Number(item.slice(cut + 1));
    if (cut > 0 && percent >= 0 && percent <= 100) found.set(item.slice(0, cut), percent);
  }
  return found;
}

export const showing = (map) => [...map].map(([field, percent]) => `${field}:${percent}`);

addEventListener("popstate", () => listener());
