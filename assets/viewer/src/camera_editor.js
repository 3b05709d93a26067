// <studio-camera-editor>: sets the cameras of photographs by hand, beside the studio-viewer of the same section.
//
//   photos   address of the folder of the pictures that transforms.json names
//   masks    "beside" if each picture has its mask beside it (000.jpg, 000-mask.png); else its alpha is the mask
//   found    JSON: per photograph the frame that was found, null where it is that of the viewer's transforms.json
//   edited   JSON: per photograph the frame that was set by hand, or null
//
// Whenever a camera has been set it sends the event "act" with {act: "cameras", frames: JSON, at: milliseconds}, frames
// shaped like `edited`. Elements of the section with data-act send the same two along: whoever hears them hears of every
// camera set before, in whatever order the messages arrive.
// Elements of the section with data-edit="2" choose a photograph (the third). The picture shows the photograph with the
// outline of what its camera sees: the model, or the room that the other photographs leave for it.
import { colorOfTrust } from './frusta.js';
import { HullOutlines, MeshOutlines, SIDE, agreement } from './outlines.js';
import { PARAMETERS, frameOf, framesOf, parametersOf } from './pose.js';

const PICTURE = 480; // pixels of the picture's side
const KEPT = 50; // steps that can be undone after the panel has been drawn anew
const BRIGHT = '#ffffff', DARK = '#0f766e';

export class CameraEditor extends HTMLElement {
  connectedCallback() {
    if (this.section) return; // moved, not new
    this.section = this.closest('section');
    this.viewer = this.section.querySelector('studio-viewer');
    this.dataset.state = 'loading';
    this.index = 0;
    this.section.addEventListener('click', ({ target }) => {
      this.chosenOutside(target.closest('[data-edit]'));
      const act = target.closest('[data-act]');
      if (act && this.dataset.state === 'ready') Object.assign(act.dataset, this.message());
    });
    const begin = () => this.begin().catch((error) => {
      this.dataset.state = 'failed';
      this.textContent = `The cameras cannot be edited: ${error.message || error}`;
    });
    if (this.viewer.dataset.state === 'ready') begin();
    else this.viewer.addEventListener('ready', begin, { once: true });
  }

  disconnectedCallback() {
    queueMicrotask(() => { if (!this.isConnected) this.outlines?.dispose(); });
  }

  async begin() {
    const frames = framesOf(this.viewer.record);
    const read = (name) => JSON.parse(this.getAttribute(name) || '[]');
    const [found, edited] = [read('found'), read('edited')];
    this.found = frames.map((frame, index) => found[index] || frame);
    this.frames = this.found.map((frame, index) => edited[index] || frame);
    this.isEdited = this.frames.map((_, index) => Boolean(edited[index]));
    this.past = this.recalled();
    await this.loadPictures(frames.map((frame) => frame.file_path));
    this.outlines = this.viewer.surface ? new MeshOutlines(this.viewer) : new HullOutlines(this.alphas);
    this.frames.forEach((frame, index) => this.outlines.place(index, frame));
    this.build();
    this.frames.forEach((frame, index) => this.views[index].place(frame));
    this.viewer.addEventListener('pick', (event) => this.choose(event.detail));
    this.choose(this.index);
    this.markEdited();
    this.dataset.state = 'ready';
  }

  get views() {
    return this.viewer.frusta.userData.views;
  }

  async loadPictures(paths) {
    const folder = this.getAttribute('photos') || '';
    const load = async (path) => {
      const image = new Image();
      image.src = folder + path;
      await image.decode();
      return image;
    };
    this.pictures = await Promise.all(paths.map(load));
    const beside = this.getAttribute('masks') === 'beside';
    const masks = beside ? await Promise.all(paths.map((path) => load(path.replace(/\.\w+$/, '-mask.png')))) : this.pictures;
    // A mask is grey; where a picture's alpha is the mask, there is nothing else to read it from.
    this.alphas = masks.map((mask) => channelOf(mask, beside ? 0 : 3));
  }

