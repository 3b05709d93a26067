// <studio-viewer>: a model that can be turned, as surface, wireframe or splats, with the cameras of its photographs.
//
//   mesh      address of a GLB            splats   address of a Gaussian PLY
//   cameras   address of transforms.json  photos   address of the folder its file names are relative to
//   trust     confidence of each camera, 0 to 1, separated by commas
//   framed    show the cameras from the beginning beside a model, too
//   lights    "Name=address;..." of equirectangular .hdr files, the first one to begin with
//   label     what a screen reader says
//
// Everything is in the glTF frame (y up). The element draws only when something changes. Its attribute data-state is
// "loading", "ready" or "failed"; the event "ready" tells when it is. The event "pick" tells the number (from 0) of a
// camera that has been clicked.
import {
  AmbientLight, Box3, BoxGeometry, EdgesGeometry, GridHelper, Group, LineBasicMaterial, LineSegments, MeshBasicMaterial,
  NeutralToneMapping, PerspectiveCamera, PMREMGenerator, Raycaster, Scene, Sphere, Spherical, Vector2, Vector3, WebGLRenderer,
} from 'three';
import { OrbitControls } from 'three/addons/controls/OrbitControls.js';
import { GLTFLoader } from 'three/addons/loaders/GLTFLoader.js';
import { environment } from './environments.js';
import { frusta } from './frusta.js';
import { Splats, readSplats } from './splats.js';
import { toolbar } from './toolbar.js';

const FIELD_OF_VIEW = 35; // degrees, vertical
const EVEN = 3; // of light from all sides alike: nearly the colours as they are
const FILL = 1.1; // of that beside an environment: a studio's lamps alone leave one side black and bleach the other
const AHEAD = '2000px'; // below the fold of a page a model is opened all the same
const TURN = 0.12; // radians a key press turns the model by

export class Viewer extends HTMLElement {
  connectedCallback() {
    if (this.canvas) return; // moved, not new
    this.dataset.state = 'loading';
    this.canvas = document.createElement('canvas');
    this.canvas.tabIndex = 0;
    this.canvas.setAttribute('role', 'img');
    this.canvas.setAttribute('aria-label',
      `${this.getAttribute('label') || '3D model'}. Arrow keys turn it, plus and minus zoom.`);
    this.append(this.canvas);
    // One in a tab that nobody has opened yet takes neither graphics memory nor time.
    this.sight = new IntersectionObserver((entries) => {
      if (!entries.some((entry) => entry.isIntersecting)) return;
      this.sight.disconnect();
      this.begin();
    }, { rootMargin: AHEAD });
    this.sight.observe(this);
  }

  begin() {
    try {
      this.renderer = new WebGLRenderer({ canvas: this.canvas, antialias: true, alpha: true });
    } catch {
      this.fail('This browser cannot draw in 3D. The files can still be downloaded.');
      return;
    }
    this.renderer.toneMapping = NeutralToneMapping; // keeps colours, and takes back what would be too bright to show
    this.renderer.setPixelRatio(Math.min(devicePixelRatio, 2));
    this.scene = new Scene();
    this.fill = new AmbientLight(0xffffff);
    this.scene.add(this.fill);
    this.camera = new PerspectiveCamera(FIELD_OF_VIEW, 1, 0.01, 100);
    this.camera.position.set(0.9, 0.7, 2);
    this.controls = new OrbitControls(this.camera, this.canvas);
    this.controls.addEventListener('change', () => this.draw());
    this.canvas.addEventListener('keydown', (event) => this.pressed(event));
    this.watchClicks();
    this.observer = new ResizeObserver(() => this.resize());
    this.observer.observe(this);
    this.load().catch((error) => this.fail(`The model could not be shown: ${error.message || error}`));
  }

  disconnectedCallback() {
    // Gradio may move an element; only one that stays away gives its graphics memory back.
    queueMicrotask(() => {
      if (this.isConnected) return;
      this.sight.disconnect();
      if (!this.renderer) return;
      this.observer.disconnect();
      this.controls.dispose();
      this.renderer.dispose();
      this.renderer.forceContextLoss();
    });
  }

