// What a camera sees of the object, as a mask: of the model, or, before there is one, of the room that the other
// photographs leave for it (their visual hull, as in studio/trust.py).
import { DoubleSide, MeshBasicMaterial, PerspectiveCamera, Scene, WebGLRenderTarget } from 'three';

export const SIDE = 256; // pixels of a mask
const GRID = 44, CELLS = 22, TOLERATED = 0.25; // those of studio/trust.py
const OPAQUE = 204; // of 255
const LEFT = 0.5; // of the points that most others show: so many must all of them, for theirs to be the outline
const DOT = 8; // pixels that a point of the grid covers: more than lie between two

/** The masks of a viewer's mesh. */
export class MeshOutlines {
  constructor(viewer) {
    this.viewer = viewer;
    this.target = new WebGLRenderTarget(SIDE, SIDE);
    this.scene = new Scene();
    this.scene.overrideMaterial = new MeshBasicMaterial({ side: DoubleSide, toneMapped: false });
    this.camera = new PerspectiveCamera();
    this.camera.matrixAutoUpdate = false;
    this.pixels = new Uint8Array(SIDE * SIDE * 4);
  }

  place() {} // a mesh looks the same whatever the other cameras do

  /** A mask (SIDE rows of SIDE, 0 or 255) for a frame of a transforms.json. */
  seen(index, { w, h, fl_x: fx, fl_y: fy, cx, cy, transform_matrix: rows }) {
    const { renderer, surface, scene } = this.viewer;
    const [near, far] = [0.01, 100];
    this.camera.matrix.set(...rows.flat());
    this.camera.matrixWorldNeedsUpdate = true;
    this.camera.projectionMatrix.set(
      (2 * fx) / w, 0, 1 - (2 * cx) / w, 0, 0, (2 * fy) / h, (2 * cy) / h - 1, 0,
      0, 0, (near + far) / (near - far), (2 * near * far) / (near - far), 0, 0, -1, 0,
    );
    this.camera.projectionMatrixInverse.copy(this.camera.projectionMatrix).invert();
    const shown = surface.visible;
    surface.visible = true;
    this.scene.add(surface);
    renderer.setRenderTarget(this.target);
    renderer.clear();
    renderer.render(this.scene, this.camera);
    renderer.readRenderTargetPixels(this.target, 0, 0, SIDE, SIDE, this.pixels);
    renderer.setRenderTarget(null);
    scene.add(surface);
    surface.visible = shown;
    const mask = new Uint8ClampedArray(SIDE * SIDE);
    for (let row = 0; row < SIDE; row++) {
      for (let column = 0; column < SIDE; column++) {
        mask[row * SIDE + column] = this.pixels[4 * ((SIDE - 1 - row) * SIDE + column)]; // its first row is the lowest
      }
    }
    return mask;
  }

  dispose() {
    this.target.dispose();
  }
}

/** The masks of what the other photographs leave room for. */
export class HullOutlines {
  /** alphas: of each view, the alpha of its picture as a mask of SIDE rows. */
  constructor(alphas) {
    this.masks = alphas.map(cellsOf);
    this.views = alphas.map(() => ({}));
  }

  /** Tell where a camera stands now. */
  place(index, frame) {
    const { u, v } = projected(frame);
    const cell = new Int16Array(u.length), inside = new Uint8Array(u.length);
    for (let k = 0; k < u.length; k++) {
      const seen = u[k] >= 0 && u[k] < 1 && v[k] >= 0 && v[k] < 1; // not a number is not seen
      cell[k] = seen ? Math.floor(v[k] * CELLS) * CELLS + Math.floor(u[k] * CELLS) : -1;
      inside[k] = seen && this.masks[index].touched[cell[k]];
    }
    this.views[index] = { u, v, cell, inside };
  }

