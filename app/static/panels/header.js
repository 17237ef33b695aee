/** What is loaded, whether it is ready, its card, and a field for a key where the service wants one. */

import { $, h, on } from "../dom.js";
import { fixed } from "../numbers.js";

const POLL_MS = 10_000;
const IMPATIENT_MS = 1500; // while it is not ready

export class Header {
	constructor(api) {
		this.api = api;
		on("key-form", (event) => {
			event.preventDefault();
			api.key = $("key").value.trim();
			$("key").value = "";
			this.entered();
		}, "submit");
		on("forget-key", () => {
			api.key = "";
			location.reload();
		});
		document.addEventListener("visibilitychange", () => this.watch());
	}

	/** Look whether the service is ready, now and again. */
	async watch() {
		clearTimeout(this.timer);
		if (document.hidden) return;
		const answer = await fetch(`${this.api.root}/readyz`).then((answer) => answer.json()).catch(() => ({}));
		const { status = "unreachable" } = answer;
		this.timer = setTimeout(() => this.watch(), status === "ready" ? POLL_MS : IMPATIENT_MS);
		if (status === this.status) return; // said already, aloud too
		$("readiness").replaceChildren(h("span", { class: `light ${status}` }), status);
		if (status === "ready" && this.status) this.onReturn();
		this.status = status;
	}

	/** Resolve when there is a key. */
	askForKey(complaint) {
		$("key-form").hidden = false;
		$("key-problem").hidden = !this.api.key; // who has sent none needs no complaint
		$("key-problem").textContent = complaint;
		$("key").focus();
		return new Promise((resolve) => (this.entered = resolve));
	}

	/** Show what `GET /model` says. */
	show(model) {
		const { height, width } = model.image;
		const { metrics, ...facts } = { ...model, size: `${width} × ${height}` };
		for (const element of document.querySelectorAll("[data-fact]")) element.textContent = facts[element.dataset.fact];
		$("key-form").hidden = true;
		$("forget-key").hidden = !this.api.key;
		document.documentElement.style.setProperty("--aspect", `${width} / ${height}`);
		const text = (fact) => (typeof fact === "number" && fact % 1 ? fixed(fact, 3) : fact);
		const card = Object.entries({ ...facts, ...metrics }).filter(([, fact]) => typeof fact !== "object");
		const rows = card.map(([name, fact]) => h("div", {}, h("dt", {}, name.replaceAll("_", " ")), h("dd", {}, text(fact))));
		$("card").replaceChildren(...rows);
	}
}
