// Panes: each shows one thing in space, a picture, or a plane of a volume, with its own choices above it.

import { getFrame } from "./api.js";
import { drawAxes } from "./axes.js";
import { around, steer } from "./camera.js";
import { addressOf, choicesFor, choicesOver, specAt } from "./choices.js";
import { colorModes } from "./colors.js";
import { choice, count, fill, h, refill, scaleBar, short } from "./dom.js";
import * as state from "./model.js";
import { dispose, makeObjects } from "./objects.js";
import { together } from "./overlay.js";
import { drawPicture, makePicture, tellPixel } from "./plane.js";
import * as stage from "./stage.js";

const { model } = state;
const LIGHT = "#fbfcfd";
const DARK = "#161b22";
const SHARPEST = 2; // pixels of the canvas to one of the page

/** A pane on the page. It is told of changes, and loads and draws by itself. */
export class Pane {
  /** @param {number} number its place among the panes */
  constructor(number) {
    this.number = number;
    this.frame = null;
    this.sources = [];
    this.objects = null;
    this.picture = null;
    this.error = null;
    this.wanted = this.shown = "";
    this.moving = false;
    this.canvas = h("canvas", { tabindex: 0 });
    this.head = h("div.pane-head");
    this.slider = h("input", { type: "range", min: 0, "aria-label": "plane", hidden: true });
    this.words = h("span.words");
    this.foot = h("div.pane-foot", {}, this.slider, this.words);
    this.note = h("div.pane-note", { role: "status", hidden: true });
    this.hint = h("div.pane-hint", { hidden: true });
    this.body = h("div.pane-body", {}, this.canvas, this.note, this.hint);
    this.element = h("section.pane", { onpointerdown: () => this.activate() }, this.head, this.body, this.foot);
    this.listen();
  }

  get spec() {
    return model.panes[this.number];
  }

  get isFlat() {
    return this.spec.kind !== "scene";
  }

  get camera() {
    return state.cameraOf(this.number, this.frame?.header.up ?? "Y");
  }

  activate() {
    if (model.active !== this.number) state.change({ active: this.number });
  }

  listen() {
    new ResizeObserver(() => this.draw()).observe(this.body);
    steer(this.canvas, () => (this.isFlat ? null : this.camera), (done) => this.onMoved(this.number, done));
    this.canvas.addEventListener("dblclick", () => state.change({ whole: !model.whole, active: this.number }));
    this.canvas.addEventListener("pointermove", (event) => this.tell(event));
    this.canvas.addEventListener("pointerleave", () => (this.hint.hidden = true));
    this.canvas.addEventListener("wheel", (event) => this.turnPages(event), { passive: false });
    this.slider.addEventListener("input", () => state.changePane(this.number, { index: Number(this.slider.value) }));
  }

  /** Set by those who own the panes: a camera was moved here. */
  onMoved() {}

  /** Take up a change of the state. */
  update(names) {
    this.element.classList.toggle("inactive", this.number !== model.active);
    this.element.classList.toggle("active", this.number === model.active && model.panes.length > 1);
    if (["panes", "index", "sample", "whole"].some((name) => names.has(name))) this.makeHead();
    this.remake();
    this.load();
    this.draw();
  }

  // What it shows -----------------------------------------------------------------------------------------------------------

  /** What to ask for, as [path, parameters, stamp]; null where there is nothing to show. */
  request({ root: name, what, kind, axis, detail, item: logItem }) {
    const root = state.rootOf(name);
    if (!root) return null;
    if (root.kind === "log") return this.requestOfLog(name, logItem, detail);
    const held = model.sample?.roots[name];
    if (!held?.shows.some((one) => one.kind === kind && one.what === what)) return null;
    const item = model.sample.key;
    if (kind === "scene") return ["/api/scene", { root: name, item, what, detail }, held.stamp];
    return ["/api/plane", { root: name, item, what, ...(kind === "volume" ? { axis, index: this.index } : {}) }, held.stamp];
  }

  requestOfLog(root, name, detail) {
    const item = state.itemOf({ root, item: name });
    if (!item) return null;
    const time = state.nearest(state.timesOf({ root, item: name }), this.spec.pin ?? model.time);
    return ["/api/scene", { root, item: item.item, time, detail }, item.stamp];
  }

  /** What to ask for of what is laid over; null where that is nothing. */
  requestOver() {
    if (!this.spec.over || this.isFlat) return null;
    const number = this.spec.item.slice(this.spec.item.lastIndexOf("/"));
    return this.request({ ...this.spec, ...specAt(this.spec.over, number), detail: this.spec.detail });
  }