  build() {
    const rows = PARAMETERS.map(({ key, label, term, unit, step }, index) => `
      <div class="camera-row"><label for="${this.name(key)}">${label} <span>${term}</span></label>
        <input type="range" id="${this.name(key)}" data-key="${key}" step="${step}">
        <span class="camera-number"><input type="number" data-key="${key}" step="${Math.min(step, 0.1)}"
          aria-label="${label} (${term})">${unit}</span>
        <span class="camera-found" data-found="${index}"></span></div>`).join('');
    const numbers = this.frames.map((_, index) => `
      <label><input type="radio" name="${this.name('photo')}" value="${index}"
        aria-label="Photo ${index + 1}">${index + 1}</label>`).join('');
    this.innerHTML = `
      <fieldset class="camera-choice"><legend>Photo</legend>${numbers}</fieldset>
      <div class="camera-work">
        <figure><canvas width="${PICTURE}" height="${PICTURE}" role="img"></canvas><figcaption></figcaption></figure>
        <div class="camera-rows">${rows}
          <div class="camera-bar"><button type="button" data-do="undo">Undo</button>
            <button type="button" data-do="reset">Reset this photo</button>
            <button type="button" data-do="all">Reset all</button></div>
        </div>
      </div>`;
    this.canvas = this.querySelector('canvas');
    this.caption = this.querySelector('figcaption');
    this.querySelectorAll('[type=radio]').forEach((radio) => {
      radio.addEventListener('change', () => this.choose(Number(radio.value)));
    });
    this.querySelectorAll('.camera-row input').forEach((input) => {
      input.addEventListener('input', () => this.moved(input));
      input.addEventListener('change', () => this.settled());
    });
    const acts = { undo: () => this.undo(), reset: () => this.reset([this.index]), all: () => this.reset() };
    Object.entries(acts).forEach(([name, act]) => this.button(name).addEventListener('click', act));
  }

  button(name) {
    return this.querySelector(`[data-do=${name}]`);
  }

  /** An id within the page. */
  name(part) {
    return `${this.viewer.id}-${part}`;
  }

  chosenOutside(source) {
    if (!source) return;
    const folded = this.closest('details');
    if (folded) folded.open = true;
    this.index = Number(source.dataset.edit);
    if (this.canvas) {
      this.choose(this.index);
      this.querySelector('[type=radio]:checked').focus({ preventScroll: true });
    }
    this.scrollIntoView({ behavior: 'smooth', block: 'nearest' });
  }

  choose(index) {
    this.index = index;
    this.querySelector(`[type=radio][value="${index}"]`).checked = true;
    this.views.forEach((view, other) => view.choose(other === index));
    this.refresh();
  }

  /** Show the chosen photograph's camera in every control. */
  refresh() {
    this.parameters = parametersOf(this.frames[this.index]);
    const found = parametersOf(this.found[this.index]);
    PARAMETERS.forEach(({ key, low, high, step }, row) => {
      const value = this.parameters[key];
      this.querySelectorAll(`[data-key=${key}]`).forEach((input) => {
        // A camera may have been found beyond what anybody would choose.
        Object.assign(input, { min: Math.min(low, Math.floor(found[key])), max: Math.max(high, Math.ceil(found[key])) });
        input.value = shown(value, step);
      });
      const same = Math.abs(value - found[key]) < step / 2;
      this.querySelector(`[data-found="${row}"]`).textContent = same ? '' : `found: ${shown(found[key], step)}`;
    });
    this.button('undo').disabled = !this.past.length;
    this.button('reset').disabled = !this.isEdited[this.index];
    this.button('all').disabled = !this.isEdited.some(Boolean);
    this.draw();
  }

  /** A control is being moved: everything follows, nothing is kept yet. */
  moved(input) {
    const value = Number(input.value);
    if (input.value === '' || !(value >= Number(input.min) && value <= Number(input.max))) return;
    this.held ||= this.state();
    this.parameters[input.dataset.key] = value;
    this.querySelectorAll(`[data-key=${input.dataset.key}]`).forEach((other) => {
      if (other !== input) other.value = input.value;
    });
    this.place(this.index, frameOf(this.parameters, this.found[this.index]), true);
    this.draw();
  }

  /** A control has been let go. */
  settled() {
    if (this.held) {
      this.past.push(this.held);
      this.held = null;
      this.tell();
    }
    this.refresh(); // puts a number that is out of range right
  }

  /** `edited`: per photograph the frame that was set by hand, or null. */
  state() {
    return { index: this.index, edited: this.edited() };
  }

  edited() {
    return this.frames.map((frame, index) => (this.isEdited[index] ? frame : null));
  }

  // What can be undone outlives the element, which is made anew whenever its panel is drawn again.
  get memory() {
    return `camera-undo-${this.viewer.id}`;
  }

  /** Tells these cameras from others. */
  get identity() {
    return this.found.map((frame) => frame.transform_matrix.flat().map((value) => value.toFixed(4)).join()).join(';');
  }

  remember() {
    const kept = { identity: this.identity, isEdited: this.isEdited, past: this.past.slice(-KEPT) };
    try {
      sessionStorage.setItem(this.memory, JSON.stringify(kept));
    } catch { /* forbidden or full: the list then lasts as long as the element */ }
  }

  recalled() {
    try {
      const { identity, isEdited, past } = JSON.parse(sessionStorage.getItem(this.memory));
      // Other cameras, or the same after the edits were dropped, have no such past.
      return identity === this.identity && String(isEdited) === String(this.isEdited) ? past : [];
    } catch {
      return [];
    }
  }

