/** The latent to play with, `app.z`, and its image. A new input sets it to its mean, and puts what says most first. */

import { $, on, pngUrl, set, stamp } from "../dom.js";
import { byDivergence, fixed } from "../numbers.js";
import { Panel } from "../panel.js";

const FEW = 16;

export class Sliders extends Panel {
	constructor(app) {
		super("sliders", app);
		const size = app.model.latent_dim;
		this.rows = Array.from({ length: size }, (_, d) => this.#row(d));
		this.draw = this.follow(async (z) => {
			const { images } = await this.ask({ path: "/decode", body: { z: [z] } });
			$("decoded").src = pngUrl(images[0]);
		});
		this.#arrange([...this.rows.keys()]);
		on("zero", () => app.choose(new Array(size).fill(0)));
		on("mean", () => app.choose(app.posterior.value.mu));
		on("random", () => this.attempt(async () => app.choose(await this.random())));
		on("all-dimensions", () => this.#arrange(this.order), "change");
		$("all-dimensions").parentElement.hidden = size <= FEW;
		app.z.subscribe((z) => this.#show(z));
		this.kept = this.restore(app.state); // by the first posterior, which comes by itself
		app.posterior.subscribe((posterior) => this.#follow(posterior));
	}

	refresh() {
		this.draw(this.app.z.value);
	}

	restore({ z }) {
		const fits = z?.length === this.rows.length;
		if (fits) this.app.z.set(z);
		return fits;
	}

	#follow(posterior) {
		$("mean").disabled = !posterior;
		if (!posterior?.settled) return;
		if (!$("slider-rows").contains(document.activeElement)) this.#arrange(byDivergence(posterior.kl));
		if (!this.kept) {
			this.app.z.set(posterior.mu);
			this.app.remember({ z: null });
		}
		this.kept = false;
	}

	#arrange(order) {
		this.order = order;
		const shown = $("all-dimensions").checked ? order : order.slice(0, FEW);
		$("slider-rows").replaceChildren(...shown.map((d) => this.rows[d]));
	}

	/** Return the line of a dimension. Its range ends at ±3; a value beyond is kept as long as nobody moves it. */
	#row(d) {
		const row = stamp("slider-row");
		const [label, range, number] = row.children;
		set(label, { for: `z${d}` }, `z${d}`);
		set(range, { id: `z${d}` });
		set(number, { "aria-label": `z${d}, as a number` });
		row.oninput = ({ target: { validity, valueAsNumber, value } }) => {
			if (!validity.badInput && value) this.app.choose(this.app.z.value.with(d, valueAsNumber));
		};
		return row;
	}

	#show(z) {
		this.rows.forEach(({ children: [, range, number] }, d) => {
			range.value = z[d];
			range.ariaValueText = fixed(z[d]);
			if (document.activeElement !== number) number.value = z[d].toFixed(2);
		});
		this.draw(z);
	}
}
