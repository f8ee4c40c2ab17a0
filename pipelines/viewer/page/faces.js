// The outer faces of voxels: those between a voxel that is shown and a cell that is not.

const CELLS = 2 ** 26; // of the box around all voxels; beyond, all faces are drawn
const STEPS = [
  [1, 0, 0],
  [-1, 0, 0],
  [0, 1, 0],
  [0, -1, 0],
  [0, 0, 1],
  [0, 0, -1],
];
const TRIANGLES = [0, 1, 3, 0, 3, 2]; // of a square's corners

/**
 * @param {Int16Array} cells (N, 3), the voxels
 * @param {(voxel: number) => boolean} isShown
 * @returns {{voxels: Uint32Array, sides: Uint8Array}} of each face its voxel, and the direction in which it looks: +x -x +y -y +z -z
 */
export function outerFaces(cells, isShown) {
  const shown = [];
  for (let voxel = 0; voxel < cells.length / 3; voxel++) if (isShown(voxel)) shown.push(voxel);
  const isFilled = makeLookUp(cells, shown);
  const [voxels, sides] = [new Uint32Array(shown.length * 6), new Uint8Array(shown.length * 6)];
  let faces = 0;
  for (const voxel of shown) {
    const [x, y, z] = [cells[3 * voxel], cells[3 * voxel + 1], cells[3 * voxel + 2]];
    for (let side = 0; side < 6; side++) {
      const step = STEPS[side];
      if (isFilled(x + step[0], y + step[1], z + step[2])) continue;
      voxels[faces] = voxel;
      sides[faces++] = side;
    }
  }
  return { voxels: voxels.slice(0, faces), sides: sides.slice(0, faces) };
}

function makeLookUp(cells, shown) {
  const low = [Infinity, Infinity, Infinity];
  const high = [-Infinity, -Infinity, -Infinity];
  for (const voxel of shown) {
    for (let axis = 0; axis < 3; axis++) {
      const place = cells[3 * voxel + axis];
      if (place < low[axis]) low[axis] = place;
      if (place > high[axis]) high[axis] = place;
    }
  }
  const [width, height, depth] = high.map((end, axis) => end - low[axis] + 1);
  if (!shown.length || width * height * depth > CELLS) return () => false;
  const filled = new Uint8Array(width * height * depth);
  const index = (x, y, z) => ((x - low[0]) * height + (y - low[1])) * depth + (z - low[2]);
  for (const voxel of shown) filled[index(cells[3 * voxel], cells[3 * voxel + 1], cells[3 * voxel + 2])] = 1;
  const isOutside = (x, y, z) => x < low[0] || y < low[1] || z < low[2] || x > high[0] || y > high[1] || z > high[2];
  return (x, y, z) => !isOutside(x, y, z) && filled[index(x, y, z)] === 1;
}

/**
 * The squares of faces: four corners each, their places, where in the square they are, and two triangles.
 * @param {Int16Array} cells (N, 3), the voxels
 * @param {Uint32Array} voxels @param {Uint8Array} sides of each face, as outerFaces says them
 * @returns {{places: Float32Array, across: Uint8Array, corners: Uint32Array}}
 */
export function makeSquares(cells, voxels, sides) {
  const faces = voxels.length;
  const [places, across, corners] = [new Float32Array(12 * faces), new Uint8Array(8 * faces), new Uint32Array(6 * faces)];
  for (let face = 0; face < faces; face++) {
    const axis = sides[face] >> 1;
    const [one, other] = [(axis + 1) % 3, (axis + 2) % 3];
    for (let corner = 0; corner < 4; corner++) {
      const [right, up] = [corner & 1, corner >> 1];
      const at = 4 * face + corner;
      const cell = 3 * voxels[face];
      places[3 * at + axis] = cells[cell + axis] + (sides[face] & 1 ? -0.5 : 0.5);
      places[3 * at + one] = cells[cell + one] + right - 0.5;
      places[3 * at + other] = cells[cell + other] + up - 0.5;
      across[2 * at] = right;
      across[2 * at + 1] = up;
    }
    for (let corner = 0; corner < 6; corner++) corners[6 * face + corner] = 4 * face + TRIANGLES[corner];
  }
  return { places, across, corners };
}
