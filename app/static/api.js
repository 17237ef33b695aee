/** The way to the service: sends requests, measures them, turns refusals into `ApiError`. */

import { method, target, timings } from "./request.js";

/** A refusal, in the service's words; `retryMs` is above 0 where it may succeed later. */
export class ApiError extends Error {
	constructor(detail, facts) {
		super(detail);
		Object.assign(this, facts);
	}
}

export class Api {
	onDigest = () => {};
	onLost = () => {};

	/** `root` is the service's address, without a slash at its end. */
	constructor(root) {
		this.root = root;
	}

	/** The key, kept in this tab alone; an empty text is none. */
	get key() {
		return sessionStorage.getItem("vae-key") ?? "";
	}

	set key(key) {
		sessionStorage.setItem("vae-key", key);
	}

	/** Return an answer: JSON, or a Blob where the query names a format. `tell` hears of errors too. Throws `ApiError`. */
	async send(request, tell = () => {}) {
		const started = performance.now();
		const { response, body } = await this.#fetch(request);
		const { headers, status } = response;
		tell({ request, status, ms: performance.now() - started, timing: timings(headers.get("Server-Timing")) });
		this.onDigest(headers.get("X-Model-Digest"));
		if (!response.ok) throw refusal(response, body);
		return typeof body === "string" ? JSON.parse(body) : body;
	}

	async #fetch(request) {
		const headers = new Headers(request.body && { "Content-Type": "application/json" });
		if (this.key) headers.set("Authorization", `Bearer ${this.key}`);
		const options = { method: method(request), headers, body: JSON.stringify(request.body) };
		try {
			const response = await fetch(this.root + target(request), options);
			return { response, body: await (response.ok && request.query?.format ? response.blob() : response.text()) };
		} catch {
			this.onLost();
			throw new ApiError("The service cannot be reached. This page goes on as soon as it is back.");
		}
	}
}

function refusal({ status, headers }, body) {
	let problem = {};
	try {
		problem = JSON.parse(body);
	} catch {
		// a proxy may answer in HTML
	}
	const { detail = `The service answered ${status}.`, retry_after_ms = 1000 } = problem;
	const retryMs = [429, 503].includes(status) ? retry_after_ms : 0;
	return new ApiError(detail, { status, requestId: headers.get("X-Request-ID"), retryMs });
}
