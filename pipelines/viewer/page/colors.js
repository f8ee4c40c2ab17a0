// Which colour an element has: its own, that of one of its ids, of its height, or one for all.

const PLAIN = [118, 146, 178];
const OVER = [226, 138, 60];
const GREY = [158, 166, 176];
const LOW_HIGH = [
  [68, 1, 84],
  [59, 81, 139],
  [33, 144, 141],
  [92, 200, 99],
  [253, 231, 37],
];

/** The ways in which the elements of a scene can be coloured, the best first. */
export function colorModes(frame) {
  const names = new Set(frame.header.parts.flatMap((part, number) => namesOf(frame, number)));
  const hasMaterials = frame.header.parts.some((part) => Object.keys(part.materials).length);
  const ids = [...names].filter((name) => name.startsWith("ids.")).map((name) => name.slice(4));
  const kinds = new Set(frame.header.parts.map((part) => part.kind));
  return [
    ...(hasMaterials ? ["material"] : []),
    ...(names.has("colors") ? ["colour"] : []),
    ...ids,
    ...(kinds.has("mesh") ? ["plain", "height", "normal"] : ["height", "plain"]),
  ];
}

/** The names of a part's arrays. */
export function namesOf(frame, number) {
  const prefix = `${number}/`;
  return Object.keys(frame.arrays).filter((name) => name.startsWith(prefix)).map((name) => name.slice(prefix.length));
}

/**
 * The colours of a part's elements.
 * @param {import("./api.js").Frame} frame
 * @param {number} number of the part
 * @param {string} mode one of colorModes
 * @returns {{place: string, values: Uint8Array}} RGBA of each vertex, face, corner or, "all", of all
 */
export function colorsOf(frame, number, mode) {
  const part = frame.header.parts[number];
  const named = frame.arrays[`${number}/${mode === "colour" ? "colors" : `ids.${mode}`}`];
  if (mode === "height") return { place: "vertex", values: byHeight(frame, number) };
  if (!named) return { place: "all", values: new Uint8Array([...(mode !== "plain" && mode !== "material" ? GREY : part.isOver ? OVER : PLAIN), 255]) };
  const place = part.places[named === frame.arrays[`${number}/colors`] ? "colors" : `ids.${mode}`] ?? "vertex";
  return { place, values: mode === "colour" ? widened(named) : byId(named.values, frame.header.legends[mode]) };
}

/** Whether each element of a part is shown: those whose ids are hidden are not. Null where all are. */
export function shownOf(frame, number, hidden) {
  const part = frame.header.parts[number];
  for (const [name, ids] of Object.entries(hidden)) {
    const array = frame.arrays[`${number}/ids.${name}`];
    if (array && ids.size) return { place: part.places[`ids.${name}`] ?? "vertex", isShown: (at) => !ids.has(array.values[at]) };
  }
  return null;
}

/** Id -> its colour. */
export function idColors(legend) {
  return new Map((legend ?? []).map((entry) => [entry.id, entry.color]));
}

function byId(ids, legend) {
  const colors = idColors(legend);
  const values = new Uint8Array(4 * ids.length).fill(255);
  let [last, color] = [NaN, GREY];
  for (let at = 0; at < ids.length; at++) {
    if (ids[at] !== last) [last, color] = [ids[at], colors.get(ids[at]) ?? GREY];
    values[4 * at] = color[0];
    values[4 * at + 1] = color[1];
    values[4 * at + 2] = color[2];
  }
  return values;
}

function widened({ values, shape }) {
  if (shape[1] === 4) return values;
  const wide = new Uint8Array(4 * shape[0]).fill(255);
  for (let at = 0; at < shape[0]; at++) wide.set(values.subarray(3 * at, 3 * at + 3), 4 * at);
  return wide;
}

function byHeight(frame, number) {
  const { matrix } = frame.header.parts[number];
  const row = matrix[frame.header.up === "Z" ? 2 : 1];
  const { values: places, shape } = frame.arrays[`${number}/positions`];
  const heights = new Float32Array(shape[0]);
  let [low, high] = [Infinity, -Infinity];
  for (let at = 0; at < shape[0]; at++) {
    const height = row[0] * places[3 * at] + row[1] * places[3 * at + 1] + row[2] * places[3 * at + 2];
    heights[at] = height;
    if (height < low) low = height;
    if (height > high) high = height;
  }
  const values = new Uint8Array(4 * shape[0]).fill(255);
  for (let at = 0; at < shape[0]; at++) values.set(rampColor((heights[at] - low) / (high - low || 1)), 4 * at);
  return values;
}

function rampColor(share) {
  const place = Math.min(Math.max(share || 0, 0), 1) * (LOW_HIGH.length - 1);
  const [low, high] = [LOW_HIGH[Math.floor(place)], LOW_HIGH[Math.ceil(place)]];
  return low.map((part, channel) => part + (high[channel] - part) * (place % 1));
}
