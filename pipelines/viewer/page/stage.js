// One graphics context for all panes: each is drawn into it when something in it has changed, and copied to its own canvas.

import * as THREE from "./vendor/three/three.module.js";

const SMALL_MS = 24;
const LARGE_MS = 60;
const FEWEST = 0.03;

/** Why there is nothing to draw in; "" where there is. */
export let missing = "";

const renderer = makeRenderer();
const scene = new THREE.Scene();
const light = new THREE.DirectionalLight(0xffffff, 2.2);
const sky = new THREE.HemisphereLight(0xffffff, 0xb9bec6, 1.7);
scene.add(light, light.target, sky);
let environment = null;

function makeRenderer() {
  try {
    const made = new THREE.WebGLRenderer({ antialias: true, alpha: true, powerPreference: "high-performance" });
    made.autoClear = true;
    made.domElement.addEventListener("webglcontextlost", (event) => event.preventDefault());
    made.domElement.addEventListener("webglcontextrestored", () => (environment = scene.environment = null));
    return made;
  } catch {
    missing = "This browser gives no WebGL 2, so nothing can be drawn in space. Pictures and slices are shown.";
    return null;
  }
}

/** Whether the graphics card has forgotten everything, and takes nothing yet. */
export function isLost() {
  return Boolean(renderer?.getContext().isContextLost());
}

/** Call back when the graphics card has forgotten everything and takes it anew. */
export function onRestored(listener) {
  renderer?.domElement.addEventListener("webglcontextrestored", listener);
}

/** What share of points is drawn while a camera moves, so that it moves smoothly here. */
export const pace = {
  share: 1,
  /** @param {number} taken milliseconds from one frame to the next while a camera moves */
  note(taken) {
    if (taken > LARGE_MS) this.share = Math.max(FEWEST, this.share * Math.max(LARGE_MS / taken, 0.1));
    else if (taken < SMALL_MS) this.share = Math.min(1, this.share * 1.15);
  },
};

/**
 * Draw a group as a camera sees it.
 * @param {HTMLCanvasElement} canvas where to
 * @param {?THREE.Group} group
 * @param {import("./camera.js").Orbit} camera
 * @param {{ortho: boolean, background: string, share: number, box: ?import("./camera.js").Box, grid: boolean}} options
 */
export function draw(canvas, group, camera, options) {
  const paint = canvas.getContext("2d", { willReadFrequently: false });
  const { width, height } = canvas;
  paint.fillStyle = options.background;
  paint.fillRect(0, 0, width, height);
  if (!renderer || !group || !width || !height) return;
  const lens = lensOf(camera, width / height, options.ortho);
  light.position.set(...camera.eye);
  light.target.position.set(...camera.target);
  prepare(group, height, options.share);
  const floor = options.grid ? makeFloor(options.box, camera.up, options.background) : null;
  scene.add(group, light.target);
  if (floor) scene.add(floor);
  enlarge(width, height);
  renderer.setViewport(0, 0, width, height);
  renderer.setClearColor(0x000000, 0);
  renderer.render(scene, lens);
  scene.remove(group);
  if (floor) {
    scene.remove(floor);
    floor.geometry.dispose();
    floor.material.dispose();
  }
  const whole = renderer.domElement;
  paint.drawImage(whole, 0, whole.height - height, width, height, 0, 0, width, height);
}

function enlarge(width, height) {
  const { width: wide, height: high } = renderer.domElement;
  if (width > wide || height > high) renderer.setSize(Math.max(width, wide), Math.max(height, high), false);
}

function lensOf(camera, aspect, ortho) {
  const [near, far] = [Math.max(camera.distance - 4 * camera.radius, camera.distance / 500), camera.distance + 6 * camera.radius];
  const high = camera.distance * Math.tan(camera.fov / 2);
  const lens = ortho
    ? new THREE.OrthographicCamera(-high * aspect, high * aspect, high, -high, -far, far)
    : new THREE.PerspectiveCamera((camera.fov * 180) / Math.PI, aspect, near, far);
  lens.position.set(...camera.eye);
  lens.up.set(...camera.upward);
  lens.lookAt(...camera.target);
  lens.updateMatrixWorld();
  return lens;
}

/** What depends on the pane: how large points are in pixels, how many are drawn; and surroundings for what mirrors them. */
function prepare(group, height, share) {
  group.traverse((object) => {
    if (object.isPoints) {
      object.material.uniforms.uPixels.value = height / 2;
      const whole = object.geometry.index?.count ?? object.geometry.attributes.position.count;
      object.geometry.setDrawRange(0, Math.ceil(whole * share));
    }
    if (object.material?.metalness > 0 || object.material?.clearcoat > 0) scene.environment = environment ??= makeSurroundings();
  });
}

/** A bright room for metals to mirror: without it they would be black. */
function makeSurroundings() {
  const room = new THREE.Scene();
  room.background = new THREE.Color(0.55, 0.57, 0.6);
  const lamp = (x, y, z) => {
    const panel = new THREE.Mesh(new THREE.BoxGeometry(4, 4, 4), new THREE.MeshBasicMaterial({ color: new THREE.Color(3, 3, 3) }));
    panel.position.set(x, y, z);
    room.add(panel);
  };
  lamp(0, 9, 0);
  lamp(8, 3, 5);
  lamp(-8, 1, -5);
  const generator = new THREE.PMREMGenerator(renderer);
  const made = generator.fromScene(room, 0.04).texture;
  generator.dispose();
  return made;
}

/** Width of the squares of the floor: a tenth of the box or so, 1, 2 or 5 of some power of ten. */
export function squareOf(box) {
  const size = Math.max(...box.high.map((high, axis) => high - box.low[axis]), 1e-9);
  const power = 10 ** Math.floor(Math.log10(size / 8));
  return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= size / 12);
}

function makeFloor(box, up, background) {
  if (!box) return null;
  const square = squareOf(box);
  const [across, deep, height] = up === "Z" ? [0, 1, 2] : [0, 2, 1];
  const ends = [across, deep].map((axis) => [Math.floor(box.low[axis] / square) - 1, Math.ceil(box.high[axis] / square) + 1]);
  const places = [];
  const put = (a, b) => {
    const place = [0, 0, 0];
    [place[across], place[deep], place[height]] = [a * square, b * square, box.low[height]];
    places.push(...place);
  };
  for (let line = ends[0][0]; line <= ends[0][1]; line++) ends[1].forEach((end) => put(line, end));
  for (let line = ends[1][0]; line <= ends[1][1]; line++) ends[0].forEach((end) => put(end, line));
  const geometry = new THREE.BufferGeometry();
  geometry.setAttribute("position", new THREE.Float32BufferAttribute(places, 3));
  const isDark = new THREE.Color(background).getHSL({}).l < 0.5;
  const lines = new THREE.LineBasicMaterial({ color: isDark ? 0x3a4453 : 0xd3dae2 });
  const floor = new THREE.LineSegments(geometry, lines);
  floor.frustumCulled = false;
  return floor;
}