  async load() {
    const [mesh, splats, cameras] = await Promise.all([
      this.mesh(), this.fetchAs('splats', (answer) => answer.arrayBuffer()), this.fetchAs('cameras', (a) => a.json()),
    ]);
    this.bounds = new Box3(new Vector3(-0.5, -0.5, -0.5), new Vector3(0.5, 0.5, 0.5));
    if (mesh) {
      this.surface = mesh;
      this.wires = wireframe(mesh);
      this.bounds.setFromObject(mesh);
      this.scene.add(mesh, this.wires);
    } else {
      this.scene.add(placeholder());
    }
    if (splats) {
      const table = readSplats(splats);
      this.splats = new Splats(table);
      this.scene.add(this.splats);
      if (!mesh) this.bounds.setFromCenterAndSize(table.center, table.extent);
    }
    if (cameras) {
      const trust = (this.getAttribute('trust') || '').split(',').filter(Boolean).map(Number);
      this.frusta = frusta(cameras, this.getAttribute('photos') || '', trust, () => this.draw());
      this.record = cameras;
      this.frusta.visible = !mesh || this.hasAttribute('framed');
      this.scene.add(this.frusta);
    }
    this.lights = (this.getAttribute('lights') || '').split(';').filter(Boolean).map((entry) => entry.split('='));
    this.append(toolbar(this));
    this.show(mesh ? 'surface' : 'splats');
    this.home();
    if (mesh) await this.light(0);
    this.resize();
    this.dataset.state = 'ready';
    this.dispatchEvent(new Event('ready'));
  }

  async mesh() {
    const address = this.getAttribute('mesh');
    return address ? (await new GLTFLoader().loadAsync(address)).scene : null;
  }

  async fetchAs(attribute, read) {
    const address = this.getAttribute(attribute);
    if (!address) return null;
    const answer = await fetch(address);
    if (!answer.ok) throw new Error(`${attribute} answered ${answer.status}`);
    return read(answer);
  }

  /** What is drawn: "surface", "wireframe" or "splats". */
  show(look) {
    if (this.surface) this.surface.visible = look !== 'splats';
    if (this.wires) this.wires.visible = look === 'wireframe';
    if (this.splats) this.splats.visible = look === 'splats';
    this.dataset.look = look;
    this.draw();
  }

  /** Light the surface by one of the environments; without any, evenly. */
  async light(index) {
    this.fill.intensity = this.lights.length ? FILL : EVEN;
    if (!this.lights.length) return;
    const [name, address] = this.lights[index];
    const { picture, intensity } = await environment(address);
    const generator = new PMREMGenerator(this.renderer);
    const target = generator.fromEquirectangular(picture);
    generator.dispose();
    this.environment?.dispose();
    this.environment = target;
    this.scene.environment = target.texture;
    this.scene.environmentIntensity = intensity;
    this.dataset.light = name;
    this.draw();
  }

  showCameras(visible) {
    this.frusta.visible = visible;
    this.home();
  }

  /** Look from where the first photograph was taken, a little from above, with everything in the picture. */
  home() {
    const sphere = this.bounds.getBoundingSphere(new Sphere());
    const first = this.frusta?.userData.views[0];
    const direction = first ? first.position.clone().sub(sphere.center).setLength(1) : new Vector3(0.35, 0.25, 1);
    direction.add(new Vector3(0, first ? 0.15 : 0, 0)).normalize();
    let radius = sphere.radius;
    if (this.frusta?.visible) {
      for (const view of this.frusta.userData.views) {
        radius = Math.max(radius, view.position.distanceTo(sphere.center) + view.size);
      }
      // They stand in a flat ring, which leaves a wide picture empty above and below.
      radius *= this.camera.aspect > 1.2 ? 0.58 : 0.66;
      direction.applyAxisAngle(new Vector3(0, 1, 0), 0.5).add(new Vector3(0, 0.35, 0)).normalize();
    }
    const narrow = Math.min(1, this.camera.aspect);
    const distance = (1.08 * radius) / Math.sin((FIELD_OF_VIEW * Math.PI) / 360) / narrow;
    this.look(sphere.center.clone().addScaledVector(direction, distance), sphere.center);
  }

