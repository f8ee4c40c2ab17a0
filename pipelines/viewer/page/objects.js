// Frames as objects of three.js. Colours are drawn as they are given, darker where a surface turns away from the eye.

import * as THREE from "./vendor/three/three.module.js";
import { colorsOf, shownOf } from "./colors.js";
import { makeSquares, outerFaces } from "./faces.js";
import { pbrMaterial } from "./materials.js";

const SHADE = /* glsl */ `
  vec3 shade(vec3 color, vec3 normal, vec3 place) {
    float facing = abs(dot(normalize(normal), normalize(-place)));
    return color * (0.42 + 0.58 * facing);
  }`;

const MESH_VERTEX = /* glsl */ `
  attribute vec4 tint;
  varying vec3 vPlace;
  varying vec3 vNormal;
  varying vec4 vTint;
  void main() {
    vec4 place = modelViewMatrix * vec4(position, 1.0);
    vPlace = place.xyz;
    vNormal = normalMatrix * normal;
    vTint = tint;
    gl_Position = projectionMatrix * place;
  }`;

const MESH_FRAGMENT = /* glsl */ `
  uniform bool uSmooth;
  uniform bool uNormals;
  varying vec3 vPlace;
  varying vec3 vNormal;
  varying vec4 vTint;
  ${SHADE}
  void main() {
    vec3 flat_ = normalize(cross(dFdx(vPlace), dFdy(vPlace)));
    vec3 normal = uSmooth ? normalize(vNormal) : flat_;
    if (dot(normal, vPlace) > 0.0) normal = -normal;
    gl_FragColor = vec4(uNormals ? normal * 0.5 + 0.5 : shade(vTint.rgb, normal, vPlace), vTint.a);
  }`;

const POINT_VERTEX = /* glsl */ `
  attribute vec4 tint;
  uniform float uSize;
  uniform float uPixels;
  varying vec4 vTint;
  void main() {
    vec4 place = modelViewMatrix * vec4(position, 1.0);
    vTint = tint;
    gl_Position = projectionMatrix * place;
    gl_PointSize = clamp(uSize * uPixels * projectionMatrix[1][1] / gl_Position.w, 1.5, 64.0);
  }`;

const POINT_FRAGMENT = /* glsl */ `
  varying vec4 vTint;
  void main() {
    vec2 off = gl_PointCoord * 2.0 - 1.0;
    float reach = dot(off, off);
    if (reach > 1.0) discard;
    gl_FragColor = vec4(vTint.rgb * (1.0 - 0.35 * reach), vTint.a);
  }`;

const VOXEL_VERTEX = /* glsl */ `
  attribute vec4 tint;
  attribute vec2 across;
  varying vec4 vTint;
  varying vec2 vAcross;
  varying vec3 vPlace;
  void main() {
    vec4 place = modelViewMatrix * vec4(position, 1.0);
    vTint = tint;
    vAcross = across;
    vPlace = place.xyz;
    gl_Position = projectionMatrix * place;
  }`;

const VOXEL_FRAGMENT = /* glsl */ `
  varying vec4 vTint;
  varying vec2 vAcross;
  varying vec3 vPlace;
  void main() {
    vec3 normal = normalize(cross(dFdx(vPlace), dFdy(vPlace)));
    float light = 0.5 + 0.5 * abs(dot(normal, normalize(vPlace)));
    vec2 change = max(fwidth(vAcross), 1e-5);
    vec2 near = min(vAcross, 1.0 - vAcross) / change;
    float size = 1.0 / max(change.x, change.y);
    float edge = (1.0 - smoothstep(0.4, 1.4, min(near.x, near.y))) * smoothstep(6.0, 16.0, size);
    gl_FragColor = vec4(vTint.rgb * light * (1.0 - 0.22 * edge), vTint.a);
  }`;

/**
 * How a scene is drawn.
 * @typedef {{mode: string, hidden: Object<string, Set<number>>, smooth: boolean, wire: boolean, backs: boolean, pointSize: number, material: string}} Look
 */

