// A picture of what is shown, as a file.

import { model } from "./model.js";

const GAP = 8;
const LINE = 22;

/** Save the panes that are seen, each under its title, as one PNG. */
export function savePicture(panes) {
  const seen = panes.filter((pane) => !pane.element.hidden && pane.canvas.width);
  if (!seen.length) return;
  const boxes = seen.map((pane) => ({ pane, ...placeOf(pane) }));
  const [left, top] = ["left", "top"].map((side) => Math.min(...boxes.map((box) => box[side])));
  const sharpness = seen[0].canvas.width / seen[0].canvas.clientWidth;
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(...boxes.map((box) => (box.left - left + box.width) * sharpness)) + 2 * GAP;
  canvas.height = Math.max(...boxes.map((box) => (box.top - top + box.height) * sharpness)) + 2 * GAP + LINE;
  const paint = canvas.getContext("2d");
  paint.fillStyle = model.dark ? "#0d1117" : "#ffffff";
  paint.fillRect(0, 0, canvas.width, canvas.height);
  paint.fillStyle = model.dark ? "#d5dbe3" : "#1d2530";
  paint.font = `${12 * sharpness}px system-ui, sans-serif`;
  for (const box of boxes) {
    box.pane.drawNow();
    const [x, y] = [(box.left - left) * sharpness + GAP, (box.top - top) * sharpness + GAP + LINE];
    paint.fillText(box.pane.title, x, y - 6, box.width * sharpness);
    paint.drawImage(box.pane.canvas, x, y);
  }
  canvas.toBlob((blob) => offer(blob, `scenemill-${new Date().toISOString().slice(0, 19).replaceAll(":", "")}.png`));
}

function placeOf({ canvas }) {
  const { left, top, width, height } = canvas.getBoundingClientRect();
  return { left, top, width, height };
}

function offer(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
