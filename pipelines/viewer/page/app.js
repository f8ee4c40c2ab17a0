// The page: put together, kept up to date, and steered by keys.

import { getIndex, getJson } from "./api.js";
import { fill, h } from "./dom.js";
import { Legend } from "./legend.js";
import { defaultPanes, layouts } from "./layouts.js";
import * as state from "./model.js";
import { fitCameras, Pane } from "./panes.js";
import { savePicture } from "./picture.js";
import { Side } from "./side.js";
import { onRestored } from "./stage.js";
import { Timeline } from "./timeline.js";
import { Toolbar } from "./toolbar.js";

const { model } = state;
const SLOWER = 10; // times, of looks at the server while the page is not seen
const PATIENCE_MS = 120_000;

let panes = [];
const grid = h("main.grid");
const banner = h("div.banner", { role: "alert", hidden: true });
const empty = h("div.message", { hidden: true });
const legend = new Legend();
const side = new Side(chooseSample);
const timeline = new Timeline(settled);
const toolbar = new Toolbar({ fit: () => fit(true), save: () => savePicture(panes), layOut });

/** Resolves when every pane shows what it should. */
async function settled() {
  const until = performance.now() + PATIENCE_MS;
  while (performance.now() < until) {
    await new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve)));
    if (panes.every((pane) => pane.isReady && !pane.drawing)) return;
  }
}

// Changes -----------------------------------------------------------------------------------------------------------------------

state.onChange((names) => {
  if (names.has("panes") || names.has("whole") || names.has("active")) placePanes();
  for (const pane of panes) pane.update(names);
  legend.update(panes);
  timeline.update(names);
  toolbar.update(names);
  side.update(names);
  document.body.classList.toggle("dark", model.dark);
});

/** As many panes as the state has, in a grid that fills the page. */
function placePanes() {
  while (panes.length > model.panes.length) panes.pop().element.remove();
  while (panes.length < model.panes.length) panes.push(makePane(panes.length));
  const alone = model.whole && panes[model.active];
  panes.forEach((pane) => (pane.element.hidden = Boolean(alone) && pane !== alone));
  const count = alone ? 1 : Math.max(panes.length, 1);
  const isWide = grid.clientWidth > 1.9 * grid.clientHeight;
  const columns = Math.min(Math.ceil(Math.sqrt(count * (isWide ? 1.4 : 1))), count);
  const last = count % columns || columns;
  grid.style.gridTemplateColumns = `repeat(${columns * last}, minmax(0, 1fr))`;
  panes.forEach((pane, at) => (pane.element.style.gridColumn = `span ${alone ? 1 : at < count - last ? last : columns}`));
  tellEmpty();
}

function makePane(number) {
  const pane = new Pane(number);
  pane.onMoved = (moved, done) => {
    for (const other of panes) {
      other.moving = !done;
      if (other.camera === pane.camera || other.number === moved) other.draw();
    }
    if (done) state.remember();
  };
  pane.onNew = () => fit(false);
  pane.onLoaded = () => {
    legend.update(panes);
    toolbar.update(new Set(["panes"]));
  };
  grid.append(pane.element);
  return pane;
}

function fit(force) {
  fitCameras(panes, force);
  panes.forEach((pane) => pane.draw());
  state.remember();
}

/** Say what was looked for where there is nothing to show. */
function tellEmpty() {
  const roots = model.index?.roots ?? [];
  empty.hidden = !model.index || panes.length > 0;
  const isNothing = roots.every((root) => root.kind !== "log" || !root.items.length) && !state.sampledRoots().length;
  const lines = roots.map((root) => h("li", {}, h("b", {}, root.name), ` ${tellRoot(root)}`));
  fill(
    empty,
    h("h1", {}, isNothing ? "Nothing to show yet" : "No pane is open"),
    isNothing ? h("p", {}, "The viewer looked here:") : h("p", {}, "Choose something on the left, or add a pane above."),
    h("ul", {}, lines),
    isNothing ? h("p.faint", {}, `The folders are looked at again every ${model.index?.poll_s ?? 1} s: what is written appears by itself.`) : null,
  );
}

function tellRoot(root) {
  if (root.kind === "log") return root.items.length ? `log of ${root.items.length} items` : `is no store, predictions or tables, and no log yet. Expected ${root.expected}.`;
  if (root.kind === "tables") return `metric tables of ${new Set(root.runs.map((run) => run.run)).size} runs: give the store, too, to see their samples`;
  return `${root.kind} of ${root.samples} samples`;
}

function tell(error) {
  banner.hidden = !error;
  if (error) fill(banner, h("b", {}, `${error.kind ?? "Error"}: `), error.what ?? String(error), " ", h("span", {}, error.now ?? ""));
}

// Samples -----------------------------------------------------------------------------------------------------------------------

/** Show a sample; with a field, that one in a pane. */
async function chooseSample(key, field = "") {
  try {
    const sample = await getJson("/api/sample", { key });
    tell(null);
    state.change({ sample, panes: model.panes.map((spec) => state.carried(spec, sample)) });
    if (!model.panes.length) layOut("");
    if (field) showField(field);
  } catch (error) {
    tell(error);
  }
}