  place(index, frame, isEdited) {
    this.frames[index] = frame;
    this.isEdited[index] = isEdited;
    this.outlines.place(index, frame);
    this.views[index].place(frame);
    this.viewer.draw();
  }

  undo() {
    const { index, edited } = this.past.pop();
    edited.forEach((frame, k) => {
      if (frame || this.isEdited[k]) this.place(k, frame || this.found[k], Boolean(frame));
    });
    this.tell();
    this.choose(index);
  }

  reset(indices = this.frames.map((_, index) => index)) {
    this.past.push(this.state());
    indices.forEach((index) => this.place(index, this.found[index], false));
    this.tell();
    this.refresh();
  }

  tell() {
    this.markEdited();
    this.remember();
    this.dispatchEvent(new CustomEvent('act', { bubbles: true, detail: { act: 'cameras', ...this.message() } }));
  }

  message() {
    return { frames: JSON.stringify(this.edited()), at: String(Date.now()) };
  }

  /** What else in the section depends on the cameras: the numbers of edited photographs, colours, trust. */
  markEdited() {
    this.querySelectorAll('.camera-choice label').forEach((label, index) => {
      label.classList.toggle('edited', this.isEdited[index]);
      label.title = this.isEdited[index] ? 'Set by hand' : '';
    });
    if (this.viewer.surface) return;
    const chips = this.section.querySelectorAll('.view-cards .trust');
    this.frames.forEach((_, index) => {
      const score = this.outlines.score(index);
      if (score === null) return;
      this.views[index].paint(colorOfTrust(score));
      if (chips.length === this.frames.length) showTrust(chips[index], score);
    });
    this.viewer.draw();
  }

  draw() {
    if (this.due) return;
    this.due = true;
    requestAnimationFrame(() => {
      this.due = false;
      if (!this.isConnected) return;
      const seen = this.outlines.seen(this.index, this.frames[this.index]);
      paint(this.canvas, this.pictures[this.index], seen);
      const line = this.viewer.surface
        ? `Line: the model as this camera sees it. Outlines agree: ${percent(agreement(seen, this.alphas[this.index]))}.`
        : 'Line: the room that the other photos leave. Where it cuts into the object, a camera is wrong.';
      this.caption.textContent = line;
      this.canvas.setAttribute('aria-label', `Photo ${this.index + 1}. ${line}`);
    });
  }
}

function percent(share) {
  return `${Math.round(100 * share)}%`;
}

function shown(value, step) {
  return String(Number(value.toFixed(step < 0.1 ? 2 : 1)));
}

/** The same words as in studio/pages/cameras.py. */
function showTrust(chip, score) {
  const [word, kind] = score >= 0.66 ? ['Fits', 'sure'] : score >= 0.33 ? ['Doubtful', 'doubt'] : ['Wrong?', 'wrong'];
  chip.className = `trust ${kind}`;
  chip.querySelector('i').style.width = percent(score);
  chip.lastChild.textContent = `${word} ${percent(score)}`;
}

/** One channel of a picture, SIDE rows of SIDE. */
function channelOf(image, channel) {
  const canvas = square(SIDE);
  const pen = canvas.getContext('2d', { willReadFrequently: true });
  pen.drawImage(image, 0, 0, SIDE, SIDE);
  const { data } = pen.getImageData(0, 0, SIDE, SIDE);
  return Uint8ClampedArray.from({ length: SIDE * SIDE }, (_, k) => data[4 * k + channel]);
}

/** The photograph, and a bright and a dark line around what is seen. */
function paint(canvas, photo, seen) {
  const pen = canvas.getContext('2d');
  pen.clearRect(0, 0, PICTURE, PICTURE);
  pen.drawImage(photo, 0, 0, PICTURE, PICTURE);
  const mask = square(SIDE);
  const image = new ImageData(SIDE, SIDE);
  seen.forEach((value, k) => { image.data[4 * k + 3] = value; });
  mask.getContext('2d').putImageData(image, 0, 0);
  for (const [width, color] of [[4, BRIGHT], [2, DARK]]) {
    const line = square(PICTURE);
    const inner = line.getContext('2d');
    for (let k = 0; k < 12; k++) {
      const angle = (k * Math.PI) / 6;
      inner.drawImage(mask, width * Math.cos(angle), width * Math.sin(angle), PICTURE, PICTURE);
    }
    inner.globalCompositeOperation = 'destination-out';
    inner.drawImage(mask, 0, 0, PICTURE, PICTURE);
    inner.globalCompositeOperation = 'source-in';
    inner.fillStyle = color;
    inner.fillRect(0, 0, PICTURE, PICTURE);
    pen.drawImage(line, 0, 0);
  }
}

function square(side) {
  const canvas = document.createElement('canvas');
  canvas.width = canvas.height = side;
  return canvas;
}
