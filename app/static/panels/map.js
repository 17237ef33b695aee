/**
 * Where the input lies among held-out images, on a plane through their mean or z, along their principal axes or two
 * dimensions. Its backdrop is what the decoder makes of a lattice, darkened where few held-out images lie.
 */

import { $, h, on, pngUrl, set } from "../dom.js";
import { byDivergence, fixed } from "../numbers.js";
import { Panel } from "../panel.js";
import { atFrame, counts, ellipse, frame, inFrame, lattice, lift, nearest, project } from "../plane.js";

const CELLS = 15; // of the lattice, each way
const CROWD = 4; // held-out images in a cell that is not darkened
const NEAREST = 10;
const DOT = 5; // radius on the canvas

const mark = (label) => $("map-marks").content.children[label % $("map-marks").content.childElementCount];

export class LatentMap extends Panel {
	constructor(app) {
		super("map", app);
		this.paint = this.lazily(() => this.#paint());
		this.decode = this.follow(async () => {
			const { images } = await this.ask({ path: "/decode", body: { z: [this.z] } });
			$("map-decoded").src = pngUrl(images[0]);
		});
		this.refresh();
	}

	refresh() {
		return this.attempt(async () => {
			if (this.map) return this.paint();
			const map = await this.ask({ path: "/map" });
			if (map.axes.length < 2) return; // a single dimension has no plane
			this.map = map;
			const order = byDivergence(map.kl_per_dimension);
			this.app.order.set(order);
			for (const id of ["map-x", "map-y"]) $(id).append(...order.map((d) => h("option", { value: d }, `z${d}`)));
			const known = [...new Set(map.labels)].sort((a, b) => a - b);
			$("map-legend").append(...known.map((label) => set(mark(label).cloneNode(true), {}, this.#name(label))));
			this.section.classList.remove("empty");
			this.restore(this.app.state);
			this.#listen();
		});
	}

	restore({ dims }) {
		if (!this.map) return;
		const known = dims?.every((d) => d < this.map.mean.length);
		[$("map-x").value, $("map-y").value] = known ? dims : ["", this.app.order.value[1]];
		this.#turn();
	}

	#listen() {
		const at = ({ offsetX, offsetY }) => [offsetX, offsetY].map((pixels) => (2 * pixels) / $("map-field").clientWidth - 1);
		on("map-field", (event) => this.#look(at(event)), "pointermove");
		on("map-field", (event) => this.#take(this.#look(at(event))));
		on("map-take", () => this.#take());
		for (const id of ["at-x", "at-y"]) on(id, () => this.#look([$("at-x").valueAsNumber, -$("at-y").value]), "input");
		for (const id of ["map-x", "map-y", "map-through", "map-points"]) on(id, () => this.#turn(), "change");
		this.app.posterior.subscribe(() => this.#show());
		this.app.z.subscribe(() => {
			this.#show();
			if ($("map-through").checked) this.paint();
		});
	}

	/** Turn the plane. */
	#turn() {
		const [x, y] = [$("map-x"), $("map-y")];
		y.parentElement.hidden = !x.value;
		if (x.value === y.value) y.selectedIndex = y.selectedIndex ? 0 : 1;
		const dims = x.value && [Number(x.value), Number(y.value)];
		this.plane = dims ? dims.map((d) => this.map.mean.map((_, i) => Number(i === d))) : this.map.axes;
		this.places = this.map.mu.map((mu) => project(mu, this.plane));
		this.frame = frame(this.places, project(this.map.mean, this.plane));
		this.app.remember({ dims });
		this.#show();
		this.paint();
	}

	#show() {
		const { posterior: { value: posterior }, z } = this.app;
		const outline = posterior ? ellipse(posterior.mu, posterior.sigma, this.plane) : [[9, 9]];
		set($("map-posterior"), { d: `M${outline.map((place) => inFrame(place, this.frame)).join("L")}Z` });
		set($("map-z"), { transform: `translate(${inFrame(project(z.value, this.plane), this.frame)})` });
		if (!posterior?.settled || !this.map.labels) return;
		const names = nearest(this.map.mu, posterior.mu, NEAREST).map((i) => this.#name(this.map.labels[i]));
		$("map-near").textContent = `The ${NEAREST} nearest to the input: ${names.sort().join(", ")}.`;
	}

	#name(label) {
		return this.map.label_names?.[label] ?? label;
	}

	#look(at) {
		const place = atFrame(at, this.frame);
		this.z = lift(place, this.plane, this.#origin);
		set($("map-at"), { transform: `translate(${at})` });
		["at-x", "at-y"].forEach((id, i) => {
			$(id).value = i ? -at[1] : at[0];
			set($(id), { "aria-valuetext": fixed(place[i]) });
		});
		const [near] = nearest(this.places, place, 1);
		$("map-place").textContent = `${place.map((x) => fixed(x)).join(", ")}${this.map.labels ? `: near a ${this.#name(this.map.labels[near])}` : ""}`;
		$("map-take").disabled = false;
		this.decode();
	}

	#take() {
		this.app.choose(this.z, "the place on the map");
	}

	get #origin() {
		return $("map-through").checked ? this.app.z.value : this.map.mean;
	}

	async #paint() {
		const { frame: seen, places, map } = this;
		const z = lattice(seen, CELLS).map((place) => lift(place, this.plane, this.#origin));
		if (!this.z) this.#look(inFrame(project(this.app.z.value, this.plane), seen));
		if (`${z}` !== this.painted) {
			const png = await this.ask({ path: "/decode", query: { columns: CELLS, format: "png" }, body: { z } });
			this.sheet = await createImageBitmap(png);
			this.painted = `${z}`;
		}
		const context = $("map-canvas").getContext("2d");
		const size = $("map-canvas").width;
		const cell = size / CELLS;
		context.drawImage(this.sheet, 0, 0, size, size);
		counts(places, seen, CELLS).forEach((count, i) => {
			context.fillStyle = `rgb(0 0 0 / ${0.85 - 0.5 * Math.min(1, count / CROWD)})`;
			context.fillRect((i % CELLS) * cell, Math.floor(i / CELLS) * cell, cell, cell);
		});
		const shown = $("map-points").checked ? places : [];
		shown.forEach((place, i) => {
			const dot = mark(map.labels?.[i] ?? 0).querySelector("path");
			context.setTransform(DOT, 0, 0, DOT, ...inFrame(place, seen).map((at) => ((at + 1) * size) / 2));
			context.fillStyle = dot.getAttribute("fill");
			context.fill(new Path2D(dot.getAttribute("d")));
		});
		context.resetTransform();
		$("map-canvas").dataset.painted = shown.length;
	}
}
