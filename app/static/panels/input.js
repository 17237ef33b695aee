/**
 * The picture that all else is about: drawn, dropped, pasted, chosen, or an example that the model drew.
 *
 * It is brought to the model's size here and sent as it is, so what is shown as seen is seen. `app.input` holds
 * `{data, png, settled}`, pixels and file, or null for an empty sheet; `settled` is false amid a stroke.
 */

import { $, paint, pictureButton, pngUrl } from "../dom.js";
import { toBase64 } from "../fragment.js";
import { Ink } from "../ink.js";
import { latest } from "../latest.js";
import { Panel } from "../panel.js";
import { decodeFile, encodePng, pngBlob } from "../picture.js";

const EXAMPLES = { method: "GET", path: "/sample", query: { n: 8, temperature: 0.7, seed: "14" } };
const SHEET_PIXELS = 280; // the sheet's longer side, or a little less
const LIVE_MS = 100; // between two rounds of requests while a stroke is drawn

export class InputPanel extends Panel {
  constructor(app) {
    super("input", app);
    const { height, width } = (this.shape = app.model.image);
    this.ink = new Ink(this.shape, Math.max(1, Math.floor(SHEET_PIXELS / Math.max(height, width))));
    this.publish = latest((settled) => this.#publish(settled));
    for (const action of ["undo", "clear", "invert"]) {
      $(action).addEventListener("click", () => this.change(() => this.ink[action]()));
    }
    listenToPointer($("pad"), this);
    listenToFiles(this.section, (file) => this.#load(file));
    this.change(() => {});
  }

  /** Fetch the examples, and show the first where there is nothing else yet. */
  refresh() {
    return this.attempt(async () => {
      const { images } = await this.ask(EXAMPLES);
      const examples = images.map((png, i) => pictureButton(png, `Example ${i + 1}`, () => this.#load(pngBlob(png))));
      $("examples").replaceChildren(...examples);
      if (this.ink.past.length) return this.publish(true);
      await this.#load(pngBlob(images[0]));
      this.unasked = true; // the first stroke takes its place
    });
  }

  /** Change the sheet, show it, and tell the others. */
  change(action, settled = true) {
    this.unasked = false;
    action();
    const { ink } = this;
    paint($("pad"), { ...this.shape, height: ink.height * ink.scale, width: ink.width * ink.scale }, ink.sheet);
    $("pad-hint").hidden = !ink.blank;
    $("clear").disabled = ink.blank;
    $("undo").disabled = !ink.past.length;
    if (settled || performance.now() - this.told > LIVE_MS) this.publish(settled);
  }

  async #publish(settled) {
    this.told = performance.now();
    const data = this.ink.picture();
    const png = toBase64(await encodePng(this.shape, data));
    paint($("seen"), this.shape, data);
    $("seen-file").href = pngUrl(png);
    this.app.input.set(this.ink.blank ? null : { data, png, settled });
  }

  async #load(file) {
    try {
      const sheet = await decodeFile(file, this.shape, this.ink.scale);
      this.change(() => this.ink.load(sheet));
      this.complain("");
    } catch {
      this.complain(`The browser cannot read ${file.name ?? "this"} as a picture.`);
    }
  }
}

/** Draw with mouse, pen or finger; every point that the device reports is used. */
function listenToPointer(pad, panel) {
  const { ink } = panel;
  let last = null;

  function line(event) {
    const box = pad.getBoundingClientRect();
    const next = [
      ((event.clientX - box.left) / box.width) * ink.width,
      ((event.clientY - box.top) / box.height) * ink.height,
    ];
    ink.line(last ?? next, next, $("brush").valueAsNumber / 2);
    last = next;
  }

  pad.addEventListener("pointerdown", (event) => {
    if (!event.isPrimary || event.button) return;
    pad.setPointerCapture(event.pointerId);
    if (panel.unasked) ink.clear();
    else ink.remember();
    panel.change(() => line(event), false);
  });
  pad.addEventListener("pointermove", (event) => {
    if (!last || !event.isPrimary) return;
    const points = event.getCoalescedEvents?.() ?? [];
    panel.change(() => (points.length ? points : [event]).forEach(line), false);
  });
  for (const end of ["pointerup", "pointercancel"]) {
    pad.addEventListener(end, (event) => {
      if (!last || !event.isPrimary) return;
      last = null;
      panel.change(() => {});
    });
  }
}

/** Take files that are chosen, pasted, or dropped anywhere on the page. */
function listenToFiles(section, load) {
  const take = (files) => files?.length && load(files[0]);
  $("file").addEventListener("change", async ({ target }) => {
    await take(target.files);
    target.value = ""; // the same file may be chosen again
  });
  document.addEventListener("paste", (event) => take(event.clipboardData?.files));
  for (const name of ["dragover", "dragleave", "drop"]) {
    document.addEventListener(name, (event) => {
      event.preventDefault(); // else the browser would leave the page to show the file
      section.classList.toggle("target", name === "dragover");
      if (name === "drop") take(event.dataTransfer.files);
    });
  }
}
