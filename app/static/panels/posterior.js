/** q(z|x) of the input, dimensions of most KL first. `app.posterior` holds its `{mu, sigma, kl, settled}`, or null. */

import { $, copyButton, h, on, set, stamp } from "../dom.js";
import { byDivergence, fixed, INACTIVE_NATS, percent } from "../numbers.js";
import { Panel } from "../panel.js";

const FULL_BAR_NATS = 4; // at least

const shade = (kl) => (kl < INACTIVE_NATS ? "inactive" : "");

export class Posterior extends Panel {
	constructor(app) {
		super("posterior", app);
		this.rows = Array.from({ length: app.model.latent_dim }, () => stamp("posterior-row"));
		$("posterior-rows").append(...this.rows);
		on("posterior-view", () => this.#switch());
		$("posterior-view").after(copyButton("Copy JSON", () => JSON.stringify(this.shown)));
		app.input.subscribe(this.follow((input) => this.#update(input)));
	}

	async #update(input) {
		this.section.classList.toggle("empty", !input);
		if (!input) return this.app.posterior.set(null);
		const seed = this.app.model.prior !== "standard_normal" && { seed: "0" }; // a learned one takes draws
		const asked = [this.askAbout(input.png, "/encode"), this.askAbout(input.png, "/kl", seed)];
		const [encoded, divergence] = await Promise.all(asked);
		const { mu: [mu], sigma: [sigma] } = encoded;
		const normal = (m, d) => (m * m + sigma[d] ** 2 - 1) / 2 - Math.log(sigma[d]);
		this.shown = { mu, sigma, kl: divergence.per_dimension?.[0] ?? mu.map(normal) };
		this.#show(divergence.kl[0]);
		this.app.posterior.set({ ...this.shown, settled: input.settled });
	}

	#show(total) {
		const { mu, sigma, kl } = this.shown;
		const order = byDivergence(kl);
		const full = Math.max(FULL_BAR_NATS, kl[order[0]]);
		order.forEach((d, i) => show(this.rows[i], d, mu[d], sigma[d], kl[d], full));
		const active = kl.filter((nats) => nats >= INACTIVE_NATS).length;
		const summary = `${active} of ${kl.length} dimensions active; KL ${fixed(total)} nats`;
		$("posterior-summary").textContent = summary;
		$("posterior-rows").ariaLabel = `Chart. ${summary}; z${order[0]} has the most. See the table.`;
		const line = (d) => [mu[d], sigma[d], kl[d]].map((x) => h("td", {}, fixed(x, 3)));
		const lines = order.map((d) => h("tr", { class: shade(kl[d]) }, h("th", { scope: "row" }, `z${d}`), ...line(d)));
		$("posterior-table").tBodies[0].replaceChildren(...lines);
	}

	#switch() {
		for (const id of ["posterior-table", "posterior-chart"]) $(id).hidden = !$(id).hidden;
		$("posterior-view").textContent = $("posterior-chart").hidden ? "Show chart" : "Show table";
	}
}

function show(row, d, mu, sigma, kl, full) {
	const [name, axis, bar, nats] = row.children;
	const [whisker, dot] = [...axis.children].slice(2);
	name.textContent = `z${d}`;
	nats.textContent = fixed(kl);
	row.className = shade(kl);
	set(whisker, { x1: percent(mu - sigma, -3, 3), x2: percent(mu + sigma, -3, 3) });
	set(dot, { cx: percent(mu, -3, 3), class: Math.abs(mu) > 3 ? "beyond" : "" });
	set(bar.firstChild, { width: percent(kl, 0, full) });
}

