// Asking the server: JSON, and frames whose arrays are kept by their keys.

const ARRAYS = { f32: Float32Array, u32: Uint32Array, i32: Int32Array, i16: Int16Array, u16: Uint16Array, u8: Uint8Array };
const HELD_BYTE = 384 * 2 ** 20;
const MOST_KEYS = 200; // named in a request; addresses are read up to 16 KiB

/** What the server said went wrong: kind, what, where, now. */
export class ViewError extends Error {
  constructor({ kind, what, where, now }) {
    super(what);
    Object.assign(this, { kind, what, where, now });
  }
}

const LOST = {
  kind: "Connection lost",
  what: "The viewer's server does not answer.",
  where: "",
  now: "It is asked again by itself; if it was stopped, start it again.",
};

async function ask(path, parameters = {}, headers = {}) {
  const given = Object.entries(parameters).filter(([, value]) => value !== "" && value !== undefined && value !== null);
  const query = new URLSearchParams(given).toString();
  let answer;
  try {
    answer = await fetch(query ? `${path}?${query}` : path, { headers, cache: "no-store" });
  } catch {
    throw new ViewError(LOST);
  }
  if (answer.ok || answer.status === 304) return answer;
  const told = await answer.json().catch(() => ({}));
  throw new ViewError(told.error ?? { ...LOST, kind: `Answer ${answer.status}`, what: "The server did not say why." });
}

/** @returns {Promise<any>} */
export const getJson = async (path, parameters) => (await ask(path, parameters)).json();

/** The index, or null where it is still that of a revision. */
export async function getIndex(revision) {
  const answer = await ask("/api/index", {}, revision ? { "If-None-Match": `"${revision}"` } : {});
  return answer.status === 304 ? null : answer.json();
}

/**
 * What is drawn in a pane: a header, and arrays by name.
 * @typedef {{header: Object, arrays: Object<string, {values: ArrayBufferView, shape: number[], key: string}>}} Frame
 */

/** Frames by address; those used least lately go when they take too much memory together. */
class Frames {
  #held = new Map();
  #bytes = 0;

  get(address) {
    const frame = this.#held.get(address);
    if (frame) {
      this.#held.delete(address);
      this.#held.set(address, frame);
    }
    return frame;
  }

  put(address, frame) {
    this.#held.set(address, frame);
    this.#bytes += sizeOf(frame);
    for (const [oldest, other] of this.#held) {
      if (this.#bytes <= HELD_BYTE || oldest === address) return;
      this.#held.delete(oldest);
      this.#bytes -= sizeOf(other);
    }
  }
}

const sizeOf = ({ header }) => Object.values(header.buffers).reduce((sum, entry) => sum + entry.size, 0);
const frames = new Frames();

/**
 * A frame, from memory where it was asked for before.
 * @param {string} path
 * @param {Object<string, any>} parameters
 * @param {string} stamp another one whenever the answer may be another
 * @param {?Frame} before what was got last of the same thing: arrays that are the same are not sent again
 * @returns {Promise<Frame>}
 */
export async function getFrame(path, parameters, stamp, before) {
  const address = JSON.stringify([path, parameters, stamp]);
  const known = frames.get(address);
  if (known) return known;
  const kept = new Map(Object.values(before?.arrays ?? {}).map((array) => [array.key, array.values]));
  const have = [...kept].sort(([, a], [, b]) => b.byteLength - a.byteLength).slice(0, MOST_KEYS);
  const answer = await ask(path, { ...parameters, have: have.map(([key]) => key).join(",") });
  const frame = decode(await answer.arrayBuffer(), kept);
  frames.put(address, frame);
  return frame;
}

function decode(body, kept) {
  const start = 8 + new DataView(body).getUint32(4, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(body, 8, start - 8)));
  const arrays = {};
  for (const [name, { key, dtype, shape, offset, size }] of Object.entries(header.buffers)) {
    const values = offset === null ? kept.get(key) : new ARRAYS[dtype](body.slice(start + offset, start + offset + size));
    arrays[name] = { values, shape, key };
  }
  return { header, arrays };
}
