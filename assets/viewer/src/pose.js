// Where a camera stands and looks, as numbers that a person can set, and back as a frame of a transforms.json.
import { Euler, MathUtils, Matrix4, Vector3 } from 'three';

const UP = new Vector3(0, 1, 0);
const { degToRad, radToDeg } = MathUtils;

/**
 * What can be set, in the order in which a person would. Angles are in degrees. Azimuth 0 is the front (-z in the glTF
 * frame); pan and tilt say how far the camera looks past the middle of the object.
 */
export const PARAMETERS = [
  { key: 'azimuth', label: 'Around', term: 'azimuth', low: -180, high: 180, step: 0.5, unit: '\u00b0', round: true },
  { key: 'elevation', label: 'Height', term: 'elevation', low: -89, high: 89, step: 0.5, unit: '\u00b0' },
  { key: 'distance', label: 'Distance', term: 'in widths of the frame', low: 0.9, high: 6, step: 0.01, unit: '' },
  { key: 'roll', label: 'Tilted sideways', term: 'roll', low: -180, high: 180, step: 0.5, unit: '\u00b0', round: true },
  { key: 'fov', label: 'Angle of view', term: 'field of view', low: 5, high: 120, step: 0.5, unit: '\u00b0' },
  { key: 'pan', label: 'Aim, left to right', term: 'pan', low: -40, high: 40, step: 0.1, unit: '\u00b0' },
  { key: 'tilt', label: 'Aim, down to up', term: 'tilt', low: -40, high: 40, step: 0.1, unit: '\u00b0' },
];

/** The numbers of a frame (camera to world, OpenGL axes). */
export function parametersOf(frame) {
  const pose = new Matrix4().set(...frame.transform_matrix.flat());
  const position = new Vector3().setFromMatrixPosition(pose);
  const distance = position.length();
  const turn = new Matrix4().extractRotation(pose).premultiply(lookingInwards(position).transpose());
  const { x, y, z } = new Euler().setFromRotationMatrix(turn, 'YXZ');
  return {
    azimuth: radToDeg(Math.atan2(position.x, -position.z)),
    elevation: radToDeg(Math.asin(position.y / distance)),
    distance,
    roll: radToDeg(z),
    fov: 2 * radToDeg(Math.atan2(frame.h, 2 * frame.fl_y)),
    pan: -radToDeg(y),
    tilt: radToDeg(x),
  };
}

/** The frame for those numbers, of a picture 1 x 1; all else of the lens is that of `like`. */
export function frameOf(parameters, like) {
  const { azimuth, elevation, distance, roll, fov, pan, tilt } = parameters;
  const flat = Math.cos(degToRad(elevation));
  const position = new Vector3(
    Math.sin(degToRad(azimuth)) * flat, Math.sin(degToRad(elevation)), -Math.cos(degToRad(azimuth)) * flat,
  ).multiplyScalar(distance);
  const turn = new Matrix4().makeRotationFromEuler(new Euler(degToRad(tilt), degToRad(-pan), degToRad(roll), 'YXZ'));
  const pose = turn.premultiply(lookingInwards(position)).setPosition(position);
  const focal = 0.5 / Math.tan(degToRad(fov) / 2);
  const rows = [0, 1, 2, 3].map((row) => [0, 1, 2, 3].map((column) => pose.elements[4 * column + row]));
  return {
    w: 1, h: 1, fl_x: (focal * (like.fl_x / like.w)) / (like.fl_y / like.h), fl_y: focal,
    cx: like.cx / like.w, cy: like.cy / like.h, transform_matrix: rows,
  };
}

/** The frames of a transforms.json, each with its whole lens. */
export function framesOf(record) {
  const { frames, ...shared } = record;
  return frames.map((frame) => {
    const whole = { ...shared, ...frame };
    return { fl_y: whole.fl_x, cx: whole.w / 2, cy: whole.h / 2, ...whole };
  });
}

/** The rotation of a camera at a position that looks at the origin, upright. */
function lookingInwards(position) {
  const backward = position.clone().normalize();
  const right = new Vector3().crossVectors(UP, backward);
  if (right.lengthSq() < 1e-12) right.set(-1, 0, 0); // straight above or below
  right.normalize();
  return new Matrix4().makeBasis(right, new Vector3().crossVectors(backward, right), backward);
}
