// The custom elements of the studio's page. Each is written into HTML by Python and needs nothing else from the page.
import { Viewer } from './viewer.js';
import { Slider } from './slider.js';
import { Wall } from './wall.js';
import { MaskEditor } from './mask.js';
import { CameraEditor } from './camera_editor.js';

customElements.define('studio-viewer', Viewer);
customElements.define('studio-slider', Slider);
customElements.define('studio-wall', Wall);
customElements.define('studio-mask', MaskEditor);
customElements.define('studio-camera-editor', CameraEditor);
