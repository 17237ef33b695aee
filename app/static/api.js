/** The way to the service: sends requests, measures them, turns refusals into `ApiError`. Knows no panel. */

import { target, timings } from "./request.js";

/** A refusal, in the service's words; `retryMs` is above 0 where the same request may succeed later. */
export class ApiError extends Error {
  constructor(detail, status = 0, requestId = "", retryMs = 0) {
    super(detail);
    Object.assign(this, { status, requestId, retryMs });
  }
}

export class Api {
  /** `root` is the address of the service without a slash at its end. */
  constructor(root) {
    this.root = root;
    this.onDigest = this.onLost = () => {};
  }

  /** The key that is sent along, kept in this tab alone; an empty text is none. */
  get key() {
    return sessionStorage.getItem("vae-key") ?? "";
  }

  set key(key) {
    sessionStorage.setItem("vae-key", key);
  }

  /**
   * Send a request and return its answer: JSON, or a Blob where the query names a format.
   *
   * @param request see request.js
   * @param {(exchange: object) => void} [tell] is given `{request, status, ms, timing}` of every answer, errors too
   * @throws {ApiError}
   */
  async send(request, tell = () => {}) {
    const started = performance.now();
    const { response, body } = await this.#fetch(request);
    const timing = timings(response.headers.get("Server-Timing"));
    tell({ request, status: response.status, ms: performance.now() - started, timing });
    this.onDigest(response.headers.get("X-Model-Digest"));
    if (!response.ok) throw refusal(response, body);
    return typeof body === "string" ? JSON.parse(body) : body;
  }

  async #fetch(request) {
    const headers = new Headers(request.body && { "Content-Type": "application/json" });
    if (this.key) headers.set("Authorization", `Bearer ${this.key}`);
    const options = { method: request.method, headers, body: JSON.stringify(request.body) };
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
  const later = status === 429 || status === 503 ? (problem.retry_after_ms ?? 1000) : 0;
  return new ApiError(problem.detail ?? `The service answered ${status}.`, status, headers.get("X-Request-ID") ?? "", later);
}
