// What is shown and how: the one state of the page, and the part of it that stands in the address.

import { Orbit } from "./camera.js";

/**
 * What a pane shows.
 * @typedef {Object} Spec
 * @property {string} root name
 * @property {string} item of a log "TYPE/CATEGORY/NUMBER"; of a sample its key, or "" for the selected one
 * @property {string} what of a sample: "surface", "rgb", "geometry", ...
 * @property {string} kind "scene", "picture" or "volume"
 * @property {string} mode how it is coloured; "" for the best way there is
 * @property {?number} pin the iteration it stays at
 * @property {string} axis @property {number} index where a volume is cut; -1 for its middle
 * @property {string} material @property {string} detail
 * @property {string} over what else is drawn in the same space, as choices.addressOf says it; "" for nothing
 */

const FLAGS = ["follow", "loop", "link", "ortho", "wire", "smooth", "backs", "dark", "grid"];
const SPEC = { root: "", item: "", what: "", kind: "scene", mode: "", pin: null, axis: "z", index: -1, material: "", detail: "usual", over: "" };
const MOST_PANES = 12;

export const model = {
  index: null,
  sample: null,
  panes: [],
  active: 0,
  whole: false, // the active pane alone
  tab: "",
  time: 0,
  follow: true,
  playing: false,
  speed: 4,
  loop: true,
  link: true,
  ortho: false,
  wire: false,
  smooth: false,
  backs: true,
  dark: matchMedia("(prefers-color-scheme: dark)").matches,
  grid: true,
  pointSize: 1,
  hidden: {}, // name of ids -> set of those hidden
  cameras: {}, // name of what moves together -> camera
};

const initial = { ...model };
const listeners = new Set();

/** Be told after every change, by the names of what changed. */
export const onChange = (listener) => listeners.add(listener);

/** Change the state, and tell. Who follows sees the last iteration, whatever changes. */
export function change(changes) {
  Object.assign(model, changes);
  const names = new Set(Object.keys(changes));
  const time = model.follow ? (allTimes().at(-1) ?? model.time) : model.time;
  if (time !== model.time) names.add("time");
  model.time = time;
  for (const listener of listeners) listener(names);
  remember();
}

/** Change what a pane shows. */
export function changePane(number, changes) {
  change({ panes: model.panes.map((spec, at) => (at === number ? { ...spec, ...changes } : spec)) });
}

/** @returns {Spec} */
export const makeSpec = (changes) => ({ ...SPEC, ...changes });

/** Add a pane behind the others, and make it the active one. */
export function addPane(spec) {
  if (model.panes.length >= MOST_PANES) return;
  change({ panes: [...model.panes, makeSpec(spec)], active: model.panes.length });
}

export function removePane(number) {
  const panes = model.panes.filter((_, at) => at !== number);
  change({ panes, active: Math.max(0, Math.min(model.active, panes.length - 1)), whole: false });
}

export const rootOf = (name) => model.index?.roots.find((root) => root.name === name);

/** Stores and predictions, whose samples can be chosen. */
export const sampledRoots = () => (model.index?.roots ?? []).filter((root) => root.kind === "store" || root.kind === "predictions");
export const logRoots = () => (model.index?.roots ?? []).filter((root) => root.kind === "log");

/** What the index says of the item of a log. */
export function itemOf(spec) {
  const root = rootOf(spec.root);
  return root?.kind === "log" ? root.items.find((item) => item.item === spec.item) : undefined;
}

/** The iterations of an item of a log, ascending. */
export function timesOf(spec) {
  const item = itemOf(spec);
  return item ? rootOf(spec.root).timelines[item.timeline] : [];
}

/** Of sorted times the nearest one, of two the later. */
export function nearest(times, time) {
  return times.reduce((best, one) => (Math.abs(one - time) <= Math.abs(best - time) ? one : best), times[0] ?? 0);
}

/** All iterations of all panes, ascending. */
export function allTimes() {
  return [...new Set(model.panes.flatMap(timesOf))].sort((a, b) => a - b);
}