  /** How many planes the volume has; 1 of all else. */
  get planes() {
    const shows = model.sample?.roots[this.spec.root]?.shows ?? [];
    return shows.find((one) => one.what === this.spec.what && one.kind === "volume")?.size ?? 1;
  }

  get index() {
    const { index } = this.spec;
    return index < 0 ? Math.floor(this.planes / 2) : Math.min(index, this.planes - 1);
  }

  turnPages(event) {
    if (this.spec.kind !== "volume") return;
    event.preventDefault();
    this.step(Math.sign(event.deltaY));
  }

  step(planes) {
    const index = Math.min(Math.max(this.index + planes, 0), this.planes - 1);
    state.changePane(this.number, { index });
  }

  /** Load what is wanted; while one thing is under way, only the latest wish is kept. */
  async load() {
    const request = this.request(this.spec);
    const over = this.requestOver();
    this.wanted = JSON.stringify([request, over]);
    if (!request) this.show(null, this.whyNothing());
    if (!request || this.loading || this.wanted === this.shown) return;
    this.loading = true;
    const asked = this.wanted;
    const busy = setTimeout(() => this.element.classList.add("busy"), 150);
    try {
      const frame = await this.get(request, over);
      if (asked === this.wanted || !this.frame) this.show(frame, null);
    } catch (error) {
      this.show(isSameThing(request, this.of) ? this.frame : null, error);
    }
    clearTimeout(busy);
    this.element.classList.remove("busy");
    this.loading = false;
    this.shown = asked;
    if (this.wanted !== this.shown) await this.load();
    this.onLoaded();
  }

  /** The frame of what is wanted, maybe with another laid over. */
  async get(request, over) {
    const frame = await getFrame(...request, this.sources[0]);
    const other = over && (await getFrame(...over, this.sources[1]));
    this.sources = [frame, other];
    this.of = request;
    return other ? together(frame, other) : frame;
  }

  /** Set by those who own the panes: it has what it wanted. */
  onLoaded() {}

  get isReady() {
    return !this.loading && this.wanted === this.shown;
  }

  /** Ask again for what was refused. */
  retry() {
    if (this.error) this.shown = "";
    this.load();
  }

  /** Make everything anew: the graphics card has lost it. */
  forget() {
    this.madeOf = null;
    this.remake();
    this.draw();
  }

  /** Colour it the next way. */
  nextMode() {
    const { modes } = this;
    if (modes.length) state.changePane(this.number, { mode: modes[(modes.indexOf(this.mode) + 1) % modes.length] });
  }

  whyNothing() {
    const root = state.rootOf(this.spec.root);
    if (!root) return { what: `Nothing called "${this.spec.root}" is shown.`, now: "Choose another above." };
    if (root.kind === "log") return { what: `No item ${this.spec.item}.`, now: "It may come; or choose another above." };
    if (!model.sample) return { what: "No sample is chosen.", now: "Choose one on the left." };
    return { what: `${root.name} has no ${this.spec.what} of this sample.`, now: "Choose another above." };
  }

  show(frame, error) {
    if (frame !== this.frame) {
      const isNew = Boolean(frame) && !(this.frame && isSameThing(this.of, this.before));
      this.before = this.of;
      this.frame = frame;
      this.remake();
      this.makeHead();
      if (isNew) this.onNew();
    }
    this.error = error;
    this.tellState();
    this.draw();
  }

  /** Set by those who own the panes: something else is shown than before. */
  onNew() {}

  /** Make what is drawn anew where frame or look are others than those it was made of. */
  remake() {
    const look = JSON.stringify({ ...this.look, hidden: Object.entries(model.hidden).map(([name, ids]) => [name, [...ids]]) });
    if (this.madeOf?.frame === this.frame && this.madeOf.look === look) return;
    this.madeOf = { frame: this.frame, look };
    if (this.objects) dispose(this.objects.group);
    this.objects = this.picture = null;
    if (!this.frame) return;
    if (this.frame.header.frame === "plane") this.picture = makePicture(this.frame, model.hidden);
    else this.objects = makeObjects(this.frame, this.look);
    this.tellState();
  }

  get modes() {
    return this.frame?.header.frame === "scene" ? colorModes(this.frame) : [];
  }

  get mode() {
    if (this.modes.includes(this.spec.mode)) return this.spec.mode;
    return this.spec.over && this.modes.length ? "plain" : this.modes[0];
  }

  get look() {
    const { hidden, wire, smooth, backs, pointSize } = model;
    return { hidden, wire, smooth, backs, pointSize, mode: this.mode, material: this.spec.material };
  }

