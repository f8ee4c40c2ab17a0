// Two scenes in one space.

import { around } from "./camera.js";

/**
 * Two frames as one: the parts of the second come after those of the first, and are marked.
 * @param {import("./api.js").Frame} first
 * @param {import("./api.js").Frame} second
 * @returns {import("./api.js").Frame}
 */
export function together(first, second) {
  const [one, other] = [first.header, second.header];
  const header = {
    ...one,
    parts: [...one.parts, ...other.parts.map((part) => ({ ...part, isOver: true }))],
    legends: Object.fromEntries([...new Set([...Object.keys(one.legends), ...Object.keys(other.legends)])].map((name) => [name, joined(one.legends[name], other.legends[name])])),
    bounds: boundsOf([one.bounds, other.bounds].filter(Boolean)),
    notes: [...one.notes, ...other.notes],
    buffers: { ...one.buffers, ...renumbered(other.buffers, one.parts.length) },
  };
  return { header, arrays: { ...first.arrays, ...renumbered(second.arrays, one.parts.length) } };
}

/** Things by "PART/NAME", with parts that are counted from another number. */
function renumbered(things, from) {
  const entries = Object.entries(things).map(([name, thing]) => {
    const slash = name.indexOf("/");
    return [`${Number(name.slice(0, slash)) + from}${name.slice(slash)}`, thing];
  });
  return Object.fromEntries(entries);
}

/** Legend entries of two scenes, with the counts of both. */
function joined(entries = [], others = []) {
  const found = new Map(entries.map((entry) => [entry.id, entry]));
  for (const entry of others) found.set(entry.id, { ...entry, count: entry.count + (found.get(entry.id)?.count ?? 0) });
  return [...found.values()];
}

function boundsOf(bounds) {
  const box = around(bounds.map(([low, high]) => ({ low, high })));
  return box && [box.low, box.high];
}
