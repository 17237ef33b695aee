/** What all panels share: ways to ask, the complaint where that fails, and the requests that were sent. */

import { ApiError } from "./api.js";
import { $, copyButton, h, stamp } from "./dom.js";
import { latest, quietly, signal } from "./latest.js";
import { milliseconds } from "./numbers.js";
import { method, PROGRAMS } from "./request.js";

const PLACES = { queue: "in line", device: "on the device", total: "in the service" };
const QUIET_MS = 200; // before lazy work
const language = signal("curl"); // of the requests shown, in all panels

export class Panel {
	constructor(id, app) {
		this.app = app;
		this.section = $(id);
		this.exchanges = new Map();
		this.problem = h("p", { class: "problem", hidden: "" });
		this.section.querySelector("h2").after(this.problem);
		this.details = stamp("request");
		this.section.append(this.details);
		this.tabs = [...this.details.querySelectorAll("button")];
		this.tabs.forEach((tab) => (tab.onclick = () => language.set(tab.textContent)));
		this.details.ontoggle = () => this.#showLog();
		language.subscribe(() => this.#showLog());
	}

	/** Return the answer to a request, and show how it went. */
	ask(request) {
		return this.app.api.send(request, (exchange) => {
			this.exchanges.set(request.path + request.query?.format, exchange);
			this.details.querySelector(".last").textContent = `${exchange.status} in ${milliseconds(exchange.ms)}`;
			this.#showLog();
		});
	}

	askAbout(png, path, query) {
		return this.ask({ path, query, body: { images: [png] } });
	}

	async random(seed = Math.floor(Math.random() * 2 ** 32)) {
		return (await this.ask({ path: "/sample", query: { n: 1, seed } })).z[0];
	}

	/** Do work that asks; complain where that fails, and return the milliseconds after which to try again. */
	async attempt(work) {
		try {
			await work();
			this.complain("");
		} catch (error) {
			if (!(error instanceof ApiError)) console.error(error);
			this.complain(error.message, error.requestId);
			return error.retryMs;
		}
	}

	/** Return a function that hands values to work that asks; see `latest`. */
	follow(work) {
		return latest((value) => this.attempt(() => work(value)));
	}

	/** Return a function that does work that asks, a little later and only once the panel is in sight. */
	lazily(work) {
		let seen, owed;
		const offer = this.follow(work);
		const settle = quietly(() => {
			owed = !seen;
			if (seen) offer();
		}, QUIET_MS);
		new IntersectionObserver(([{ isIntersecting }]) => {
			seen = isIntersecting;
			if (seen && owed) settle();
		}).observe(this.section);
		return settle;
	}

	/** Show what is wrong; an empty text takes it away. */
	complain(text, requestId) {
		this.problem.hidden = !text;
		this.problem.replaceChildren(text, requestId ? h("small", {}, ` Request ${requestId}`) : "");
		this.section.classList.toggle("stale", Boolean(text));
	}

	#showLog() {
		for (const tab of this.tabs) tab.ariaPressed = tab.textContent === language.value;
		if (!this.details.open || !this.exchanges.size) return;
		this.details.lastElementChild.replaceChildren(...Array.from(this.exchanges.values(), (exchange) => this.#entry(exchange)));
	}

	#entry({ request, status, ms, timing }) {
		const { key, root } = this.app.api;
		const program = PROGRAMS[language.value](request, root, Boolean(key));
		const name = `${method(request)} ${request.path}`;
		const times = Object.keys(timing).map((place) => `${milliseconds(timing[place])} ${PLACES[place] ?? place}`);
		const code = h("pre", { tabindex: 0, role: "group", "aria-label": `${name} in ${language.value}` }, program);
		const text = h("p", {}, h("b", {}, status), ` in ${milliseconds(ms)}`, times.length ? `: ${times.join(", ")}` : "");
		return h("div", { class: "entry" }, h("h3", {}, name), copyButton("Copy", () => program), code, text);
	}
}
