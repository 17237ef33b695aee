/** What the model keeps of the input, what it loses, and how likely it finds it. */

import { $ } from "../dom.js";
import { fixed, percent } from "../numbers.js";
import { Panel } from "../panel.js";
import { decodePng, paint, pixels } from "../picture.js";

const SCORE = { samples: 64, seed: "0" }; // seeded, so that a picture always has the same score
const FIELDS = ["log_likelihood", "standard_error", "elbo", "kl", "bits_per_dim", "percentile"];
const [ADDED, LOST] = [[230, 159, 0], [86, 180, 233]]; // Okabe-Ito orange and sky blue, both clear on black

export class Reconstruction extends Panel {
	constructor(app) {
		super("reconstruction", app);
		app.input.subscribe(this.follow((input) => this.#update(input)));
	}

	async #update(input) {
		this.section.classList.toggle("empty", !input);
		if (!input) return;
		$("scores").classList.toggle("stale", !input.settled);
		const { images } = await this.askAbout(input.png, "/reconstruct");
		this.#showPictures(input.data, await decodePng(images[0]));
		if (input.settled) this.#showScore(await this.askAbout(input.png, "/score", SCORE));
	}

	#showPictures(data, image) {
		const { image: shape, image: { channels, height, width } } = this.app.model;
		const context = Object.assign($("reconstructed"), { height, width }).getContext("2d");
		context.drawImage(image, 0, 0);
		const kept = pixels(context.getImageData(0, 0, width, height), channels);
		paint($("original"), shape, data);
		paint($("difference"), { ...shape, channels: 3 }, difference(data, kept, channels));
	}

	#showScore(score) {
		for (const name of FIELDS) $(name).textContent = fixed(score[name][0], name === "bits_per_dim" ? 3 : 2);
		const [share] = score.percentile;
		$("verdict").textContent = `${share < 1 ? "Very unusual" : share < 5 ? "Unusual" : "Not unusual"} among held-out images.`;
		$("percentile-mark").setAttribute("x", percent(share, 0, 100));
		this.app.say(`ELBO ${fixed(score.elbo[0])} nats, percentile ${fixed(share)}`);
	}
}

/** Return where `b` is above (`ADDED`) or below (`LOST`) `a`, as RGB on black. */
function difference(a, b, channels) {
	return Uint8Array.from({ length: (a.length / channels) * 3 }, (_, i) => {
		let change = 0;
		for (let c = 0; c < channels; c++) change += b[Math.floor(i / 3) * channels + c] - a[Math.floor(i / 3) * channels + c];
		return (Math.abs(change) / channels / 255) * (change > 0 ? ADDED : LOST)[i % 3];
	});
}
