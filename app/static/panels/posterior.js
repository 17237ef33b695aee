/**
 * q(z|x) of the input: mu and sigma of each latent dimension, and its KL from the prior; those of most KL first.
 * `app.posterior` holds `{mu, sigma, kl, settled}` of the newest input, or null.
 */

import { $, copyButton, h, set, svg } from "../dom.js";
import { latest } from "../latest.js";
import { byDivergence, fixed, INACTIVE_NATS, percent } from "../numbers.js";
import { Panel } from "../panel.js";

const FULL_BAR_NATS = 4; // at least

export class PosteriorPanel extends Panel {
  constructor(app) {
    super("posterior", app);
    this.rows = Array.from({ length: app.model.latent_dim }, () => new Row());
    $("posterior-rows").append(...this.rows.map((row) => row.element));
    $("posterior-view").addEventListener("click", () => this.#switch());
    $("posterior-view").after(copyButton("Copy JSON", () => JSON.stringify(this.shown)));
    app.input.subscribe(latest((input) => this.#update(input)));
  }

  #update(input) {
    this.section.classList.toggle("empty", !input);
    if (!input) return this.app.posterior.set(null);
    return this.attempt(async () => {
      const paths = ["/encode", "/kl"];
      const [encoded, divergence] = await Promise.all(paths.map((path) => this.askAbout(input.png, path)));
      this.shown = { mu: encoded.mu[0], sigma: encoded.sigma[0], kl: divergence.per_dimension[0] };
      this.#show(divergence.kl[0]);
      this.app.posterior.set({ ...this.shown, settled: input.settled });
    });
  }

  #show(total) {
    const { mu, sigma, kl } = this.shown;
    const order = byDivergence(kl);
    const full = Math.max(FULL_BAR_NATS, kl[order[0]]);
    order.forEach((d, i) => this.rows[i].show(d, mu[d], sigma[d], kl[d], full));
    const active = kl.filter((nats) => nats >= INACTIVE_NATS).length;
    const summary = `${active} of ${kl.length} dimensions active; KL ${fixed(total)} nats`;
    $("posterior-summary").textContent = summary;
    $("posterior-rows").setAttribute("aria-label", `Chart. ${summary}; z${order[0]} has the most. See the table.`);
    if (!$("posterior-table").hidden) this.#fillTable();
  }

  #switch() {
    const wanted = $("posterior-table").hidden;
    $("posterior-table").hidden = !wanted;
    $("posterior-chart").hidden = wanted;
    $("posterior-view").textContent = wanted ? "Show chart" : "Show table";
    if (this.shown) this.#fillTable();
  }

  #fillTable() {
    const { mu, sigma, kl } = this.shown;
    const rows = byDivergence(kl).map((d) => {
      const cells = [mu[d], sigma[d], kl[d]].map((x) => h("td", {}, fixed(x, 3)));
      return h("tr", { class: shade(kl[d]) }, h("th", { scope: "row" }, `z${d}`), ...cells);
    });
    $("posterior-table").tBodies[0].replaceChildren(...rows);
  }
}

/** A line of the chart: name, mu with a whisker of one sigma each way, KL as a bar and a number. */
class Row {
  constructor() {
    this.name = h("span");
    this.whisker = svg("line", { y1: "50%", y2: "50%" });
    this.dot = svg("circle", { cy: "50%", r: 3.5 });
    this.bar = svg("rect", { y: "25%", height: "50%" });
    this.nats = h("span");
    const prior = svg("rect", { x: percent(-1, -3, 3), width: percent(2, 0, 6), height: "100%" });
    const zero = svg("line", { class: "zero", x1: "50%", x2: "50%", y2: "100%" });
    const axis = svg("svg", { class: "whisker" }, prior, zero, this.whisker, this.dot);
    this.element = h("div", {}, this.name, axis, svg("svg", { class: "nats" }, this.bar), this.nats);
  }

  show(d, mu, sigma, kl, full) {
    this.name.textContent = `z${d}`;
    this.nats.textContent = fixed(kl);
    this.element.className = shade(kl);
    set(this.whisker, { x1: percent(mu - sigma, -3, 3), x2: percent(mu + sigma, -3, 3) });
    set(this.dot, { cx: percent(mu, -3, 3), class: Math.abs(mu) > 3 ? "beyond" : "" });
    set(this.bar, { width: percent(kl, 0, full) });
  }
}

function shade(kl) {
  return kl < INACTIVE_NATS ? "inactive" : "";
}
