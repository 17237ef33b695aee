/** What all panels share: the service's complaint where something failed, and the requests that were sent. */

import { ApiError } from "./api.js";
import { $, copyButton, h } from "./dom.js";
import { milliseconds } from "./numbers.js";
import { curl } from "./request.js";

const PLACES = { queue: "in line", device: "on the device", total: "in the service" };

export class Panel {
  /** Take the section with this id; it gets a place for complaints, and `Show request`. */
  constructor(id, app) {
    this.app = app;
    this.section = $(id);
    this.exchanges = new Map();
    this.problem = h("p", { class: "problem", hidden: "" });
    this.last = h("span", { class: "last" });
    this.log = h("div", {}, "Nothing was sent yet.");
    this.details = h("details", {}, h("summary", {}, "Show request", this.last), this.log);
    this.details.addEventListener("toggle", () => this.#showLog());
    this.section.querySelector("h2").after(this.problem);
    this.section.append(this.details);
  }

  /** Return the answer to a request, and note how it went. */
  ask(request) {
    return this.app.api.send(request, (exchange) => {
      this.exchanges.set(request.path, exchange);
      this.last.textContent = `${exchange.status} in ${milliseconds(exchange.ms)}`;
      this.#showLog();
    });
  }

  /** Ask with the body that holds one image, a PNG in base64. */
  askAbout(png, path, query) {
    return this.ask({ method: "POST", path, query, body: { images: [png] } });
  }

  /** Do work that asks; show the complaint where that fails. Returns the milliseconds after which to try again. */
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

  /** Show what is wrong; an empty text takes it away. */
  complain(text, requestId = "") {
    this.problem.hidden = !text;
    this.problem.replaceChildren(text, requestId && h("small", {}, ` Request ${requestId}`));
    this.section.classList.toggle("stale", Boolean(text));
  }

  #showLog() {
    if (!this.details.open || !this.exchanges.size) return;
    this.log.replaceChildren(...Array.from(this.exchanges.values(), (exchange) => this.#entry(exchange)));
  }

  #entry({ request, status, ms, timing }) {
    const { key, root } = this.app.api;
    const line = curl(request, root, Boolean(key));
    const name = `${request.method} ${request.path}`;
    const times = Object.keys(timing).map((place) => `${milliseconds(timing[place])} ${PLACES[place] ?? place}`);
    return h(
      "div",
      { class: "entry" },
      h("h3", {}, name),
      copyButton("Copy curl", () => line),
      h("pre", { tabindex: 0, role: "group", "aria-label": `curl command for ${name}` }, line),
      h("p", {}, h("strong", {}, status), ` in ${milliseconds(ms)}`, times.length ? `: ${times.join(", ")}` : ""),
    );
  }
}
