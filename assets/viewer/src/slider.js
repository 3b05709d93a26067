// <studio-slider before="address" after="address" before-label="" after-label="">: two pictures, one uncovering the
// other. The control is a range input, so it can be dragged, touched and moved by arrow keys.
export class Slider extends HTMLElement {
  connectedCallback() {
    if (this.childElementCount) return;
    const name = (side) => this.getAttribute(`${side}-label`) || side;
    const picture = (side) => {
      const image = document.createElement('img');
      image.src = this.getAttribute(side);
      image.alt = name(side);
      image.className = side;
      image.draggable = false;
      return image;
    };
    const caption = (side) => {
      const text = document.createElement('span');
      text.className = `caption ${side}`;
      text.textContent = name(side);
      return text;
    };
    const range = document.createElement('input');
    Object.assign(range, { type: 'range', min: 0, max: 100, value: 50 });
    range.setAttribute('aria-label', `How much of "${name('before')}" is shown over "${name('after')}"`);
    const place = () => this.style.setProperty('--at', `${range.value}%`);
    range.addEventListener('input', place);
    const line = document.createElement('i');
    this.append(picture('after'), picture('before'), line, caption('before'), caption('after'), range);
    place();
  }
}
