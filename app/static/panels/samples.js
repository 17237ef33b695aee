/** New images from the prior: the same fields give the same images, here and everywhere. */

import { $, gallery, h, on } from "../dom.js";
import { isSeed } from "../fragment.js";
import { fixed } from "../numbers.js";
import { Panel } from "../panel.js";

const MOST = 256;

export class Samples extends Panel {
	constructor(app) {
		super("samples", app);
		this.draw = this.follow((request) => this.#draw(request));
		this.most = $("n").max = Math.min(MOST, app.model.limits.max_items);
		this.restore(app.state);
		on("sample-form", () => this.#changed(), "input");
		on("sample-form", () => $("sample-form").reportValidity(), "change");
		on("sample-form", (event) => event.preventDefault(), "submit");
		on("reroll", () => {
			$("seed").value = Math.floor(Math.random() * 2 ** 32);
			this.#changed();
		});
		for (const format of ["png", "npy"]) on(`save-${format}`, () => this.#save(format));
	}

	refresh() {
		this.draw(this.#request());
	}

	restore(state) {
		for (const id of ["n", "temperature", "seed"]) $(id).value = state[id];
		$("n").value = Math.min(state.n, this.most);
		this.#changed();
	}

	#changed() {
		const { valueAsNumber: temperature } = $("temperature");
		$("temperature-value").textContent = fixed(temperature);
		const wrong = isSeed($("seed").value) ? "" : "A seed is a whole number from 0 to 9223372036854775807.";
		$("seed").setCustomValidity(wrong);
		if (!$("sample-form").checkValidity()) return;
		this.app.remember({ n: $("n").valueAsNumber, temperature, seed: $("seed").value });
		this.refresh();
	}

	#request(format = {}) {
		return { path: "/sample", query: { ...Object.fromEntries(new FormData($("sample-form"))), ...format } };
	}

	async #draw(request) {
		const { images, z } = await this.ask(request);
		const name = (i) => `Sample ${i + 1}`;
		gallery($("sample-grid"), images, name, (i) => this.app.choose(z[i], name(i)));
	}

	/** Fetch a file and hand it over; a plain link could not carry a key. */
	#save(format) {
		const request = this.#request({ format });
		return this.attempt(async () => {
			const href = URL.createObjectURL(await this.ask(request));
			h("a", { href, download: `samples-seed-${request.query.seed}.${format}` }).click();
			setTimeout(() => URL.revokeObjectURL(href), 10_000);
		});
	}
}
