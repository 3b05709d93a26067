// The controls of a viewer: plain form elements, so that keyboard and screen reader work as everywhere.

import { isWhole } from './environments.js';

let groups = 0; // names of radio groups must differ between the viewers of a page

export function toolbar(viewer) {
  const bar = document.createElement('div');
  bar.className = 'viewer-bar';
  const looks = [['surface', 'Surface', viewer.surface], ['wireframe', 'Wireframe', viewer.surface],
    ['splats', 'Splats', viewer.splats]].filter(([, , there]) => there);
  if (looks.length > 1) bar.append(choice('Show', looks, (look) => viewer.show(look)));
  if (viewer.surface && viewer.lights.length) {
    const lights = viewer.lights.map(([name], index) => [index, name]);
    const set = choice('Light', lights, (index) => viewer.light(Number(index)));
    set.append(ownLight(viewer));
    bar.append(set);
  }
  if (viewer.frusta && viewer.surface) bar.append(check('Cameras', viewer.frusta.visible, (on) => viewer.showCameras(on)));
  const end = document.createElement('div');
  end.className = 'viewer-end';
  end.append(
    button('Reset view', 'M4 4v5h5M4.6 9A8 8 0 1 1 4 14', () => viewer.home()),
    button('Full screen', 'M4 9V4h5M15 4h5v5M20 15v5h-5M9 20H4v-5', () => toggleFullScreen(viewer)),
  );
  bar.append(end);
  return bar;
}

function choice(title, options, chosen) {
  const set = document.createElement('fieldset');
  const legend = document.createElement('legend');
  legend.textContent = title;
  set.append(legend);
  const name = `viewer-choice-${groups++}`;
  options.forEach(([value, text], index) => {
    const label = document.createElement('label');
    const input = document.createElement('input');
    Object.assign(input, { type: 'radio', name, value, checked: index === 0 });
    input.addEventListener('change', () => {
      set.querySelector('.own')?.classList.remove('on');
      chosen(value);
    });
    label.append(input, text);
    set.append(label);
  });
  return set;
}

/** An HDR file of the visitor's; it does not leave the browser. */
function ownLight(viewer) {
  const label = document.createElement('label');
  label.className = 'own';
  label.title = 'Light the model by an equirectangular .hdr file of yours';
  const input = document.createElement('input');
  Object.assign(input, { type: 'file', accept: '.hdr', className: 'own-light' });
  input.addEventListener('change', async () => {
    if (!input.files.length) return;
    const [file] = input.files;
    viewer.lights.push(['Own', URL.createObjectURL(file)]);
    try {
      if (!isWhole(await file.arrayBuffer())) throw new Error('rows are missing');
      await viewer.light(viewer.lights.length - 1);
      label.closest('fieldset').querySelectorAll('[type=radio]').forEach((radio) => { radio.checked = false; });
      label.classList.add('on');
    } catch {
      viewer.lights.pop();
      viewer.say('That is no light: an equirectangular Radiance file (.hdr) is needed.');
    }
    input.value = ''; // so that the same file can be tried again
  });
  label.append(input, 'Own light');
  return label;
}

function check(text, checked, changed) {
  const label = document.createElement('label');
  label.className = 'viewer-check';
  const input = document.createElement('input');
  Object.assign(input, { type: 'checkbox', checked });
  input.addEventListener('change', () => changed(input.checked));
  label.append(input, text);
  return label;
}

function toggleFullScreen(viewer) {
  if (document.fullscreenElement) document.exitFullscreen();
  else viewer.requestFullscreen();
}

function button(title, path, pressed) {
  const element = document.createElement('button');
  Object.assign(element, { type: 'button', title });
  element.innerHTML = `<svg viewBox="0 0 24 24" width="16" height="16" aria-hidden="true" fill="none"
    stroke="currentColor" stroke-width="2" stroke-linecap="round" stroke-linejoin="round"><path d="${path}"/></svg>`;
  element.setAttribute('aria-label', title);
  element.addEventListener('click', pressed);
  return element;
}
