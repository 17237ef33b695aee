/** Puts the page together: asks what is loaded, makes the panels and what they share, keeps the address up to date. */

import { Api } from "./api.js";
import { $, on } from "./dom.js";
import { formatFragment, parseFragment } from "./fragment.js";
import { quietly, signal } from "./latest.js";
import { Header } from "./panels/header.js";
import { Input } from "./panels/input.js";
import { LatentMap } from "./panels/map.js";
import { Posterior } from "./panels/posterior.js";
import { Reconstruction } from "./panels/reconstruction.js";
import { Samples } from "./panels/samples.js";
import { Sliders } from "./panels/sliders.js";
import { Interpolation, Traversal } from "./panels/walks.js";

const QUIET_MS = 400; // before a change goes into the address or is read aloud

const api = new Api(new URL("..", import.meta.url).href.slice(0, -1));
const header = new Header(api);
api.onLost = () => header.watch();
header.watch();
const model = await load();
const app = {
	api,
	model,
	input: signal(),
	posterior: signal(),
	z: signal(new Array(model.latent_dim).fill(0)), // to play with
	order: signal(), // of dimensions
	state: parseFragment(location.hash),
	say: quietly((text) => ($("live").textContent = text), QUIET_MS),

	/** Take a chosen latent. */
	choose(z, name) {
		app.z.set(z);
		app.remember({ z });
		if (name) app.say(`The sliders show ${name}.`);
	},

	remember(part) {
		const before = formatFragment(app.state);
		if (formatFragment(Object.assign(app.state, part)) !== before) write();
	},
};
const write = quietly(() => history.replaceState(null, "", `#${formatFragment(app.state)}`), QUIET_MS);
$("panels").hidden = false;
const panels = [Posterior, Reconstruction, Sliders, Samples, LatentMap, Interpolation, Traversal, Input].map((Kind) => new Kind(app));
header.onReturn = () => panels.forEach((panel) => panel.refresh?.());
api.onDigest = (digest) => ($("other-weights").hidden = !digest || digest === model.digest);
on("reload", () => location.reload());
window.addEventListener("hashchange", () => panels.forEach((panel) => panel.restore?.(parseFragment(location.hash))));

/** Return what is loaded, when the service is there and has the key that it wants. */
async function load() {
	try {
		const loaded = await api.send({ path: "/model" });
		header.show(loaded);
		return loaded;
	} catch (error) {
		if (error.status === 401) await header.askForKey(error.message);
		else await new Promise((resolve) => setTimeout(resolve, error.retryMs || 1000));
		return load();
	}
}
