/** Walks through latent space: from A to B, and along each dimension. */

import { $, gallery, h, on, pngUrl } from "../dom.js";
import { byDivergence, fixed } from "../numbers.js";
import { Panel } from "../panel.js";

const FIRST_END = 8; // the seed of the sample where the first way ends
const FRAME_MS = 140;
const FEW = 12;
const [low, high, steps] = [-3, 3, 7];

/** It begins at the input until somebody says otherwise. */
export class Interpolation extends Panel {
	constructor(app) {
		super("interpolation", app);
		this.refresh = this.lazily(() => this.#draw());
		this.step = 1;
		for (const end of ["from", "to"]) {
			on(`${end}-z`, () => this.#set(end, app.z.value));
			on(`${end}-random`, () => this.attempt(async () => this.#set(end, await this.random())));
		}
		on("walk-form", () => $("walk-form").reportValidity() && this.refresh(), "input");
		on("walk-form", (event) => event.preventDefault(), "submit");
		on("play", () => this.#play());
		app.posterior.subscribe((posterior) => {
			if (!posterior?.settled || this.moved) return;
			this.from = posterior.mu;
			this.refresh();
		});
	}

	#set(end, z) {
		this.moved ||= end === "from";
		this[end] = z;
		this.refresh();
	}

	async #draw() {
		this.from ??= this.app.z.value;
		this.to ??= await this.random(FIRST_END);
		const body = { from: this.from, to: this.to, steps: $("steps").valueAsNumber, path: $("path").value };
		const { images, z } = await this.ask({ path: "/interpolate", body });
		this.images = images;
		gallery($("strip"), images, (i) => `Step ${i + 1}`, (i) => {
			this.#show(i);
			this.app.choose(z[i], `step ${i + 1}`);
		});
		this.#show(0);
	}

	#show(i) {
		this.at = i;
		$("frame").src = pngUrl(this.images[i]);
		[...$("strip").children].forEach((cell, j) => cell.classList.toggle("now", i === j));
	}

	#play() {
		if (!this.images) return;
		clearInterval(this.timer);
		this.timer = this.timer ? null : setInterval(() => {
			const last = this.images.length - 1;
			if (this.at >= last) this.step = -1;
			if (!this.at) this.step = 1;
			this.#show(this.at + this.step);
		}, FRAME_MS);
		$("play").textContent = this.timer ? "Stop" : "Play";
	}
}

/** Rows of images in which one dimension goes from -3 to 3, the rest staying at z. */
export class Traversal extends Panel {
	constructor(app) {
		super("traversal", app);
		this.refresh = this.lazily(() => this.#draw());
		on("all-rows", this.refresh, "change");
		$("all-rows").parentElement.hidden = app.model.latent_dim <= FEW;
		app.z.subscribe(this.refresh);
		app.order.subscribe(this.refresh);
	}

	async #draw() {
		const { z: { value: z }, order, posterior } = this.app;
		const dims = order.value ?? byDivergence(posterior.value?.kl ?? z);
		const body = { z, dims: dims.slice(0, $("all-rows").checked ? dims.length : FEW), low, high, steps };
		const answer = await this.ask({ path: "/traverse", body });
		const dim = (i) => answer.dims[Math.floor(i / steps)];
		const name = (i) => `z${dim(i)} = ${fixed(answer.values[i % steps])}`;
		gallery($("traversal-grid"), answer.images, name, (i) => this.app.choose(answer.z[i], name(i)));
		$("traversal-rows").replaceChildren(...answer.dims.map((d) => h("span", {}, `z${d}`)));
		[...$("traversal-grid").children].forEach((cell, i) => {
			cell.classList.toggle("now", Math.abs(answer.values[i % steps] - z[dim(i)]) < (high - low) / (steps - 1) / 2);
		});
	}
}
