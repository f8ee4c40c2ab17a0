// What is written on a view in space.

const AXES = [
  ["x", "#c8443c"],
  ["y", "#3c8f4a"],
  ["z", "#3566c0"],
];

/**
 * Where the axes point, small in a corner, and some words in another.
 * @param {HTMLCanvasElement} canvas
 * @param {import("./camera.js").Orbit} camera
 * @param {number} sharpness pixels of the canvas to one of the page
 * @param {string} words
 */
export function drawAxes(canvas, camera, sharpness, words) {
  const paint = canvas.getContext("2d");
  const { right, up } = camera.frame;
  const [x, y, reach] = [26 * sharpness, canvas.height - 26 * sharpness, 15 * sharpness];
  paint.lineWidth = 1.5 * sharpness;
  paint.font = `${10 * sharpness}px system-ui, sans-serif`;
  paint.textAlign = "center";
  paint.textBaseline = "middle";
  AXES.forEach(([name, color], axis) => {
    const [across, down] = [right[axis] * reach, -up[axis] * reach];
    paint.strokeStyle = paint.fillStyle = color;
    paint.beginPath();
    paint.moveTo(x, y);
    paint.lineTo(x + across, y + down);
    paint.stroke();
    paint.fillText(name, x + across * 1.45, y + down * 1.45);
  });
  paint.fillStyle = "#7c8896";
  paint.textAlign = "right";
  paint.fillText(words, canvas.width - 8 * sharpness, canvas.height - 11 * sharpness);
}