function showField(field) {
  const found = Object.entries(model.sample.roots).flatMap(([root, held]) => held.shows.filter((one) => one.what === field).map((one) => ({ root, ...one })));
  if (!found.length) return;
  const { root, kind, what } = found[0];
  const at = model.panes.findIndex((spec) => spec.root === root && spec.what === what);
  if (at >= 0) state.change({ active: at });
  else state.changePane(model.active, { root, kind, what, item: "", mode: "", index: -1 });
}

/** Open the panes of a layout; "" for the best one. */
function layOut(name) {
  const specs = name ? layouts()[name] : defaultPanes();
  state.change({ panes: specs.map(state.makeSpec), active: 0, whole: false });
  fit(true);
}

// The server --------------------------------------------------------------------------------------------------------------------

/** Look whether anything has changed, again and again. */
async function watch() {
  let pause = model.index?.poll_s ?? 1;
  try {
    const index = await getIndex(model.index?.revision);
    const wasLost = !banner.hidden;
    tell(null);
    if (index) await take(index);
    if (wasLost) panes.forEach((pane) => pane.retry());
  } catch (error) {
    tell(error);
    pause = Math.min(pause * 2, 5);
  }
  setTimeout(watch, 1000 * pause * (document.hidden ? SLOWER : 1));
}

/** Take up a new index: what is shown stays, what is new appears. */
async function take(index) {
  const key = model.sample?.key;
  Object.assign(model, { index });
  if (key) model.sample = await getJson("/api/sample", { key }).catch(() => model.sample);
  state.change({ index, sample: model.sample });
  if (!model.panes.length && defaultPanes().length) layOut("");
}

async function start() {
  const wanted = state.readAddress(location.hash);
  document.getElementById("app").replaceChildren(toolbar.element, h("div.middle", {}, side.element, h("div.centre", {}, banner, empty, grid), legend.element), timeline.element);
  model.index = await getIndex("");
  const { key, ...changes } = wanted;
  Object.assign(model, changes);
  const first = key || (await firstKey());
  if (first) model.sample = await getJson("/api/sample", { key: first }).catch(() => null);
  if (!model.panes.length) model.panes = defaultPanes().map(state.makeSpec);
  state.change({ ...model });
  await settled();
}

async function firstKey() {
  const roots = state.sampledRoots();
  const root = roots.find((one) => one.kind === "predictions") ?? roots[0];
  if (!root) return "";
  return (await getJson("/api/samples", { root: root.name })).rows[0]?.key ?? "";
}

// Keys --------------------------------------------------------------------------------------------------------------------------

const toggle = (name) => () => state.change({ [name]: !model[name] });
const KEYS = {
  ArrowLeft: () => timeline.step(-1),
  ArrowRight: () => timeline.step(1),
  Home: () => timeline.step(-Infinity),
  End: () => timeline.step(Infinity),
  " ": () => timeline.toggle(),
  ArrowUp: () => side.step(-1),
  ArrowDown: () => side.step(1),
  PageUp: () => panes[model.active]?.step(1),
  PageDown: () => panes[model.active]?.step(-1),
  "[": () => toolbar.stepItem(-1),
  "]": () => toolbar.stepItem(1),
  f: () => fit(true),
  c: () => panes[model.active]?.nextMode(),
  l: toggle("link"),
  o: toggle("ortho"),
  w: toggle("wire"),
  b: toggle("backs"),
  s: toggle("smooth"),
  g: toggle("grid"),
  d: toggle("dark"),
  m: () => state.change({ whole: !model.whole }),
  p: () => savePicture(panes),
  "?": () => toolbar.help(),
};

addEventListener("keydown", (event) => {
  const isTyping = event.target.matches?.("input:not([type=range]), select, textarea");
  if (isTyping || event.ctrlKey || event.metaKey || event.altKey) return;
  const isOfSlider = event.target.matches?.("input[type=range]") && event.key.startsWith("Arrow");
  const isOfButton = event.target.matches?.("button") && event.key === " ";
  const number = Number(event.key);
  const act = number >= 1 && number <= panes.length ? () => state.change({ active: number - 1 }) : KEYS[event.key];
  if (!act || isOfSlider || isOfButton) return;
  event.preventDefault();
  act();
});

addEventListener("resize", () => model.index && placePanes());
addEventListener("hashchange", () => location.reload());
addEventListener("error", (event) => tell({ kind: "The page", what: event.message, now: "Load it again; if it comes back, tell how it came about." }));
addEventListener("unhandledrejection", (event) => tell(event.reason));
onRestored(() => panes.forEach((pane) => pane.forget()));

/** For tests, and for those who like consoles. */
window.__viewer = {
  ready: start().catch(tell).finally(() => setTimeout(watch, 1000 * (model.index?.poll_s ?? 1))),
  settled,
  state: () => ({ ...model, address: state.writeAddress() }),
  setTime: (time) => timeline.go(time),
  setView: (number, changes) => state.changePane(number, changes),
  stats: (number) => panes[number].stats,
  pixels: (number) => {
    const { canvas } = panes[number];
    panes[number].drawNow();
    const { data, width, height } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    return { data, width, height };
  },
};