  look(from, at) {
    const distance = from.distanceTo(at);
    this.camera.near = distance / 100;
    this.camera.far = distance * 20;
    this.camera.position.copy(from);
    this.camera.updateProjectionMatrix();
    this.controls.target.copy(at);
    this.controls.minDistance = distance / 20;
    this.controls.maxDistance = distance * 5;
    this.controls.update();
    this.draw();
  }

  resize() {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    if (!width || !height) return; // in a hidden tab
    this.renderer.setSize(width, height, false);
    this.camera.aspect = width / height;
    this.camera.updateProjectionMatrix();
    this.draw();
  }

  draw() {
    if (this.due) return;
    this.due = true;
    requestAnimationFrame(() => {
      this.due = false;
      if (!this.isConnected || !this.canvas.clientWidth) return;
      if (this.splats?.visible) this.splats.prepare(this.camera, this.renderer);
      this.renderer.render(this.scene, this.camera);
      this.dataset.frames = 1 + Number(this.dataset.frames || 0);
    });
  }

  pressed(event) {
    const turns = { ArrowLeft: [-TURN, 0], ArrowRight: [TURN, 0], ArrowUp: [0, -TURN], ArrowDown: [0, TURN] }[event.key];
    const zoom = { '+': 0.9, '=': 0.9, '-': 1.1 }[event.key];
    if (!turns && !zoom) return;
    event.preventDefault();
    const offset = this.camera.position.clone().sub(this.controls.target);
    const around = new Spherical().setFromVector3(offset);
    around.theta += turns ? turns[0] : 0;
    around.phi += turns ? turns[1] : 0;
    around.radius *= zoom || 1;
    this.camera.position.copy(this.controls.target).add(offset.setFromSpherical(around.makeSafe()));
    this.controls.update();
    this.draw();
  }

  /** A click on a frustum looks through that camera. */
  watchClicks() {
    let start;
    this.canvas.addEventListener('pointerdown', (event) => { start = [event.clientX, event.clientY]; });
    this.canvas.addEventListener('pointerup', (event) => {
      if (!start || Math.hypot(event.clientX - start[0], event.clientY - start[1]) > 4 || !this.frusta?.visible) return;
      const box = this.canvas.getBoundingClientRect();
      const at = new Vector2((event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
      const ray = new Raycaster();
      ray.setFromCamera(at.multiplyScalar(2).subScalar(1).multiply(new Vector2(1, -1)), this.camera);
      const hit = ray.intersectObjects(this.frusta.userData.views.map((view) => view.picture))[0];
      if (!hit) return;
      const { view } = hit.object.userData;
      this.look(view.position, this.bounds.getCenter(new Vector3()));
      this.dispatchEvent(new CustomEvent('pick', { detail: view.index }));
    });
  }

  fail(sentence) {
    this.dataset.state = 'failed';
    this.say(sentence);
  }

  say(sentence) {
    this.querySelector('.viewer-note')?.remove();
    const note = document.createElement('p');
    note.className = 'viewer-note';
    note.setAttribute('role', 'alert');
    note.textContent = sentence;
    note.addEventListener('click', () => note.remove());
    this.append(note);
  }
}

/** The edges of all triangles of a model, hidden at first. */
function wireframe(model) {
  const group = new Group();
  model.updateMatrixWorld(true);
  model.traverse((part) => {
    if (!part.isMesh) return;
    part.material.polygonOffset = true; // so that the lines lie on top
    part.material.polygonOffsetFactor = 1;
    part.material.polygonOffsetUnits = 1;
    const lines = part.clone();
    lines.material = new MeshBasicMaterial({ color: 0x0f766e, wireframe: true, transparent: true, opacity: 0.55 });
    lines.applyMatrix4(part.parent.matrixWorld);
    group.add(lines);
  });
  group.visible = false;
  return group;
}

/** Where the object will be: a faint box on a grid. */
function placeholder() {
  const group = new Group();
  const edges = new EdgesGeometry(new BoxGeometry(0.8, 0.8, 0.8));
  group.add(new LineSegments(edges, new LineBasicMaterial({ color: 0x94918c, transparent: true, opacity: 0.6 })));
  const grid = new GridHelper(4, 16, 0xa8a29e, 0xd6d3d1);
  grid.position.y = -0.5;
  grid.material.transparent = true;
  grid.material.opacity = 0.5;
  group.add(grid);
  return group;
}
