// Cameras that turn around a point, and how mouse, touch and keys move them.

const DEGREE = Math.PI / 180;
const STEEPEST = 89.5 * DEGREE;
const MARGIN = 1.06;

/** @typedef {{low: number[], high: number[]}} Box */

/** A camera that looks at a target; several panes may share one. */
export class Orbit {
  /** @param {string} up "Y" or "Z" */
  constructor(up = "Y", azimuth = 30, elevation = 20) {
    this.home = { azimuth: azimuth * DEGREE, elevation: elevation * DEGREE };
    this.up = up;
    this.fov = 35 * DEGREE;
    this.touched = false;
    this.reset();
  }

  reset() {
    Object.assign(this, this.home, { target: [0, 0, 0], distance: 3, radius: 1 });
  }

  /** Another one that looks the same way. */
  copy() {
    return Object.assign(new Orbit(this.up), this);
  }

  /** The direction from the target to the eye. */
  get direction() {
    const [flat, high] = [Math.cos(this.elevation), Math.sin(this.elevation)];
    const [east, north] = [flat * Math.sin(this.azimuth), flat * Math.cos(this.azimuth)];
    return this.up === "Z" ? [east, -north, high] : [east, high, north];
  }

  get eye() {
    return this.direction.map((part, axis) => this.target[axis] + this.distance * part);
  }

  get upward() {
    return this.up === "Z" ? [0, 0, 1] : [0, 1, 0];
  }

  /** The directions to the right and up on the screen. */
  get frame() {
    const back = this.direction;
    const right = normalise(cross(this.upward, back));
    return { right, up: cross(back, right) };
  }

  /**
   * Show a box as large as it fits; the direction stays.
   * @param {Box} box
   * @param {number} aspect width over height of the narrowest pane
   */
  fit(box, aspect) {
    const size = box.high.map((high, axis) => high - box.low[axis]);
    this.radius = Math.max(Math.hypot(...size) / 2, 1e-6);
    this.target = box.low.map((low, axis) => low + size[axis] / 2);
    const { right, up } = this.frame;
    const [wide, high] = [Math.tan(this.fov / 2) * aspect, Math.tan(this.fov / 2)];
    const distances = cornersOf(size).map((corner) => {
      const [x, y, near] = [right, up, this.direction].map((axis) => dot(corner, axis));
      return near + Math.max(Math.abs(x) / wide, Math.abs(y) / high);
    });
    this.distance = Math.max(MARGIN * Math.max(...distances), 1e-6);
  }

  turn(right, down) {
    this.azimuth -= right;
    this.elevation = Math.min(STEEPEST, Math.max(-STEEPEST, this.elevation + down));
  }

  /** Move in the plane of the screen, by parts of its height. */
  pan(right, down) {
    const { right: east, up } = this.frame;
    const height = 2 * this.distance * Math.tan(this.fov / 2);
    this.target = this.target.map((place, axis) => place - height * (right * east[axis] - down * up[axis]));
  }

  zoom(factor) {
    this.distance = Math.min(Math.max(this.distance * factor, this.radius * 1e-3), this.radius * 1e3);
  }

  /** As numbers for an address, and back. */
  write() {
    const numbers = [this.azimuth / DEGREE, this.elevation / DEGREE, this.distance, ...this.target, this.radius];
    return numbers.map((number) => Number(number.toPrecision(5))).join(",");
  }

  read(text) {
    const numbers = text.split(",").map(Number);
    if (numbers.length !== 7 || !numbers.every(Number.isFinite) || numbers[2] <= 0 || numbers[6] <= 0) return;
    const [azimuth, elevation, distance, x, y, z, radius] = numbers;
    Object.assign(this, { distance, target: [x, y, z], radius, touched: true, azimuth: azimuth * DEGREE });
    this.elevation = Math.min(STEEPEST, Math.max(-STEEPEST, elevation * DEGREE));
  }
}

/** The corners of a box around the origin. */
const cornersOf = (size) => [...Array(8).keys()].map((corner) => size.map((side, axis) => (corner & (1 << axis) ? side : -side) / 2));
const dot = (a, b) => a.reduce((sum, part, axis) => sum + part * b[axis], 0);
const cross = (a, b) => [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];
const normalise = (a) => a.map((part) => part / (Math.hypot(...a) || 1));

/** The box around boxes; null around none. */
export function around(boxes) {
  if (!boxes.length) return null;
  const pick = (choose, end) => [0, 1, 2].map((axis) => choose(...boxes.map((box) => box[end][axis])));
  return { low: pick(Math.min, "low"), high: pick(Math.max, "high") };
}

/**
 * Let a canvas move a camera: drag turns; drag with the right or middle button, with shift or two fingers moves; wheel and pinch zoom.
 * @param {HTMLElement} canvas
 * @param {() => ?Orbit} cameraOf null where there is none to move
 * @param {(done: boolean) => void} onMove
 */
export function steer(canvas, cameraOf, onMove) {
  const fingers = new Map();
  const spread = () => {
    const [a, b] = [...fingers.values()];
    return b ? Math.hypot(a.x - b.x, a.y - b.y) : 0;
  };

  canvas.addEventListener("pointerdown", (event) => {
    if (!cameraOf()) return;
    canvas.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, { x: event.clientX, y: event.clientY });
  });
  canvas.addEventListener("pointermove", (event) => {
    const finger = fingers.get(event.pointerId);
    if (!finger) return;
    const before = spread();
    const [right, down] = [event.clientX - finger.x, event.clientY - finger.y].map((pixels) => pixels / canvas.clientHeight);
    Object.assign(finger, { x: event.clientX, y: event.clientY });
    const camera = cameraOf();
    camera.touched = true;
    if (fingers.size > 1) {
      camera.pan(right / 2, down / 2);
      if (before) camera.zoom(before / (spread() || before));
    } else if (event.shiftKey || event.buttons & 6) camera.pan(right, down);
    else camera.turn(right * Math.PI, down * Math.PI);
    onMove(false);
  });
  const release = (event) => {
    if (fingers.delete(event.pointerId)) onMove(true);
  };
  canvas.addEventListener("pointerup", release);
  canvas.addEventListener("pointercancel", release);
  canvas.addEventListener("contextmenu", (event) => event.preventDefault());
  canvas.addEventListener(
    "wheel",
    (event) => {
      const camera = cameraOf();
      if (!camera) return;
      event.preventDefault();
      camera.zoom(Math.exp(Math.sign(event.deltaY) * Math.min(Math.abs(event.deltaY), 100) * 0.0015));
      camera.touched = true;
      onMove(true);
    },
    { passive: false },
  );
}
