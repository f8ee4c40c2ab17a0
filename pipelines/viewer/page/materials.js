// Physically based materials of USD's preview surface, as those of three.js.

import * as THREE from "./vendor/three/three.module.js";

/**
 * The material of a part.
 * @param {import("./api.js").Frame} frame
 * @param {number} number of the part
 * @param {string} name of the material; the first for one that is not there
 * @param {boolean} smooth whether the mesh has normals
 * @param {boolean} wire whether edges alone are drawn: light has no meaning for them
 */
export function pbrMaterial(frame, number, name, smooth, wire) {
  const { materials } = frame.header.parts[number];
  const { values, maps } = materials[name] ?? Object.values(materials)[0];
  const color = maps.diffuse ? 0xffffff : colorOf(values.diffuse ?? [0.18, 0.18, 0.18]);
  const image = (kind, isColor) => maps[kind] && makeTexture(frame.arrays[`${number}/${maps[kind].array}`], isColor && maps[kind].space !== "raw");
  if (wire) return new THREE.MeshBasicMaterial({ color, map: image("diffuse", true) ?? null });
  const material = new THREE.MeshPhysicalMaterial({
    color,
    roughness: maps.roughness ? 1 : (values.roughness ?? 0.5),
    metalness: maps.metallic ? 1 : (values.metallic ?? 0),
    clearcoat: values.clearcoat ?? 0,
    clearcoatRoughness: values.clearcoat_roughness ?? 0.01,
    ior: Math.min(Math.max(values.ior ?? 1.5, 1), 2.333),
    flatShading: !smooth,
  });
  const opacity = maps.opacity ? 1 : (values.opacity ?? 1);
  const given = {
    map: image("diffuse", true),
    roughnessMap: image("roughness", false),
    metalnessMap: image("metallic", false),
    normalMap: image("normals", false),
    alphaMap: image("opacity", false),
  };
  for (const [slot, texture] of Object.entries(given)) if (texture) material[slot] = texture;
  material.opacity = opacity;
  material.alphaTest = values.threshold ?? 0;
  material.transparent = !values.threshold && (opacity < 1 || Boolean(maps.opacity));
  return material;
}

const colorOf = (value) => new THREE.Color().setRGB(...(Array.isArray(value) ? value : [value, value, value]), THREE.SRGBColorSpace);

/** An image (H, W, C) as a texture whose first row is at v = 0. One channel is repeated: three.js reads green of some, blue of others. */
function makeTexture({ values, shape }, isColor) {
  const [height, width, channels] = shape;
  const wide = channels === 4 ? values : widen(values, height * width, channels);
  const texture = new THREE.DataTexture(wide, width, height, THREE.RGBAFormat);
  texture.colorSpace = isColor ? THREE.SRGBColorSpace : THREE.NoColorSpace;
  texture.wrapS = texture.wrapT = THREE.RepeatWrapping;
  texture.magFilter = THREE.LinearFilter;
  texture.minFilter = THREE.LinearMipmapLinearFilter;
  texture.generateMipmaps = true;
  texture.anisotropy = 4;
  texture.needsUpdate = true;
  return texture;
}

function widen(values, pixels, channels) {
  const wide = new Uint8Array(4 * pixels).fill(255);
  for (let at = 0; at < pixels; at++) {
    for (let channel = 0; channel < 3; channel++) wide[4 * at + channel] = values[channels * at + Math.min(channel, channels - 1)];
  }
  return wide;
}
