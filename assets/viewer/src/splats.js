// Gaussian splats: reading the usual PLY, and drawing it sorted from back to front as screen-aligned ellipses
// (Kerbl et al., "3D Gaussian Splatting", 2023; the projection is that of Zwicker et al., "EWA volume splatting", 2001).
import {
  DataTexture, FloatType, InstancedBufferAttribute, InstancedBufferGeometry, Float32BufferAttribute, Mesh, RGBAFormat,
  ShaderMaterial, Vector2, Vector3,
} from 'three';

const ROW = 1024; // splats in one row of the data texture; each takes three texels, and phones allow 4096
const SH0 = 0.28209479177387814; // the constant spherical harmonic
const COUNT_BITS = 16; // of the depth that splats are sorted by

/** A binary little-endian PLY of floats as {count, texels, positions, center, extent}. */
export function readSplats(buffer) {
  const text = new TextDecoder('latin1').decode(buffer.slice(0, 16384));
  const end = text.indexOf('end_header\n');
  const count = Number(/element vertex (\d+)/.exec(text)?.[1]);
  if (end < 0 || !count) throw new Error('these are no splats');
  const names = [...text.slice(0, end).matchAll(/property float (\w+)/g)].map((match) => match[1]);
  const at = Object.fromEntries(names.map((name, index) => [name, index]));
  const data = new Float32Array(buffer.slice(end + 'end_header\n'.length));
  const height = Math.ceil(count / ROW);
  const texels = new Float32Array(ROW * 3 * height * 4);
  const positions = new Float32Array(count * 3);
  const low = new Vector3(Infinity, Infinity, Infinity), high = new Vector3(-Infinity, -Infinity, -Infinity);
  const point = new Vector3();
  for (let k = 0; k < count; k++) {
    const value = (name) => data[k * names.length + at[name]];
    point.set(value('x'), value('y'), value('z'));
    point.toArray(positions, 3 * k);
    low.min(point);
    high.max(point);
    const covariance = covarianceOf(
      [0, 1, 2].map((axis) => Math.exp(value(`scale_${axis}`))), [0, 1, 2, 3].map((axis) => value(`rot_${axis}`)),
    );
    const color = [0, 1, 2].map((channel) => 0.5 + SH0 * value(`f_dc_${channel}`));
    const opacity = 1 / (1 + Math.exp(-value('opacity')));
    // Position and opacity; covariance xx, xy, xz, yy; covariance yz, zz and the colour packed in two.
    const packed = Math.round(255 * clamp(color[0])) * 256 + Math.round(255 * clamp(color[1]));
    texels.set([point.x, point.y, point.z, opacity, ...covariance, packed, Math.round(255 * clamp(color[2]))], 12 * k);
  }
  const center = low.clone().add(high).multiplyScalar(0.5);
  return { count, texels, height, positions, center, extent: high.sub(low) };
}

const clamp = (x) => Math.min(1, Math.max(0, x));