  get isSeen() {
    return !this.element.hidden && !this.isFlat && this.body.clientHeight > 0;
  }

  get aspect() {
    return this.body.clientWidth / this.body.clientHeight;
  }

  get box() {
    const bounds = this.frame?.header.bounds;
    return bounds ? { low: bounds[0], high: bounds[1] } : null;
  }

  // What is drawn -----------------------------------------------------------------------------------------------------------

  draw() {
    if (this.drawing) return;
    this.drawing = requestAnimationFrame((began) => {
      this.drawing = 0;
      this.drawNow();
      if (this.moving) requestAnimationFrame((next) => stage.pace.note(next - began));
    });
  }

  drawNow() {
    const sharpness = Math.min(devicePixelRatio, SHARPEST);
    const [width, height] = [this.body.clientWidth, this.body.clientHeight].map((size) => Math.round(size * sharpness));
    if (!width || !height || !this.spec) return;
    if (this.canvas.width !== width || this.canvas.height !== height) Object.assign(this.canvas, { width, height });
    const background = model.dark ? DARK : LIGHT;
    if (this.picture) this.place = drawPicture(this.canvas, this.picture, background);
    else if (!stage.isLost()) {
      const share = this.moving ? stage.pace.share : 1;
      const { ortho, grid } = model;
      stage.draw(this.canvas, this.objects?.group, this.camera, { ortho, grid, share, background, box: this.box });
      if (this.objects && this.box) drawAxes(this.canvas, this.camera, sharpness, grid ? this.squares : "");
    }
  }

  /** How wide the squares of the floor are. */
  get squares() {
    const { unit } = this.frame.header;
    return `□ ${short(stage.squareOf(this.box))}${unit && ` ${unit}`}`;
  }

  tell(event) {
    if (!this.picture || !this.place) return;
    const sharpness = this.canvas.width / this.canvas.clientWidth;
    const { left, top, scale } = this.place;
    const [column, row] = [(event.offsetX * sharpness - left) / scale, (event.offsetY * sharpness - top) / scale].map(Math.floor);
    const text = tellPixel(this.frame, column, row);
    this.hint.hidden = !text;
    this.hint.textContent = text;
  }

  // What is written ---------------------------------------------------------------------------------------------------------

  makeHead() {
    const pinned = this.spec.pin !== null;
    const isLog = state.rootOf(this.spec.root)?.kind === "log";
    refill(
      this.head,
      choice("what is shown", choicesFor(this.spec), addressOf(this.spec), (value) => state.changePane(this.number, specAt(value))),
      isLog ? this.makeIds() : null,
      this.modes.length ? this.makeModes() : null,
      this.makeMaterials(),
      this.spec.kind === "volume" ? this.makeAxis() : null,
      this.isFlat ? null : this.makeOver(),
      h("span.space"),
      isLog ? this.makeButton("pin", pinned ? "let it follow the timeline" : "let it stay at this iteration", pinned, () => this.pin()) : null,
      this.makeButton("⤢", model.whole ? "all panes" : "this pane alone", model.whole, () =>
        state.change({ whole: !model.whole, active: this.number }),
      ),
      this.makeButton("✕", "close this pane", false, () => state.removePane(this.number)),
    );
  }

  makeButton(text, title, isOn, onclick) {
    return h("button.small", { title, "aria-label": title, "aria-pressed": String(isOn), onclick }, text);
  }

  makeIds() {
    const own = state.itemOf(this.spec);
    const items = state.rootOf(this.spec.root).items.filter((item) => item.type === own?.type && item.category === own?.category);
    if (items.length < 2) return null;
    const options = items.map((item) => [item.item, `#${item.id}${item.error ? " (broken)" : ""}`]);
    return choice("sample", [{ group: "", options }], this.spec.item, (item) => state.changePane(this.number, { item }));
  }

  makeModes() {
    const options = this.modes.map((mode) => [mode, mode]);
    return choice("coloured by", [{ group: "", options }], this.mode, (mode) => state.changePane(this.number, { mode }));
  }

  makeMaterials() {
    const names = (this.frame?.header.parts ?? []).flatMap((part) => Object.keys(part.materials));
    if (this.mode !== "material" || names.length < 2) return null;
    const options = names.map((name) => [name, name]);
    return choice("material", [{ group: "", options }], this.spec.material || names[0], (material) =>
      state.changePane(this.number, { material }),
    );
  }

  makeAxis() {
    const names = { x: "side, across x", y: "top, across y", z: "front, across z" };
    return choice("cut", [{ group: "", options: Object.entries(names) }], this.spec.axis, (axis) => state.changePane(this.number, { axis }));
  }