/** The camera of a pane: shared by all panes that show the same place, unless cameras are not linked; then they begin as they were. */
export function cameraOf(number, up = "Y") {
  const spec = model.panes[number];
  const isLog = rootOf(spec?.root)?.kind === "log";
  const place = isLog ? `log.${spec.root}` : "sample";
  const name = model.link ? place : `${place}.${number}`;
  model.cameras[name] ??= model.cameras[place]?.copy() ?? (isLog ? new Orbit(up, 30, 20) : new Orbit(up, 0, 8));
  model.cameras[name].up = up;
  return model.cameras[name];
}

/** A pane for a sample: the same thing of another store, or of other predictions, where its own does not have the sample. */
export function carried(spec, sample) {
  const root = sampledRoots().find((one) => one.name === spec.root);
  if (!root || sample.roots[spec.root]) return spec;
  const hasIt = ([name, { shows }]) => rootOf(name)?.kind === root.kind && shows.some(({ kind, what }) => kind === spec.kind && what === spec.what);
  const other = Object.entries(sample.roots).find(hasIt);
  return other ? { ...spec, root: other[0] } : spec;
}

/** Hide or show an id. */
export function toggleId(name, id) {
  const ids = new Set(model.hidden[name]);
  if (!ids.delete(id)) ids.add(id);
  change({ hidden: { ...model.hidden, [name]: ids } });
}

let waiting = 0;

/** Write the state into the address, soon: browsers allow few changes a second. */
export function remember() {
  clearTimeout(waiting);
  waiting = setTimeout(() => history.replaceState(null, "", `#${writeAddress()}`), 250);
}

/** The state as the part of an address behind "#". */
export function writeAddress() {
  const words = new URLSearchParams();
  for (const spec of model.panes) {
    const changed = Object.entries(spec).filter(([name, value]) => value !== SPEC[name] && value !== null);
    words.append("p", changed.map(([name, value]) => `${name}:${encodeURIComponent(value)}`).join(" "));
  }
  if (model.sample) words.set("sample", model.sample.key);
  if (allTimes().length && !model.follow) words.set("t", model.time);
  if (model.tab) words.set("tab", model.tab);
  if (model.active) words.set("active", model.active);
  if (model.whole) words.set("whole", 1);
  for (const flag of FLAGS) if (model[flag] !== initial[flag]) words.set(flag, Number(model[flag]));
  for (const name of ["pointSize", "speed"]) if (model[name] !== initial[name]) words.set(name, model[name]);
  for (const [name, ids] of Object.entries(model.hidden)) if (ids.size) words.append("hide", `${name}:${[...ids].join(",")}`);
  for (const [name, camera] of Object.entries(model.cameras)) if (camera.touched) words.append("cam", `${name}:${camera.write()}`);
  return words.toString();
}

/**
 * What an address says; what it does not say is left out.
 * @returns {Object} changes for the state, and "key" of the sample
 */
export function readAddress(text) {
  const words = new URLSearchParams(text.replace(/^#/, ""));
  const found = { panes: words.getAll("p").slice(0, MOST_PANES).map(readSpec) };
  for (const flag of FLAGS) if (words.has(flag)) found[flag] = words.get(flag) === "1";
  for (const name of ["pointSize", "speed", "active"]) if (Number(words.get(name)) > 0) found[name] = Number(words.get(name));
  if (words.has("t") && Number.isFinite(Number(words.get("t")))) Object.assign(found, { time: Number(words.get("t")), follow: false });
  found.tab = words.get("tab") ?? "";
  found.whole = words.has("whole");
  found.hidden = Object.fromEntries(words.getAll("hide").map(split).map(([name, ids]) => [name, new Set(ids.split(",").map(Number))]));
  found.cameras = Object.fromEntries(words.getAll("cam").map(split).map(([name, text]) => [name, readCamera(text)]));
  return { ...found, key: words.get("sample") ?? "" };
}

const split = (text) => [text.slice(0, text.lastIndexOf(":")), text.slice(text.lastIndexOf(":") + 1)];

function readCamera(text) {
  const camera = new Orbit();
  camera.read(text);
  return camera;
}

function readSpec(text) {
  const words = text.split(" ").map(split).filter(([name]) => name in SPEC);
  const spec = makeSpec(Object.fromEntries(words.map(([name, value]) => [name, decodeURIComponent(value)])));
  const number = (value, other) => (value !== null && value !== "" && Number.isFinite(Number(value)) ? Number(value) : other);
  return { ...spec, pin: number(spec.pin, null), index: number(spec.index, -1) };
}
