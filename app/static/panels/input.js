/**
 * The picture that all else is about, brought to the model's size here, so what is shown as seen is seen. `app.input`
 * holds `{data, png, settled}`, or null for an empty sheet; `settled` is false amid a stroke.
 */

import { $, gallery, on } from "../dom.js";
import { latest } from "../latest.js";
import { Panel } from "../panel.js";
import { centered, decodePng, drawImage, paint, pixels } from "../picture.js";

const EXAMPLES = { path: "/sample", query: { n: 8, temperature: 0.7, seed: "14" } };
const SHEET_PIXELS = 280; // longer side of the sheet that one draws on, or a little less
const LIVE_MS = 100; // between two rounds of requests while a stroke is drawn
const MAX_UNDO = 40;

export class Input extends Panel {
	constructor(app) {
		super("input", app);
		const { height, width } = (this.shape = app.model.image);
		this.scale = Math.max(1, Math.floor(SHEET_PIXELS / Math.max(height, width)));
		Object.assign($("pad"), { height: height * this.scale, width: width * this.scale });
		this.pen = $("pad").getContext("2d", { willReadFrequently: true });
		this.past = [];
		this.publish = latest((settled) => this.#publish(settled));
		on("undo", () => this.#change(() => {
			const { sheet, ...kept } = this.past.pop();
			Object.assign(this, kept).pen.putImageData(sheet, 0, 0);
		}));
		on("clear", () => this.#edit(() => this.#clear()));
		on("invert", () => this.#edit(() => { // strokes too, from now on
			this.pen.globalCompositeOperation = "difference";
			this.#fill("#fff");
			this.pen.globalCompositeOperation = "source-over";
			this.ink = this.ink === "#fff" ? "#000" : "#fff";
		}));
		on("center", () => this.publish(true), "change");
		this.#listenToPointer();
		this.#listenToFiles();
		this.#change(() => this.#clear());
		this.refresh();
	}

	/** Fetch the examples; show the first where there is nothing else yet. */
	refresh() {
		return this.attempt(async () => {
			const { images } = await this.ask(EXAMPLES);
			gallery($("examples"), images, (i) => `Example ${i + 1}`, async (i) => this.#load(await decodePng(images[i])));
			if (this.past.length) return this.publish(true);
			this.#load(await decodePng(images[0]));
			this.unasked = true; // the first stroke takes its place
		});
	}

	/** Change the sheet, show it, and tell the others. */
	#change(action, settled = true) {
		this.unasked = false;
		action();
		$("undo").disabled = !this.past.length;
		if (settled || performance.now() - this.told > LIVE_MS) this.publish(settled);
	}

	#edit(action, settled) {
		this.past = [...this.past.slice(1 - MAX_UNDO), { sheet: this.#sheet, ink: this.ink, drawn: this.drawn }];
		this.#change(action, settled);
	}

	get #sheet() {
		return this.pen.getImageData(0, 0, $("pad").width, $("pad").height);
	}

	#publish(settled) {
		this.told = performance.now();
		let data = pixels(this.#sheet, this.shape.channels, this.scale);
		if (this.drawn && $("center").checked) data = centered(data, this.shape);
		const blank = !data.some(Boolean);
		paint($("seen"), this.shape, data);
		$("seen-file").href = $("seen").toDataURL();
		$("pad-hint").hidden = !blank;
		$("clear").disabled = blank;
		this.app.input.set(blank ? null : { data, png: $("seen-file").href.split(",")[1], settled });
	}

	#clear() {
		this.#fill("#000");
		this.ink = "#fff";
		this.drawn = true;
	}

	#fill(color) {
		this.pen.fillStyle = color;
		this.pen.fillRect(0, 0, $("pad").width, $("pad").height);
	}

	#load(image) {
		const { height, width } = this.shape;
		this.#edit(() => {
			this.#clear();
			drawImage(this.pen, image, image.width === width && image.height === height);
			this.drawn = false;
		});
		this.complain("");
	}

	#listenToPointer() {
		const { pen } = this;
		let last = null;

		function line({ offsetX, offsetY }) {
			const next = [offsetX, offsetY].map((at) => (at * $("pad").width) / $("pad").clientWidth);
			pen.beginPath();
			pen.moveTo(...(last ?? next));
			pen.lineTo(...next);
			pen.stroke();
			last = next;
		}

		on("pad", (event) => {
			if (!event.isPrimary || event.button) return;
			$("pad").setPointerCapture(event.pointerId);
			const { unasked } = this;
			this.#edit(() => {
				if (unasked) this.#clear();
				Object.assign(pen, { strokeStyle: this.ink, lineWidth: $("brush").value * this.scale, lineCap: "round" });
				line(event);
			}, false);
		}, "pointerdown");
		on("pad", (event) => last && event.isPrimary && this.#change(() => line(event), false), "pointermove");
		on("pad", () => {
			last = null;
			this.#change(() => {});
		}, "lostpointercapture");
	}

	/** Take files that are chosen, pasted, or dropped anywhere on the page. */
	#listenToFiles() {
		const take = async ([file] = []) => {
			if (!file) return;
			const complain = () => this.complain(`The browser cannot read ${file.name} as a picture.`);
			await createImageBitmap(file).then((image) => this.#load(image), complain);
		};
		on("file", async ({ target }) => {
			await take(target.files);
			target.value = ""; // the same file may be chosen again
		}, "change");
		document.onpaste = (event) => take(event.clipboardData?.files);
		for (const name of ["dragover", "dragleave", "drop"]) {
			document.addEventListener(name, (event) => {
				event.preventDefault(); // else the browser would leave the page to show the file
				this.section.classList.toggle("target", name === "dragover");
				if (name === "drop") take(event.dataTransfer.files);
			});
		}
	}
}
