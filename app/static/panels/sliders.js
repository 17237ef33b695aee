/**
 * A latent vector to play with: range and number for each dimension, and the image that the decoder makes of it.
 *
 * Each new input sets it to the posterior's mean, and puts the dimensions that say most about the input first.
 */

import { $, h, pngUrl } from "../dom.js";
import { latest } from "../latest.js";
import { byDivergence, fixed } from "../numbers.js";
import { Panel } from "../panel.js";

const FEW = 16;

export class SlidersPanel extends Panel {
  constructor(app) {
    super("sliders", app);
    const size = app.model.latent_dim;
    this.rows = Array.from({ length: size }, (_, d) => new Row(d, (value) => this.choose(this.z.with(d, value))));
    this.draw = latest((z) => this.attempt(() => this.#decode(z)));
    this.#arrange([...this.rows.keys()]);
    this.#listen();
    this.z = new Array(size).fill(0);
    this.kept = this.restore(app.state); // by the first posterior, which comes by itself
    app.posterior.subscribe((posterior) => this.#follow(posterior));
  }

  /** Take a latent vector, and ask for its image. */
  set(z) {
    this.z = z;
    this.rows.forEach((row, d) => row.show(z[d]));
    this.refresh();
  }

  /** Take a latent vector that somebody chose: it goes into the address. */
  choose(z) {
    this.set(z);
    this.app.remember({ z });
  }

  /** Ask for the image again. */
  refresh() {
    this.draw(this.z);
  }

  /** Take what an address says; returns whether it says something. */
  restore({ z }) {
    const fits = z?.length === this.rows.length;
    if (fits) this.set(z);
    return fits;
  }

  #listen() {
    $("to-zero").addEventListener("click", () => this.choose(this.z.map(() => 0)));
    $("to-mean").addEventListener("click", () => this.choose(this.app.posterior.value.mu));
    $("to-random").addEventListener("click", () => this.attempt(() => this.#random()));
    $("all-dimensions").addEventListener("change", () => this.#arrange(this.order));
    $("all-dimensions").parentElement.hidden = this.rows.length <= FEW;
  }

  async #random() {
    const query = { n: 1, seed: Math.floor(Math.random() * 2 ** 32) };
    const { z } = await this.ask({ method: "GET", path: "/sample", query });
    this.choose(z[0]);
  }

  #follow(posterior) {
    $("to-mean").disabled = !posterior;
    if (!posterior?.settled) return;
    if (!$("slider-rows").contains(document.activeElement)) this.#arrange(byDivergence(posterior.kl));
    if (!this.kept) {
      this.set(posterior.mu);
      this.app.remember({ z: null });
    }
    this.kept = false;
  }

  #arrange(order) {
    this.order = order;
    const shown = $("all-dimensions").checked ? order : order.slice(0, FEW);
    $("slider-rows").replaceChildren(...shown.map((d) => this.rows[d].element));
  }

  async #decode(z) {
    const { images } = await this.ask({ method: "POST", path: "/decode", body: { z: [z] } });
    $("decoded").src = pngUrl(images[0]);
  }
}

/** Range and number of a dimension. The range ends at ±3; a value beyond is kept as long as nobody moves it. */
class Row {
  constructor(d, move) {
    const input = ({ target }) => target.validity.badInput || target.value === "" || move(target.valueAsNumber);
    this.range = h("input", { type: "range", id: `z${d}`, min: -3, max: 3, step: 0.05, input });
    this.number = h("input", { type: "number", "aria-label": `z${d}, as a number`, step: 0.01, input });
    this.element = h("div", {}, h("label", { for: `z${d}` }, `z${d}`), this.range, this.number);
    this.show(0);
  }

  show(value) {
    this.range.value = value;
    this.range.setAttribute("aria-valuetext", fixed(value));
    if (document.activeElement !== this.number) this.number.value = value.toFixed(2);
  }
}
