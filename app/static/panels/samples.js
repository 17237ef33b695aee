/** New images from the prior: the same number, temperature and seed give the same images, here and everywhere. */

import { $, h, pictureButton, rove } from "../dom.js";
import { isSeed } from "../fragment.js";
import { latest } from "../latest.js";
import { fixed } from "../numbers.js";
import { Panel } from "../panel.js";

const MOST = 256;

export class SamplesPanel extends Panel {
  /** `choose(z, name)` is called with the latents of a sample that was clicked. */
  constructor(app, choose) {
    super("samples", app);
    this.choose = choose;
    this.draw = latest((request) => this.attempt(() => this.#draw(request)));
    this.most = $("n").max = Math.min(MOST, app.model.limits.max_items);
    this.restore(app.state);
    $("sample-form").addEventListener("input", () => this.#changed());
    $("sample-form").addEventListener("change", () => $("sample-form").reportValidity());
    $("sample-form").addEventListener("submit", (event) => event.preventDefault());
    $("reroll").addEventListener("click", () => {
      $("seed").value = Math.floor(Math.random() * 2 ** 32);
      this.#changed();
    });
    for (const format of ["png", "npy"]) $(`save-${format}`).addEventListener("click", () => this.#save(format));
  }

  /** Ask for the images again. */
  refresh() {
    this.draw(this.#request());
  }

  /** Take what an address says. */
  restore(state) {
    for (const id of ["n", "temperature", "seed"]) $(id).value = state[id];
    $("n").value = Math.min(state.n, this.most);
    this.#changed();
  }

  #changed() {
    const { valueAsNumber: temperature } = $("temperature");
    $("temperature-value").textContent = fixed(temperature);
    const wrong = isSeed($("seed").value) ? "" : "A seed is a whole number from 0 to 9223372036854775807.";
    $("seed").setCustomValidity(wrong);
    if (!$("sample-form").checkValidity()) return;
    this.app.remember({ n: $("n").valueAsNumber, temperature, seed: $("seed").value });
    this.refresh();
  }

  #request(format) {
    const query = { n: $("n").value, temperature: $("temperature").value, seed: $("seed").value };
    return { method: "GET", path: "/sample", query: format ? { ...query, format } : query };
  }

  async #draw(request) {
    const { images, z } = await this.ask(request);
    const name = (i) => `Sample ${i + 1}`;
    const cells = images.map((png, i) => pictureButton(png, name(i), () => this.choose(z[i], name(i))));
    $("sample-grid").replaceChildren(...cells);
    rove($("sample-grid"));
  }

  /** Fetch a file and hand it over; a plain link could not carry a key. */
  #save(format) {
    const request = this.#request(format);
    return this.attempt(async () => {
      const href = URL.createObjectURL(await this.ask(request));
      h("a", { href, download: `samples-seed-${request.query.seed}.${format}` }).click();
      setTimeout(() => URL.revokeObjectURL(href), 10_000);
    });
  }
}
