// The custom elements of the studio's page, each written into HTML by Python and in need of nothing else from the page;
// and a patient ear for the server's answers.
import { Viewer } from './viewer.js';
import { Slider } from './slider.js';
import { Wall } from './wall.js';
import { MaskEditor } from './mask.js';
import { CameraEditor } from './camera_editor.js';
import { fetchForGradio } from './calls.js';

customElements.define('studio-viewer', Viewer);
customElements.define('studio-slider', Slider);
customElements.define('studio-wall', Wall);
customElements.define('studio-mask', MaskEditor);
customElements.define('studio-camera-editor', CameraEditor);

window.fetch = fetchForGradio;
