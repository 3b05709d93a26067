// The cameras of the photographs: a pyramid for each, with its picture, coloured by how far its place can be trusted.
import {
  BufferGeometry, CanvasTexture, Color, DoubleSide, Float32BufferAttribute, Group, LineBasicMaterial, LineSegments,
  Matrix4, Mesh, MeshBasicMaterial, PlaneGeometry, Sprite, SpriteMaterial, SRGBColorSpace, TextureLoader, Vector3,
} from 'three';

const SIZE = 0.5; // height of a pyramid's base, of the cameras' mean distance from the origin
const SURE = new Color(0x0f766e), DOUBTFUL = new Color(0xc2761b), WRONG = new Color(0xbe3c32);

/** Three groups of colour, since a continuous scale would promise more than the number means. */
export function colorOfTrust(trust) {
  return trust === undefined || trust >= 0.66 ? SURE : trust >= 0.33 ? DOUBTFUL : WRONG;
}

/**
 * A group of pyramids for a parsed transforms.json (camera to world, OpenGL axes). `userData.views` lists
 * {position, size, picture}. `loaded` is called whenever a picture has come.
 */
export function frusta(record, folder, trust, loaded) {
  const group = new Group();
  group.userData.views = [];
  const places = record.frames.map((frame) => new Matrix4().set(...frame.transform_matrix.flat()));
  const positions = places.map((place) => new Vector3().setFromMatrixPosition(place));
  const mean = positions.reduce((sum, position) => sum + position.length(), 0) / positions.length;
  record.frames.forEach((frame, index) => {
    const { w, h, fl_x: fx, fl_y: fy = fx } = { ...record, ...frame };
    const height = SIZE * mean * 0.5, depth = (height * fy) / h, width = (height * (w / fx)) / (h / fy);
    const color = colorOfTrust(trust[index]);
    const camera = new Group();
    camera.applyMatrix4(places[index]);
    camera.add(pyramid(width, height, depth, color));
    const picture = new Mesh(
      new PlaneGeometry(width, height),
      new MeshBasicMaterial({ side: DoubleSide, transparent: true, opacity: 0.95, color: 0xffffff, toneMapped: false }),
    );
    picture.position.z = -depth;
    new TextureLoader().load(folder + frame.file_path, (texture) => {
      texture.colorSpace = SRGBColorSpace;
      picture.material.map = texture;
      picture.material.needsUpdate = true;
      loaded();
    });
    const number = badge(index + 1, color, height * 0.42);
    number.position.set(0, height * 0.78, -depth);
    camera.add(picture, number);
    group.add(camera);
    const view = { position: positions[index], size: Math.hypot(width, height, depth), picture };
    picture.userData.view = view;
    group.userData.views.push(view);
  });
  return group;
}

function pyramid(width, height, depth, color) {
  const [x, y] = [width / 2, height / 2];
  const corners = [[-x, -y], [x, -y], [x, y], [-x, y]];
  const points = corners.flatMap(([a, b], k) => {
    const [c, d] = corners[(k + 1) % 4];
    return [0, 0, 0, a, b, -depth, a, b, -depth, c, d, -depth];
  });
  const geometry = new BufferGeometry().setAttribute('position', new Float32BufferAttribute(points, 3));
  return new LineSegments(geometry, new LineBasicMaterial({ color }));
}

/** A number on a disc that always faces the viewer. */
function badge(number, color, size) {
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
  const sprite = new Sprite(new SpriteMaterial({ map, depthTest: false }));
  sprite.scale.set(size, size, 1);
  sprite.renderOrder = 2;
  return sprite;
}
