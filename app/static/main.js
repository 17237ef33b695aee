/**
 * Puts the page together: asks what is loaded, makes the panels, keeps the address up to date.
 *
 * `app` is what panels share: the way to the service, what it says of its model, the signals by which they hear of each
 * other, and the state that the address holds.
 */

import { Api } from "./api.js";
import { $ } from "./dom.js";
import { formatFragment, parseFragment } from "./fragment.js";
import { signal } from "./latest.js";
import { Header } from "./panels/header.js";
import { InputPanel } from "./panels/input.js";
import { PosteriorPanel } from "./panels/posterior.js";
import { ReconstructionPanel } from "./panels/reconstruction.js";
import { SamplesPanel } from "./panels/samples.js";
import { SlidersPanel } from "./panels/sliders.js";

const QUIET_MS = 400; // after the last change, before it goes into the address or is read aloud

const api = new Api(new URL("..", import.meta.url).href.slice(0, -1));
const header = new Header(api);
api.onLost = () => header.watch();
header.watch();
const app = {
  api,
  model: await load(),
  input: signal(null),
  posterior: signal(null),
  state: parseFragment(location.hash),
  say: quietly((text) => ($("live").textContent = text)),
  remember(part) {
    const before = formatFragment(app.state);
    Object.assign(app.state, part);
    if (formatFragment(app.state) !== before) write();
  },
};
const write = quietly(() => history.replaceState(null, "", `#${formatFragment(app.state)}`));
const panels = assemble();
header.onReturn = () => panels.forEach((panel) => panel.refresh?.());
api.onDigest = (digest) => ($("other-weights").hidden = !digest || digest === app.model.digest);
$("reload").addEventListener("click", () => location.reload());
window.addEventListener("hashchange", () => {
  panels.forEach((panel) => panel.restore?.(parseFragment(location.hash)));
});

/** Make the panels; each hears of an input before the one after it. */
function assemble() {
  $("panels").hidden = false;
  new PosteriorPanel(app);
  new ReconstructionPanel(app);
  const sliders = new SlidersPanel(app);
  const samples = new SamplesPanel(app, (z, name) => {
    sliders.choose(z);
    app.say(`The sliders show ${name}.`);
  });
  const input = new InputPanel(app);
  input.refresh();
  return [input, sliders, samples];
}

/** Return what is loaded; waits as long as the service is not there, and for a key where it wants one. */
async function load() {
  for (;;) {
    try {
      const model = await api.send({ method: "GET", path: "/model" });
      header.show(model);
      return model;
    } catch (error) {
      if (error.status === 401) await header.askForKey(error.message);
      else await new Promise((resolve) => setTimeout(resolve, error.retryMs || 1000));
    }
  }
}

/** Return a function that does `work` with the last value, once no other has come for a moment. */
function quietly(work) {
  let timer;
  return (value) => {
    clearTimeout(timer);
    timer = setTimeout(work, QUIET_MS, value);
  };
}
