/** What is loaded, whether it is ready, and a field for a key where the service wants one. */

import { $, h } from "../dom.js";

const POLL_MS = 10_000;
const IMPATIENT_MS = 1500; // while it is not ready

export class Header {
  constructor(api) {
    this.api = api;
    $("key-form").addEventListener("submit", (event) => this.#enter(event));
    $("forget-key").addEventListener("click", () => {
      api.key = "";
      location.reload();
    });
    document.addEventListener("visibilitychange", () => this.watch());
  }

  /** Look whether the service is ready, now and from time to time while the page is seen. */
  async watch() {
    clearTimeout(this.timer);
    if (document.hidden) return;
    const status = await fetch(`${this.api.root}/readyz`)
      .then((answer) => answer.json())
      .then((answer) => answer.status)
      .catch(() => "unreachable");
    this.timer = setTimeout(() => this.watch(), status === "ready" ? POLL_MS : IMPATIENT_MS);
    if (status === this.status) return; // said already, aloud too
    $("readiness").replaceChildren(h("span", { class: `light ${status}` }), status);
    if (status === "ready" && this.status) this.onReturn();
    this.status = status;
  }

  /** Ask for a key, and resolve when there is one. */
  askForKey(complaint) {
    $("key-form").hidden = false;
    $("key-problem").hidden = !this.api.key; // who has sent none needs no complaint
    $("key-problem").textContent = complaint;
    $("key").focus();
    return new Promise((resolve) => (this.entered = resolve));
  }

  /** Show what `GET /model` says. */
  show({ name, digest, device, precision, latent_dim, image }) {
    const facts = { name, digest, device, precision, latent_dim, size: `${image.width} × ${image.height}` };
    for (const [id, fact] of Object.entries(facts)) $(`model-${id}`).textContent = fact;
    $("key-form").hidden = true;
    $("forget-key").hidden = !this.api.key;
    $("seen-size").textContent = facts.size;
    document.documentElement.style.setProperty("--aspect", `${image.width} / ${image.height}`);
  }

  #enter(event) {
    event.preventDefault();
    this.api.key = $("key").value.trim();
    $("key").value = "";
    this.entered();
  }
}