/** The upper triangle of R S S R^T: xx, xy, xz, yy, yz, zz. */
function covarianceOf(scale, [w, x, y, z]) {
  const n = Math.hypot(w, x, y, z) || 1;
  [w, x, y, z] = [w / n, x / n, y / n, z / n];
  const r = [
    [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
    [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
    [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
  ];
  const entry = (a, b) => [0, 1, 2].reduce((sum, k) => sum + r[a][k] * r[b][k] * scale[k] * scale[k], 0);
  return [entry(0, 0), entry(0, 1), entry(0, 2), entry(1, 1), entry(1, 2), entry(2, 2)];
}

const VERTEX = /* glsl */ `
  precision highp float;
  uniform sampler2D table;
  uniform vec2 viewport, focal; // pixels
  attribute float splat;
  varying vec2 corner;
  varying vec4 shade;
  void main() {
    int index = int(splat);
    ivec2 at = ivec2(3 * (index % ${ROW}), index / ${ROW});
    vec4 a = texelFetch(table, at, 0), b = texelFetch(table, at + ivec2(1, 0), 0), c = texelFetch(table, at + ivec2(2, 0), 0);
    vec3 eye = (modelViewMatrix * vec4(a.xyz, 1.0)).xyz;
    vec4 clip = projectionMatrix * vec4(eye, 1.0);
    gl_Position = vec4(0.0, 0.0, 2.0, 1.0); // outside, unless it turns out to be seen
    if (clip.z < -clip.w || abs(clip.x) > 1.3 * clip.w || abs(clip.y) > 1.3 * clip.w) return;
    mat3 spread = mat3(b.x, b.y, b.z, b.y, b.w, c.x, b.z, c.x, c.y);
    mat3 turn = mat3(modelViewMatrix);
    mat3 inEye = turn * spread * transpose(turn);
    // The derivative of the projection at the centre, in pixels.
    vec3 toX = vec3(focal.x, 0.0, focal.x * eye.x / -eye.z) / -eye.z;
    vec3 toY = vec3(0.0, focal.y, focal.y * eye.y / -eye.z) / -eye.z;
    float xx = dot(toX, inEye * toX) + 0.15, xy = dot(toX, inEye * toY), yy = dot(toY, inEye * toY) + 0.15;
    float middle = 0.5 * (xx + yy), half_ = length(vec2(0.5 * (xx - yy), xy));
    vec2 long_ = half_ < 1e-6 ? vec2(1.0, 0.0) : normalize(vec2(xy, middle + half_ - xx) + vec2(1e-9, 0.0));
    if (abs(xy) < 1e-7) long_ = xx >= yy ? vec2(1.0, 0.0) : vec2(0.0, 1.0);
    vec2 radii = sqrt(8.0 * vec2(middle + half_, max(middle - half_, 0.05))); // exp(-4) of the middle is left there
    corner = position.xy * 2.0;
    vec2 offset = position.x * radii.x * long_ + position.y * radii.y * vec2(-long_.y, long_.x);
    shade = vec4(floor(c.z / 256.0) / 255.0, mod(c.z, 256.0) / 255.0, c.w / 255.0, a.w);
    gl_Position = clip + vec4(offset * 2.0 / viewport * clip.w, 0.0, 0.0);
  }`;

const FRAGMENT = /* glsl */ `
  precision highp float;
  varying vec2 corner;
  varying vec4 shade;
  void main() {
    float square = dot(corner, corner);
    if (square > 4.0) discard;
    gl_FragColor = vec4(shade.rgb, shade.a * exp(-square));
  }`;

export class Splats extends Mesh {
  constructor(table) {
    const geometry = new InstancedBufferGeometry();
    geometry.setAttribute('position', new Float32BufferAttribute([-1, -1, 0, 1, -1, 0, 1, 1, 0, -1, 1, 0], 3));
    geometry.setIndex([0, 1, 2, 0, 2, 3]);
    geometry.setAttribute('splat', new InstancedBufferAttribute(new Float32Array(table.count), 1));
    geometry.instanceCount = table.count;
    const texture = new DataTexture(table.texels, ROW * 3, table.height, RGBAFormat, FloatType);
    texture.needsUpdate = true;
    const uniforms = { table: { value: texture }, viewport: { value: new Vector2() }, focal: { value: new Vector2() } };
    super(geometry, new ShaderMaterial({
      uniforms, vertexShader: VERTEX, fragmentShader: FRAGMENT, transparent: true, depthWrite: false, depthTest: true,
    }));
    this.frustumCulled = false;
    this.positions = table.positions;
    this.keys = new Uint16Array(table.count);
    this.counts = new Uint32Array(2 ** COUNT_BITS + 1);
  }

  /** Sort for a camera, and tell the shader the size of the picture. */
  prepare(camera, renderer) {
    const { viewport, focal } = this.material.uniforms;
    renderer.getDrawingBufferSize(viewport.value);
    camera.updateMatrixWorld();
    const [fx, fy] = [camera.projectionMatrix.elements[0], camera.projectionMatrix.elements[5]];
    focal.value.set((fx * viewport.value.x) / 2, (fy * viewport.value.y) / 2);
    this.sort(camera.matrixWorldInverse.elements);
  }

  /** Counting sort by depth, the farthest first. */
  sort(m) {
    const { positions, keys, counts } = this;
    const depths = new Float32Array(keys.length);
    let low = Infinity, high = -Infinity;
    for (let k = 0; k < keys.length; k++) {
      const depth = m[2] * positions[3 * k] + m[6] * positions[3 * k + 1] + m[10] * positions[3 * k + 2];
      depths[k] = depth; // eye space looks along -z, so the farthest is the smallest
      low = Math.min(low, depth);
      high = Math.max(high, depth);
    }
    const scale = (2 ** COUNT_BITS - 1) / Math.max(high - low, 1e-9);
    counts.fill(0);
    for (let k = 0; k < keys.length; k++) {
      keys[k] = (depths[k] - low) * scale;
      counts[keys[k] + 1]++;
    }
    for (let k = 1; k < counts.length; k++) counts[k] += counts[k - 1];
    const order = this.geometry.attributes.splat;
    for (let k = 0; k < keys.length; k++) order.array[counts[keys[k]]++] = k;
    order.needsUpdate = true;
  }
}
