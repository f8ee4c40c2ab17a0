// Pictures and planes of volumes on a canvas, and what a pixel of them is.

import { idColors } from "./colors.js";
import { short } from "./dom.js";

const NOTHING = [230, 233, 237];
const GREY = [158, 166, 176];

/**
 * A frame as a picture of its own size.
 * @param {import("./api.js").Frame} frame
 * @param {Object<string, Set<number>>} hidden
 * @returns {HTMLCanvasElement}
 */
export function makePicture(frame, hidden) {
  const { values, shape } = frame.arrays.values;
  const [height, width, channels] = shape;
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [width, height];
  const pixels = new ImageData(width, height);
  pixels.data.fill(255);
  const put = channels ? putColors : frame.header.scale ? putQuantities(frame.header.scale) : putIds(frame.header, hidden);
  put(values, pixels.data);
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return canvas;
}

function putColors(values, data) {
  for (let from = 0, to = 0; from < values.length; from += 3, to += 4) {
    data[to] = values[from];
    data[to + 1] = values[from + 1];
    data[to + 2] = values[from + 2];
  }
}

function putIds({ ids, legend }, hidden) {
  const colors = idColors(legend);
  for (const id of hidden[ids] ?? []) colors.set(id, NOTHING);
  return (values, data) => putEach(values, data, (id) => colors.get(id) ?? GREY);
}

function putQuantities({ low, high, colors, special }) {
  const meant = new Map(special.map((entry) => [Math.fround(entry.value), entry.color]));
  const last = colors.length - 1;
  const place = (value) => Math.round(Math.min(Math.max((value - low) / (high - low || 1), 0), 1) * last);
  return (values, data) => putEach(values, data, (value) => meant.get(value) ?? colors[place(value) || 0]);
}

function putEach(values, data, colorOf) {
  for (let at = 0; at < values.length; at++) {
    const color = colorOf(values[at]);
    data[4 * at] = color[0];
    data[4 * at + 1] = color[1];
    data[4 * at + 2] = color[2];
  }
}

/**
 * Draw a picture as large as it fits, its pixels sharp.
 * @returns {{left: number, top: number, scale: number}} where it is
 */
export function drawPicture(canvas, picture, background) {
  const paint = canvas.getContext("2d");
  paint.fillStyle = background;
  paint.fillRect(0, 0, canvas.width, canvas.height);
  const scale = Math.min(canvas.width / picture.width, canvas.height / picture.height);
  const [width, height] = [picture.width * scale, picture.height * scale];
  const [left, top] = [(canvas.width - width) / 2, (canvas.height - height) / 2];
  paint.imageSmoothingEnabled = scale < 1;
  paint.drawImage(picture, left, top, width, height);
  return { left, top, scale };
}

/** What a pixel is, in words; "" beside the picture. */
export function tellPixel(frame, column, row) {
  const { values, shape } = frame.arrays.values;
  if (row < 0 || column < 0 || row >= shape[0] || column >= shape[1]) return "";
  const at = row * shape[1] + column;
  const place = placeOf(frame.header, column, row, shape);
  if (shape[2]) return `${place}: ${[...values.subarray(3 * at, 3 * at + 3)].join(", ")}`;
  const { scale, legend } = frame.header;
  if (!scale) return `${place}: ${values[at]} ${legend.find((entry) => entry.id === values[at])?.name ?? ""}`;
  const meant = scale.special.find((entry) => Math.fround(entry.value) === values[at]);
  return `${place}: ${short(values[at])} ${scale.unit}${meant ? ` (${meant.name})` : ""}`;
}

function placeOf({ axis, index, right, down }, column, row, shape) {
  const names = { [right]: column, [down.replace("-", "")]: down.startsWith("-") ? shape[0] - 1 - row : row };
  if (axis) names[axis] = index;
  return Object.entries(names)
    .sort()
    .map(([name, value]) => `${name} ${value}`)
    .join(", ");
}
