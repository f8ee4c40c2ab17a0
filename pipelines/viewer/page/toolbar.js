// What is above the panes: layouts, cameras, looks, and saving a picture.

import { fill, h } from "./dom.js";
import { layouts } from "./layouts.js";
import * as state from "./model.js";

const { model } = state;
const HELP = [
  ["drag", "turn; with shift or the right button move; wheel or pinch zoom"],
  ["double click, m", "this pane alone, or all"],
  ["1 to 9", "make a pane the active one"],
  ["← →, Home, End", "step through iterations"],
  ["space", "play or stop"],
  ["↑ ↓", "the sample before or after"],
  ["[ ]", "the item before or after, in all panes of a log"],
  ["PageUp, PageDown, wheel", "step through the planes of a volume"],
  ["f", "show all that is there"],
  ["c", "colour the active pane another way"],
  ["l o w b s g d", "linked cameras, orthographic, wireframe, back faces, smooth, grid, dark"],
  ["p", "save a picture"],
];
const FLAGS = [
  ["link", "link", "let panes of the same place share a camera (l)"],
  ["ortho", "ortho", "orthographic instead of perspective (o)"],
  ["wire", "wire", "edges alone (w)"],
  ["backs", "backs", "draw faces also from behind (b)"],
  ["smooth", "smooth", "smooth shading where a mesh has no normals (s)"],
  ["grid", "grid", "squares on the floor (g)"],
  ["dark", "dark", "dark background (d)"],
];

export class Toolbar {
  /** @param {{fit: () => void, save: () => void, layOut: (name: string) => void}} deeds */
  constructor(deeds) {
    this.deeds = deeds;
    this.layouts = h("span.group");
    this.flags = h("span.group");
    this.item = h("span.group");
    this.size = h("input", { type: "range", min: -2, max: 3, step: 0.25, "aria-label": "size of points", title: "size of points", oninput: () => state.change({ pointSize: 2 ** Number(this.size.value) }) });
    this.dialog = h("dialog", {}, this.makeHelp());
    const button = (text, title, onclick) => h("button", { title, onclick }, text);
    this.element = h(
      "header.toolbar",
      {},
      h("b.name", {}, "scenemill"),
      this.layouts,
      button("+ pane", "another pane", () => this.add()),
      this.item,
      h("span.space"),
      button("fit", "show all that is there (f)", deeds.fit),
      this.flags,
      h("label.group.faint", {}, "points", this.size),
      button("picture", "save what is shown as a picture (p)", deeds.save),
      button("link to this", "copy the address of what is shown", () => this.copy()),
      button("?", "keys", () => this.help()),
      this.dialog,
    );
  }

  update() {
    const open = (name) => h("button", { title: `open the panes: ${name}`, onclick: () => this.deeds.layOut(name) }, name);
    const flag = ([name, text, title]) => h("button.flag", { title, "aria-pressed": String(model[name]), onclick: () => state.change({ [name]: !model[name] }) }, text);
    const key = JSON.stringify([Object.keys(layouts()), FLAGS.map(([name]) => model[name]), this.ids(), this.id]);
    if (key === this.made) return;
    this.made = key;
    fill(this.layouts, Object.keys(layouts()).map(open));
    fill(this.flags, FLAGS.map(flag));
    this.size.value = Math.log2(model.pointSize);
    this.makeItem();
  }

  add() {
    const like = model.panes[model.active];
    const item = state.logRoots().find((root) => root.items.length);
    const first = layouts()["in space"]?.[0] ?? (item ? { root: item.name, kind: "scene", item: item.items[0].item } : null);
    if (like || first) state.addPane({ ...first, ...like });
  }

  // The number of the item that all panes of logs show ---------------------------------------------------------------------

  ids() {
    const items = model.panes.map(state.itemOf).filter(Boolean);
    const all = state.logRoots().flatMap((root) => root.items).filter((one) => items.some((item) => item.type === one.type && item.category === one.category));
    return [...new Set(all.map((item) => item.id))].sort((a, b) => a - b);
  }

  get id() {
    return model.panes.map(state.itemOf).find(Boolean)?.id;
  }

  makeItem() {
    const isOne = this.ids().length < 2;
    const step = (text, title, steps) => h("button.small", { title, "aria-label": title, onclick: () => this.stepItem(steps) }, text);
    fill(this.item, isOne ? [] : [step("‹", "item before ([)", -1), h("span.faint", {}, `item ${this.id}`), step("›", "item after (])", 1)]);
  }

  /** Show another item of a batch in all panes that have it. */
  stepItem(steps) {
    const ids = this.ids();
    const id = ids[Math.min(Math.max(ids.indexOf(this.id) + steps, 0), ids.length - 1)];
    const panes = model.panes.map((spec) => {
      const item = state.itemOf(spec);
      const other = item && `${item.type}/${item.category}/${id}`;
      return other && state.rootOf(spec.root).items.some((one) => one.item === other) ? { ...spec, item: other } : spec;
    });
    state.change({ panes });
  }

  // Help, and the address ---------------------------------------------------------------------------------------------------

  makeHelp() {
    const rows = HELP.map(([keys, what]) => [h("dt", {}, keys), h("dd", {}, what)]);
    const close = h("button", { onclick: () => this.dialog.close() }, "close");
    return h("div.help", {}, h("h1", {}, "Keys and mouse"), h("dl", {}, rows), close);
  }

  help() {
    if (this.dialog.open) this.dialog.close();
    else this.dialog.showModal();
  }

  async copy() {
    history.replaceState(null, "", `#${state.writeAddress()}`);
    await navigator.clipboard?.writeText(location.href).catch(() => null); // else it stands in the address bar
  }
}