  /** What to lay over it; seen in the active pane, and where something is. */
  makeOver() {
    const all = choicesOver(this.spec);
    if (all.length < 2) return null;
    const made = choice("laid over", all, this.spec.over, (over) => state.changePane(this.number, { over }));
    made.classList.toggle("unused", !this.spec.over);
    return made;
  }

  pin() {
    const times = state.timesOf(this.spec);
    state.changePane(this.number, { pin: this.spec.pin === null ? state.nearest(times, model.time) : null });
  }

  tellState() {
    const error = this.error ?? (this.isFlat || !this.frame ? null : this.whyUndrawn());
    this.note.hidden = !error;
    this.note.classList.toggle("over", Boolean(error && this.frame));
    if (error) fill(this.note, h("b", {}, error.kind ?? "Nothing to show"), h("p", {}, error.what), error.now ? h("p.faint", {}, error.now) : null);
    this.slider.hidden = this.frame?.header.axis ? this.spec.kind !== "volume" : true;
    Object.assign(this.slider, { max: this.planes - 1, value: this.index });
    fill(this.words, this.frame ? this.footWords() : "");
  }

  whyUndrawn() {
    if (stage.missing) return { kind: "No drawing in space", what: stage.missing };
    const { parts, bounds } = this.frame.header;
    if (!parts.length) return { what: "The file has nothing of this kind at this iteration." };
    return bounds ? null : { what: "It is empty at this iteration." };
  }

  footWords() {
    const { header } = this.frame;
    if (header.frame === "plane") return this.planeWords(header);
    const { triangles, points, voxels } = this.objects ?? {};
    const amounts = [voxels ? `${count(voxels)} voxels` : "", points ? `${count(points)} points` : "", triangles && !voxels ? `${count(triangles)} triangles` : ""];
    const size = this.box ? this.box.high.map((high, axis) => short(high - this.box.low[axis])).join(" × ") : "";
    const isLog = state.rootOf(this.spec.root)?.kind === "log";
    const words = [isLog ? this.timeWords(header) : "", ...amounts, size && `${size}${header.unit && ` ${header.unit}`}`];
    const isCut = header.parts.some((part) => part.shown < part.present);
    return [
      h("span", {}, words.filter(Boolean).join(" · ")),
      this.spec.over && !this.sources[1] ? h("span.warn", {}, "what is laid over is not there") : null,
      header.notes.map((note) => h("span.warn", { title: note }, note)),
      isCut && this.spec.detail !== "full" ? h("button.link", { onclick: () => state.changePane(this.number, { detail: "full" }) }, "show more") : null,
    ];
  }

  /** The iteration that is shown, and the one asked for where that is another. */
  timeWords({ time }) {
    const asked = this.spec.pin ?? model.time;
    return time === asked ? `iteration ${time}` : `iteration ${time}, nearest to ${asked}`;
  }

  planeWords({ title, scale, axis, index, size }) {
    return [
      h("span.clip", { title: axis ? `${title}, plane ${index} of ${size}` : title }, axis ? `${axis} ${index}` : title),
      scale ? scaleBar(scale) : null,
    ];
  }

  /** What it shows, in a line. */
  get title() {
    const { root, item, what } = this.spec;
    const { time } = this.frame?.header ?? {};
    if (!what) return `${root} · ${item} · iteration ${time ?? ""}`;
    return `${root} · ${model.sample?.key ?? ""} · ${what}${this.spec.kind === "volume" ? ` ${this.spec.axis} ${this.index}` : ""}`;
  }

  get stats() {
    const { triangles = 0, points = 0, voxels = 0 } = this.objects ?? {};
    const { time, bounds, frame } = this.frame?.header ?? {};
    return { triangles, points, voxels, time, bounds, frame, mode: this.mode, modes: this.modes, error: this.error?.what ?? null };
  }
}

/** Whether two requests are for one thing, at whatever iteration or plane. */
function isSameThing([, one], other) {
  return ["root", "item", "what"].every((name) => one[name] === other?.[1][name]);
}

/** Show in every pane that is seen, by the cameras that they share, all that is there. */
export function fitCameras(panes, force) {
  const shared = Map.groupBy(panes.filter((pane) => pane.isSeen && pane.box), (pane) => pane.camera);
  for (const [camera, those] of shared) {
    if (camera.touched && !force) continue;
    if (force) Object.assign(camera, camera.home, { touched: false });
    camera.fit(around(those.map((pane) => pane.box)), Math.min(...those.map((pane) => pane.aspect)));
  }
}
