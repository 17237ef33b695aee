/** What the model keeps of the input, what it loses, and how likely it finds it. */

import { $, paint, pngUrl } from "../dom.js";
import { latest } from "../latest.js";
import { fixed, percent } from "../numbers.js";
import { Panel } from "../panel.js";
import { decodeFile, pngBlob } from "../picture.js";

const SCORE = { samples: 64, seed: "0" }; // seeded, so that a picture always has the same score
const [ADDED, LOST] = [[230, 159, 0], [86, 180, 233]]; // Okabe-Ito orange and sky blue, both clear on black

export class ReconstructionPanel extends Panel {
  constructor(app) {
    super("reconstruction", app);
    app.input.subscribe(latest((input) => this.#update(input)));
  }

  #update(input) {
    this.section.classList.toggle("empty", !input);
    if (!input) return;
    $("scores").classList.toggle("stale", !input.settled);
    return this.attempt(async () => {
      const { images } = await this.askAbout(input.png, "/reconstruct");
      await this.#showPictures(input.data, images[0]);
      if (input.settled) this.#showScore(await this.askAbout(input.png, "/score", SCORE));
    });
  }

  async #showPictures(data, png) {
    const shape = this.app.model.image;
    const kept = await decodeFile(pngBlob(png), shape);
    paint($("original"), shape, data);
    paint($("difference"), { ...shape, channels: 3 }, difference(data, kept, shape.channels));
    $("reconstructed").src = pngUrl(png);
  }

  #showScore({ log_likelihood, standard_error, elbo, kl, bits_per_dim, percentile: [share] }) {
    const texts = {
      "log-likelihood": `${fixed(log_likelihood[0])} ± ${fixed(standard_error[0])}`,
      elbo: fixed(elbo[0]),
      kl: fixed(kl[0]),
      bits: fixed(bits_per_dim[0], 3),
      percentile: fixed(share, 1),
      verdict: share < 1 ? "Stranger than nearly all held-out images." : `${share < 5 ? "Unusual" : "Not unusual"} among held-out images.`,
    };
    for (const [id, text] of Object.entries(texts)) $(id).textContent = text;
    $("percentile-mark").setAttribute("x", percent(share, 0, 100));
    this.app.say(`ELBO ${texts.elbo} nats, percentile ${texts.percentile}`);
  }
}

/** Return where `b` is above (`ADDED`) or below (`LOST`) `a`, the mean over the channels, as RGB on black. */
function difference(a, b, channels) {
  const rgb = new Uint8Array((a.length / channels) * 3);
  for (let i = 0; i < rgb.length; i++) {
    const at = Math.floor(i / 3) * channels;
    let change = 0;
    for (let c = at; c < at + channels; c++) change += (b[c] - a[c]) / channels / 255;
    rgb[i] = Math.abs(change) * (change > 0 ? ADDED : LOST)[i % 3];
  }
  return rgb;
}