/**
 * The objects of a frame, and how much they are.
 * @param {import("./api.js").Frame} frame
 * @param {Look} look
 * @returns {{group: THREE.Group, triangles: number, points: number, voxels: number}}
 */
export function makeObjects(frame, look) {
  const group = new THREE.Group();
  const drawn = { triangles: 0, points: 0, voxels: 0 };
  frame.header.parts.forEach((part, number) => {
    const make = { mesh: makeMesh, points: makePoints, voxels: makeVoxels }[part.kind];
    const object = make(frame, number, look, drawn);
    object.matrixAutoUpdate = false;
    object.matrix.set(...part.matrix.flat());
    object.frustumCulled = false;
    group.add(object);
  });
  return { group, ...drawn };
}

/** Give back what the graphics card holds for objects. */
export function dispose(group) {
  group.traverse((object) => {
    object.geometry?.dispose();
    for (const value of Object.values(object.material ?? {})) if (value?.isTexture) value.dispose();
    object.material?.dispose();
  });
}

function makeMesh(frame, number, look, drawn) {
  const part = frame.header.parts[number];
  const get = (name) => frame.arrays[`${number}/${name}`];
  const usesMaterial = look.mode === "material" && Object.keys(part.materials).length > 0;
  const tint = colorsOf(frame, number, look.mode);
  const indices = visibleTriangles(get("indices").values, shownOf(frame, number, look.hidden));
  const normals = get("normals");
  const sources = [
    { name: "position", values: get("positions").values, width: 3, place: "vertex" },
    usesMaterial ? null : { name: "tint", values: tint.values, width: 4, place: tint.place },
    normals ? { name: "normal", values: normals.values, width: 3, place: part.places.normals } : null,
    usesMaterial && get("uvs") ? { name: "uv", values: get("uvs").values, width: 2, place: part.places.uvs } : null,
  ].filter(Boolean);
  const geometry = meshGeometry(sources, indices);
  const smooth = Boolean(normals) || look.smooth;
  if (smooth && !normals) geometry.computeVertexNormals();
  drawn.triangles += indices.vertices.length / 3;
  const material = usesMaterial ? pbrMaterial(frame, number, look.material, smooth, look.wire) : tintMaterial(look, smooth);
  material.wireframe = look.wire;
  material.side = look.backs ? THREE.DoubleSide : THREE.FrontSide;
  return new THREE.Mesh(geometry, material);
}

function tintMaterial(look, smooth) {
  return new THREE.ShaderMaterial({
    vertexShader: MESH_VERTEX,
    fragmentShader: MESH_FRAGMENT,
    uniforms: { uSmooth: { value: smooth }, uNormals: { value: look.mode === "normal" } },
  });
}

/** The triangles to draw: their vertices, and the numbers of the triangles; those of hidden elements are left out. */
function visibleTriangles(vertices, shown) {
  const numbers = (length) => Uint32Array.from({ length }, (_, at) => at);
  if (!shown) return { vertices, triangles: null };
  const isShown = {
    vertex: (at) => shown.isShown(vertices[3 * at]) && shown.isShown(vertices[3 * at + 1]) && shown.isShown(vertices[3 * at + 2]),
    face: shown.isShown,
    corner: (at) => shown.isShown(3 * at),
  }[shown.place];
  const triangles = numbers(vertices.length / 3).filter(isShown);
  const kept = new Uint32Array(3 * triangles.length);
  triangles.forEach((triangle, at) => kept.set(vertices.subarray(3 * triangle, 3 * triangle + 3), 3 * at));
  return { vertices: kept, triangles };
}

/** Indexed where every attribute is one of vertices; else each corner on its own. */
function meshGeometry(sources, { vertices, triangles }) {
  const geometry = new THREE.BufferGeometry();
  const isIndexed = sources.every(({ place }) => place === "vertex" || place === "all");
  if (isIndexed) geometry.setIndex(new THREE.BufferAttribute(vertices, 1));
  for (const { name, values, width, place } of sources) {
    const size = isIndexed ? sources[0].values.length / 3 : vertices.length;
    const chosen = isIndexed && place === "vertex" ? values : spread(values, width, size, rowOf(place, vertices, triangles));
    geometry.setAttribute(name, new THREE.BufferAttribute(chosen, width, name === "tint"));
  }
  return geometry;
}

