// The cameras of the photographs: a pyramid for each, with its picture, coloured by how far its place can be trusted.
import {
  BufferGeometry, CanvasTexture, Color, DoubleSide, Float32BufferAttribute, Group, LineBasicMaterial, LineSegments,
  Matrix4, Mesh, MeshBasicMaterial, PlaneGeometry, Sprite, SpriteMaterial, SRGBColorSpace, TextureLoader, Vector3,
} from 'three';
import { framesOf } from './pose.js';

const SIZE = 0.5; // height of a pyramid's base, of the cameras' mean distance from the origin
const SURE = new Color(0x0f766e), DOUBTFUL = new Color(0xc2761b), WRONG = new Color(0xbe3c32);

/** Three groups of colour, since a continuous scale would promise more than the number means. */
export function colorOfTrust(trust) {
  return trust === undefined || trust >= 0.66 ? SURE : trust >= 0.33 ? DOUBTFUL : WRONG;
}

/**
 * A group of pyramids for a parsed transforms.json (camera to world, OpenGL axes). `userData.views` lists them.
 * `loaded` is called whenever a picture has come.
 */
export function frusta(record, folder, trust, loaded) {
  const group = new Group();
  const frames = framesOf(record);
  const distances = frames.map((frame) => new Vector3().setFromMatrixPosition(matrixOf(frame)).length());
  const height = (SIZE * distances.reduce((sum, distance) => sum + distance, 0) * 0.5) / frames.length;
  group.userData.views = frames.map((frame, index) => {
    const view = new Frustum(frame, index, height, colorOfTrust(trust[index]));
    new TextureLoader().load(folder + frame.file_path, (texture) => {
      texture.colorSpace = SRGBColorSpace;
      view.picture.material.map = texture;
      view.picture.material.needsUpdate = true;
      loaded();
    });
    group.add(view);
    return view;
  });
  return group;
}

/** One camera. `size`: how far it reaches from its place. */
class Frustum extends Group {
  constructor(frame, index, height, color) {
    super();
    this.index = index;
    this.height = height;
    this.matrixAutoUpdate = false;
    this.edges = new LineSegments(new BufferGeometry(), new LineBasicMaterial());
    this.picture = new Mesh(
      new PlaneGeometry(1, 1),
      new MeshBasicMaterial({ side: DoubleSide, transparent: true, opacity: 0.95, color: 0xffffff, toneMapped: false }),
    );
    this.picture.userData.view = this;
    this.badge = new Sprite(new SpriteMaterial({ depthTest: false }));
    this.badge.renderOrder = 2;
    this.add(this.edges, this.picture, this.badge);
    this.paint(color);
    this.choose(false);
    this.place(frame);
  }

  /** Stand where a frame of a transforms.json says, with its angle of view. */
  place(frame) {
    const { w, h, fl_x: fx, fl_y: fy } = frame;
    const depth = (this.height * fy) / h, width = (this.height * (w / fx)) / (h / fy);
    this.matrix.copy(matrixOf(frame));
    this.matrix.decompose(this.position, this.quaternion, this.scale);
    this.matrixWorldNeedsUpdate = true;
    this.size = Math.hypot(width, this.height, depth);
    this.edges.geometry.setAttribute('position', new Float32BufferAttribute(pyramid(width, this.height, depth), 3));
    this.edges.geometry.computeBoundingSphere();
    this.picture.scale.set(width, this.height, 1);
    this.picture.position.z = -depth;
    this.badge.position.set(0, this.height * 0.78, -depth);
  }

  paint(color) {
    this.edges.material.color = color;
    this.badge.material.map?.dispose();
    this.badge.material.map = disc(this.index + 1, color);
  }

  /** Stand out among the others, or not. */
  choose(chosen) {
    this.badge.scale.setScalar(this.height * (chosen ? 0.62 : 0.42));
  }
}

function matrixOf(frame) {
  return new Matrix4().set(...frame.transform_matrix.flat());
}

function pyramid(width, height, depth) {
  const [x, y] = [width / 2, height / 2];
  const corners = [[-x, -y], [x, -y], [x, y], [-x, y]];
  return corners.flatMap(([a, b], k) => {
    const [c, d] = corners[(k + 1) % 4];
    return [0, 0, 0, a, b, -depth, a, b, -depth, c, d, -depth];
  });
}

/** A number on a disc. */
function disc(number, color) {
  const canvas = document.createElement('canvas');
  canvas.width = canvas.height = 64;
  const pen = canvas.getContext('2d');
  pen.fillStyle = `#${color.getHexString()}`;
  pen.beginPath();
  pen.arc(32, 32, 30, 0, 7);
  pen.fill();
  pen.fillStyle = '#fff';
  pen.font = '600 36px system-ui, sans-serif';
  pen.textAlign = 'center';
  pen.textBaseline = 'middle';
  pen.fillText(number, 32, 34);
  const map = new CanvasTexture(canvas);
  map.colorSpace = SRGBColorSpace;
  return map;
}
