// The environments that light a model: equirectangular .hdr files, decoded once for all viewers of the page.
import { DataUtils, EquirectangularReflectionMapping } from 'three';
import { HDRLoader } from 'three/addons/loaders/HDRLoader.js';

const RADIANCE = 0.5; // mean brightness that every environment is brought to
const WIDEST = 1024; // pixels; more would fill the graphics memory and show in no reflection
const LOADED = new Map();

/** {picture, intensity} of a file. */
export function environment(address) {
  if (!LOADED.has(address)) LOADED.set(address, load(address));
  return LOADED.get(address);
}

async function load(address) {
  const picture = await new HDRLoader().loadAsync(address);
  while (picture.image.width > WIDEST && picture.image.height > 1) picture.image = halved(picture.image);
  picture.mapping = EquirectangularReflectionMapping;
  return { picture, intensity: RADIANCE / meanRadiance(picture.image.data) };
}

/** Whether the bytes of a Radiance file hold all its rows. The loader takes what is missing for black. */
export function isWhole(buffer) {
  const bytes = new Uint8Array(buffer);
  const head = new TextDecoder('latin1').decode(bytes.subarray(0, 4096));
  const size = /\n-Y (\d+) \+X (\d+)\n/.exec(head);
  if (!head.startsWith('#?') || !size) return false;
  const [height, width] = [Number(size[1]), Number(size[2])];
  let at = size.index + size[0].length;
  if (width < 8 || width > 0x7fff || bytes[at] !== 2 || bytes[at + 1] !== 2) return bytes.length >= at + 4 * width * height;
  for (let row = 0; row < height; row++) {
    at += 4;
    for (let left = 4 * width; left > 0;) { // runs of its four channels
      if (at >= bytes.length) return false;
      const count = bytes[at] > 128 ? bytes[at] - 128 : bytes[at];
      if (!count) return false;
      at += bytes[at] > 128 ? 2 : 1 + count;
      left -= count;
    }
  }
  return at <= bytes.length;
}

/** Half-float RGBA pixels, every two by two of them averaged. */
function halved({ data, width, height }) {
  const [w, h] = [width >> 1, height >> 1];
  const out = new Uint16Array(w * h * 4);
  const value = DataUtils.fromHalfFloat;
  for (let k = 0; k < out.length; k++) {
    const at = (2 * Math.floor(k / 4 / w) * width + 2 * ((k >> 2) % w)) * 4 + (k & 3);
    const below = at + 4 * width;
    const sum = value(data[at]) + value(data[at + 4]) + value(data[below]) + value(data[below + 4]);
    out[k] = DataUtils.toHalfFloat(sum / 4);
  }
  return { data: out, width: w, height: h };
}

/** Mean over the picture; its rows are weighted alike, which is near enough for a brightness. */
function meanRadiance(data) {
  let sum = 0;
  for (let k = 0; k < data.length; k += 4) {
    for (let c = 0; c < 3; c++) sum += DataUtils.fromHalfFloat(data[k + c]);
  }
  return Math.max((sum * 4) / 3 / data.length, 1e-6);
}