/** Which row of an attribute a corner that is drawn has. */
function rowOf(place, vertices, triangles) {
  const triangleOf = (corner) => (triangles ? triangles[Math.floor(corner / 3)] : Math.floor(corner / 3));
  return {
    all: () => 0,
    vertex: (corner) => vertices[corner],
    face: triangleOf,
    corner: (corner) => 3 * triangleOf(corner) + (corner % 3),
  }[place];
}

function spread(values, width, size, row) {
  const wide = new values.constructor(size * width);
  for (let at = 0; at < size; at++) {
    const from = row(at) * width;
    for (let part = 0; part < width; part++) wide[at * width + part] = values[from + part];
  }
  return wide;
}

function makePoints(frame, number, look, drawn) {
  const positions = frame.arrays[`${number}/positions`];
  const tint = colorsOf(frame, number, look.mode);
  const shown = shownOf(frame, number, look.hidden);
  const geometry = new THREE.BufferGeometry();
  geometry.setAttribute("position", new THREE.BufferAttribute(positions.values, 3));
  const colors = tint.place === "all" ? spread(tint.values, 4, positions.shape[0], () => 0) : tint.values;
  geometry.setAttribute("tint", new THREE.BufferAttribute(colors, 4, true));
  const count = positions.shape[0];
  if (shown) {
    const kept = Uint32Array.from({ length: count }, (_, at) => at).filter(shown.isShown);
    geometry.setIndex(new THREE.BufferAttribute(kept, 1));
  }
  drawn.points += shown ? geometry.index.count : count;
  const material = new THREE.ShaderMaterial({
    vertexShader: POINT_VERTEX,
    fragmentShader: POINT_FRAGMENT,
    uniforms: { uSize: { value: pointWidth(frame, number) * look.pointSize }, uPixels: { value: 1 } },
  });
  return new THREE.Points(geometry, material);
}

/** How wide points are in the world: as the file says, else about their distance from each other. */
function pointWidth(frame, number) {
  const { matrix } = frame.header.parts[number];
  const widths = frame.arrays[`${number}/widths`]?.values;
  if (widths?.length) return widths[0] * Math.hypot(matrix[0][0], matrix[1][0], matrix[2][0]);
  const { bounds } = frame.header;
  const size = bounds ? bounds[1].map((high, axis) => high - bounds[0][axis]) : [1];
  return Math.max(...size) / Math.sqrt(Math.max(frame.arrays[`${number}/positions`].shape[0], 1)) || 0.01;
}

function makeVoxels(frame, number, look, drawn) {
  const cells = frame.arrays[`${number}/positions`];
  const tint = colorsOf(frame, number, look.mode);
  const shown = shownOf(frame, number, look.hidden);
  const { voxels, sides } = outerFaces(cells.values, shown ? shown.isShown : () => true);
  const faces = voxels.length;
  const { places, across, corners } = makeSquares(cells.values, voxels, sides);
  const row = tint.place === "all" ? () => 0 : (at) => voxels[at >> 2];
  const geometry = new THREE.BufferGeometry();
  geometry.setIndex(new THREE.BufferAttribute(corners, 1));
  geometry.setAttribute("position", new THREE.BufferAttribute(places, 3));
  geometry.setAttribute("across", new THREE.BufferAttribute(across, 2));
  geometry.setAttribute("tint", new THREE.BufferAttribute(spread(tint.values, 4, 4 * faces, row), 4, true));
  drawn.voxels += shown ? countShown(cells.shape[0], shown.isShown) : cells.shape[0];
  drawn.triangles += 2 * faces;
  const material = new THREE.ShaderMaterial({ vertexShader: VOXEL_VERTEX, fragmentShader: VOXEL_FRAGMENT, side: THREE.DoubleSide });
  material.wireframe = look.wire;
  return new THREE.Mesh(geometry, material);
}

function countShown(count, isShown) {
  let shown = 0;
  for (let at = 0; at < count; at++) shown += isShown(at);
  return shown;
}
