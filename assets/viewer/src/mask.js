// <studio-mask photo="address" mask="address">: paint what belongs to the object. `mask` is a picture whose alpha is
// the present cut-out. "Apply" sends the event "act" with {act: "mask", id, png: data URL}, white where the object is;
// "Close" sends {act: "close"}. The id is that of data-photo.
const SIDE = 768; // pixels of the longer side of the mask that is painted

export class MaskEditor extends HTMLElement {
  async connectedCallback() {
    if (this.childElementCount) return;
    this.dataset.state = 'loading';
    this.innerHTML = `
      <div class="mask-bar">
        <fieldset><legend>Brush</legend>
          <label><input type="radio" name="mask-tool" value="add" checked>Add to the object</label>
          <label><input type="radio" name="mask-tool" value="erase">Take away</label>
        </fieldset>
        <label class="mask-size">Size <input type="range" min="4" max="120" value="36" aria-label="Brush size"></label>
        <button type="button" class="mask-apply primary">Apply</button>
        <button type="button" class="mask-close">Close</button>
      </div>
      <canvas aria-label="The photo; paint over it with the brush" role="img"></canvas>`;
    this.canvas = this.querySelector('canvas');
    const [photo, cut] = await Promise.all([load(this.getAttribute('photo')), load(this.getAttribute('mask'))]);
    const scale = Math.min(1, SIDE / Math.max(photo.naturalWidth, photo.naturalHeight));
    this.canvas.width = Math.round(photo.naturalWidth * scale);
    this.canvas.height = Math.round(photo.naturalHeight * scale);
    this.photo = photo;
    this.mask = document.createElement('canvas');
    Object.assign(this.mask, { width: this.canvas.width, height: this.canvas.height });
    this.pen = this.mask.getContext('2d', { willReadFrequently: true });
    this.pen.drawImage(cut, 0, 0, this.mask.width, this.mask.height);
    this.pen.globalCompositeOperation = 'source-in'; // keep its alpha, forget its colours
    this.pen.fillStyle = '#fff';
    this.pen.fillRect(0, 0, this.mask.width, this.mask.height);
    this.watch();
    this.paint();
    this.dataset.state = 'ready';
  }

  watch() {
    let last = null;
    const at = (event) => {
      const box = this.canvas.getBoundingClientRect();
      return [((event.clientX - box.left) / box.width) * this.canvas.width,
        ((event.clientY - box.top) / box.height) * this.canvas.height];
    };
    this.canvas.addEventListener('pointerdown', (event) => {
      this.canvas.setPointerCapture(event.pointerId);
      last = at(event);
      this.stroke(last, last);
    });
    this.canvas.addEventListener('pointermove', (event) => {
      if (!last) return;
      const now = at(event);
      this.stroke(last, now);
      last = now;
    });
    this.canvas.addEventListener('pointerup', () => { last = null; });
    const tell = (detail) => this.dispatchEvent(new CustomEvent('act', { bubbles: true, detail }));
    const id = this.dataset.photo;
    this.querySelector('.mask-apply').addEventListener('click', () => tell({ act: 'mask', id, png: this.result() }));
    this.querySelector('.mask-close').addEventListener('click', () => tell({ act: 'close' }));
  }

  stroke(from, to) {
    const erase = this.querySelector('[name=mask-tool]:checked').value === 'erase';
    this.pen.globalCompositeOperation = erase ? 'destination-out' : 'source-over';
    this.pen.lineWidth = Number(this.querySelector('[type=range]').value);
    this.pen.lineCap = 'round';
    this.pen.strokeStyle = '#fff';
    this.pen.beginPath();
    this.pen.moveTo(...from);
    this.pen.lineTo(...to);
    this.pen.stroke();
    this.paint();
  }

  /** The photograph, with what does not belong to the object paled. */
  paint() {
    const view = this.canvas.getContext('2d');
    const { width, height } = this.canvas;
    view.globalCompositeOperation = 'source-over';
    view.clearRect(0, 0, width, height);
    view.drawImage(this.mask, 0, 0);
    view.globalCompositeOperation = 'source-in';
    view.drawImage(this.photo, 0, 0, width, height);
    view.globalCompositeOperation = 'destination-over';
    view.globalAlpha = 0.2;
    view.drawImage(this.photo, 0, 0, width, height);
    view.globalAlpha = 1;
    view.fillStyle = '#f5f3ef';
    view.fillRect(0, 0, width, height);
  }

  /** White on black. */
  result() {
    const out = document.createElement('canvas');
    Object.assign(out, { width: this.mask.width, height: this.mask.height });
    const pen = out.getContext('2d');
    pen.fillRect(0, 0, out.width, out.height);
    pen.drawImage(this.mask, 0, 0);
    return out.toDataURL('image/png');
  }
}

async function load(address) {
  const image = new Image();
  image.src = address;
  await image.decode();
  return image;
}
