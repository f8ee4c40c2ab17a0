// What a pane can show, as options of a select, and the words by which options are known.

import * as state from "./model.js";

const { model } = state;

/** Options of what a pane shows; and of what it should, where that is not there. */
export function choicesFor(spec) {
  const [groups, own] = [showable(), addressOf(spec)];
  if (groups.some(({ options }) => options.some(([value]) => value === own))) return groups;
  return [{ group: "", options: [[own, `${spec.root} · ${spec.what || spec.item}`]] }, ...groups];
}

/** Options of what can be laid over it: anything else in space, or nothing. */
export function choicesOver(spec) {
  const own = addressOf(spec);
  const others = (options) => options.filter(([value]) => isInSpace(value) && value !== own).map(([value, text]) => [value, `+ ${text}`]);
  const groups = showable().map(({ group, options }) => ({ group, options: others(options) }));
  return [{ group: "", options: [["", "+"]] }, ...groups.filter(({ options }) => options.length)];
}

/** All that a pane can show, in groups. */
function showable() {
  const logs = state.logRoots().map((root) => ({ group: root.name, options: optionsOfLog(root) }));
  const samples = Object.entries(model.sample?.roots ?? {}).flatMap(([name, held]) =>
    [["scene", "in space"], ["picture", "pictures"], ["volume", "slices"]].map(([kind, title]) => ({
      group: `${name}: ${title}`,
      options: held.shows.filter((one) => one.kind === kind).map((one) => [`sample ${name} ${kind} ${one.what}`, `${name} · ${one.what}`]),
    })),
  );
  return [...samples, ...logs].filter(({ options }) => options.length);
}

function optionsOfLog(root) {
  const kinds = new Map(root.items.map((item) => [`log ${root.name} ${item.type}/${item.category}`, `${item.category || "(log)"} · ${item.type}`]));
  return [...kinds];
}

/** What a pane shows as one word for a select; the number of an item is left out. */
export function addressOf(spec) {
  if (state.rootOf(spec.root)?.kind !== "log") return `sample ${spec.root} ${spec.kind} ${spec.what}`;
  return `log ${spec.root} ${spec.item.slice(0, spec.item.lastIndexOf("/"))}`;
}

/** What such a word says of a pane; of a log the item of a number ("/3") where it has that, else the first. */
export function specAt(text, number = "") {
  const roots = model.index.roots.map((root) => root.name).sort((a, b) => b.length - a.length);
  const [kind, rest] = [text.slice(0, text.indexOf(" ")), text.slice(text.indexOf(" ") + 1)];
  const root = roots.find((name) => rest.startsWith(`${name} `)) ?? "";
  const place = rest.slice(root.length + 1);
  if (kind === "log") {
    const items = (state.rootOf(root)?.items ?? []).map(({ item }) => item).filter((item) => item.slice(0, item.lastIndexOf("/")) === place);
    return { root, item: items.find((item) => item === place + number) ?? items[0] ?? "", what: "", kind: "scene", pin: null, detail: "usual" };
  }
  const [shown, what] = place.split(" ");
  return { root, item: "", what, kind: shown, pin: null, detail: "usual", index: -1 };
}

/** Whether a word is of something in space. */
const isInSpace = (address) => address.startsWith("log ") || address.includes(" scene ");