  seen(index) {
    const { u, v } = this.views[index];
    const mask = new Uint8ClampedArray(SIDE * SIDE);
    // What all others agree on is the sharper outline, unless one of them is wrong and leaves hardly anything.
    const [most, all] = [this.hull(index), this.hull(index, 0)];
    (all.length > LEFT * most.length ? all : most).forEach((k) => {
      const [column, row] = [Math.round(u[k] * SIDE - DOT / 2), Math.round(v[k] * SIDE - DOT / 2)];
      for (let y = Math.max(row, 0); y < Math.min(row + DOT, SIDE); y++) {
        mask.fill(255, y * SIDE + Math.max(column, 0), y * SIDE + Math.min(column + DOT, SIDE));
      }
    });
    return smoothed(mask);
  }

  /** The share of the photograph's outline that the other photographs explain; null where there are fewer than two. */
  score(index) {
    if (this.views.length < 3) return null;
    const { covered } = this.masks[index], { cell } = this.views[index];
    const explained = new Uint8Array(CELLS * CELLS);
    this.hull(index).forEach((k) => { explained[cell[k]] = 1; });
    let [both, all] = [0, 0];
    covered.forEach((is, k) => { all += is; both += is && explained[k]; });
    return all ? both / all : 0;
  }

  /** The points of the grid that enough of the others show, and this camera sees. */
  hull(index, tolerated = TOLERATED) {
    const others = this.views.length - 1, needed = others - Math.floor(tolerated * others);
    const { cell } = this.views[index], points = [];
    for (let k = 0; k < cell.length; k++) {
      if (cell[k] < 0) continue;
      let votes = 0;
      this.views.forEach((view, other) => { votes += other !== index && view.inside[k]; });
      if (votes >= needed) points.push(k);
    }
    return points;
  }

  dispose() {}
}

/** How well a mask and the alpha of a photograph agree: intersection over union, 0 to 1. */
export function agreement(seen, alpha) {
  let [both, either] = [0, 0];
  seen.forEach((value, k) => {
    const [a, b] = [value > 127, alpha[k] > OPAQUE];
    both += a && b;
    either += a || b;
  });
  return either ? both / either : 1;
}

/** A mask without the corners of its dots: what most pixels around say, rows first. */
function smoothed(mask) {
  for (const [along, across] of [[1, SIDE], [SIDE, 1]]) {
    const before = mask.slice();
    for (let line = 0; line < SIDE; line++) {
      for (let at = 0; at < SIDE; at++) {
        let sum = 0;
        for (let near = -DOT; near <= DOT; near++) {
          sum += before[line * across + Math.min(Math.max(at + near, 0), SIDE - 1) * along];
        }
        mask[line * across + at * along] = sum / (2 * DOT + 1);
      }
    }
  }
  return mask.map((value) => (value > 127 ? 255 : 0));
}

/** Of each cell of a mask: whether the object fills it, and whether it reaches into it. */
function cellsOf(alpha) {
  const sums = new Float64Array(CELLS * CELLS), counts = new Float64Array(CELLS * CELLS);
  for (let k = 0; k < alpha.length; k++) {
    const [row, column] = [Math.floor(k / SIDE), k % SIDE].map((at) => Math.floor((at * CELLS) / SIDE));
    sums[row * CELLS + column] += alpha[k];
    counts[row * CELLS + column] += 1;
  }
  return {
    covered: Uint8Array.from(sums, (sum, k) => sum / counts[k] > OPAQUE),
    touched: Uint8Array.from(sums, (sum, k) => sum / counts[k] >= 0.5),
  };
}

/** Where a frame shows the points of the grid, in parts of the picture; not a number for those behind the camera. */
function projected({ w, h, fl_x: fx, fl_y: fy, cx, cy, transform_matrix: m }) {
  const u = new Float32Array(GRID ** 3), v = new Float32Array(GRID ** 3);
  for (let k = 0; k < u.length; k++) {
    const q = [Math.floor(k / GRID / GRID), Math.floor(k / GRID) % GRID, k % GRID]
      .map((at, axis) => (at + 0.5) / GRID - 0.5 - m[axis][3]);
    const [x, y, z] = [0, 1, 2].map((axis) => q[0] * m[0][axis] + q[1] * m[1][axis] + q[2] * m[2][axis]);
    u[k] = z < 0 ? ((fx / w) * x) / -z + cx / w : NaN;
    v[k] = z < 0 ? ((-fy / h) * y) / -z + cy / h : NaN;
  }
  return { u, v };
}
