// The place where the picture lies: zoomed by the wheel, moved by dragging, and a line that says what is under the pointer.

import { h } from "./dom.js";

const MOST = 32;

export function viewer(width, height, describe) {
  const frame = h("div", { class: "picture", css: { "aspect-ratio": `${width} / ${height}`, "--w": width, "--h": height } });
  const readout = h("output", { class: "readout" });
  const hall = h("div", { class: "hall" }, frame);
  const element = h("div", { class: "stage" }, hall, readout);
  let scale = 1, left = 0, top = 0, held = null;

  const place = () => {
    frame.style.transform = `translate(${left}px, ${top}px) scale(${scale})`;
    // Single pixels are shown as such when they are large enough to be seen.
    frame.classList.toggle("pixels", (frame.offsetWidth / width) * scale * devicePixelRatio >= 3);
  };
  const zoom = (to, x, y) => {
    to = Math.min(MOST, Math.max(1, to));
    left = x - ((x - left) / scale) * to;
    top = y - ((y - top) / scale) * to;
    scale = to;
    if (scale === 1) left = top = 0;
    place();
  };
  const point = (event) => {
    const box = frame.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  };
  // Pixels from the frame's own corner, before any transform.
  const local = (event) => {
    const box = frame.getBoundingClientRect();
    return [event.clientX - box.left + left, event.clientY - box.top + top];
  };
  hall.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoom(scale * 2 ** (-event.deltaY / 300), ...local(event));
  }, { passive: false });
  hall.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    held = [event.clientX - left, event.clientY - top];
    hall.setPointerCapture(event.pointerId);
  });
  hall.addEventListener("pointermove", (event) => {
    if (held && scale > 1) {
      [left, top] = [event.clientX - held[0], event.clientY - held[1]];
      place();
    }
    const [x, y] = point(event);
    readout.textContent = x >= 0 && y >= 0 && x < 1 && y < 1 ? describe(x, y) : "";
  });
  hall.addEventListener("pointerup", () => { held = null; });
  hall.addEventListener("pointerleave", () => { readout.textContent = ""; });
  hall.addEventListener("dblclick", () => zoom(1, 0, 0));
  new ResizeObserver(place).observe(frame);

  return {
    element,
    frame,
    flip() {
      const exact = width / (frame.offsetWidth * devicePixelRatio);
      if (scale !== 1) zoom(1, 0, 0);
      else zoom(exact > 1.05 ? exact : 4, frame.offsetWidth / 2, frame.offsetHeight / 2);
    },
  };
}
