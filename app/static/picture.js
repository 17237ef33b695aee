/** Pictures. Pixels are bytes in rows, channels innermost. */

/** Draw an image on a whole canvas as the service would: on black, its center cropped to the aspect. */
export function drawImage(context, image, sharp) {
	const { width, height } = context.canvas;
	const zoom = Math.max(width / image.width, height / image.height);
	const [w, h] = [image.width * zoom, image.height * zoom];
	Object.assign(context, { fillStyle: "#000", imageSmoothingEnabled: !sharp, imageSmoothingQuality: "high" });
	context.fillRect(0, 0, width, height);
	context.drawImage(image, (width - w) / 2, (height - h) / 2, w, h);
}

/** Return the pixels of an `ImageData`, each the mean of a block of `scale` x `scale`; gray by ITU-R 601. */
export function pixels({ data, width }, channels, scale = 1) {
	const area = scale ** 2;
	const rgb = new Float64Array((data.length / area / 4) * 3);
	for (let i = 0; i < data.length; i += 4) {
		const [x, y] = [(i / 4) % width, Math.floor(i / 4 / width)];
		const to = 3 * ((Math.floor(y / scale) * width) / scale + Math.floor(x / scale));
		for (let c = 0; c < 3; c++) rgb[to + c] += data[i + c];
	}
	if (channels === 3) return Uint8Array.from(rgb, (sum) => Math.round(sum / area));
	const gray = (_, i) => Math.round((0.299 * rgb[3 * i] + 0.587 * rgb[3 * i + 1] + 0.114 * rgb[3 * i + 2]) / area);
	return Uint8Array.from({ length: rgb.length / 3 }, gray);
}

/** Return the pixels with what differs from the first one's color in the middle, moved by whole pixels. */
export function centered(data, { channels, height, width }) {
	const sum = [0, 0, 0];
	const place = (i) => [Math.floor(i / channels) % width, Math.floor(i / channels / width)];
	data.forEach((value, i) =>
		[1, ...place(i)].forEach((weight, k) => (sum[k] += weight * Math.abs(value - data[i % channels]))));
	const [dx, dy] = [width, height].map((side, k) => Math.round(sum[k + 1] / sum[0] - (side - 1) / 2));
	const from = (x, i) => (x < 0 || x >= width ? null : data[i + (dx + dy * width) * channels]);
	return data.map((_, i) => from(place(i)[0] + dx, i) ?? data[i % channels]);
}

/** Paint pixels on a canvas, which takes their size. */
export function paint(canvas, { channels, height, width }, data) {
	Object.assign(canvas, { width, height });
	const image = new ImageData(width, height);
	image.data.forEach((_, i, rgba) => (rgba[i] = i % 4 < 3 ? data[(i >> 2) * channels + ((i % 4) % channels)] : 255));
	canvas.getContext("2d").putImageData(image, 0, 0);
}

/** Return a base64 PNG as something to draw. */
export function decodePng(png) {
	return createImageBitmap(new Blob([Uint8Array.from(atob(png), (c) => c.charCodeAt(0))]));
}
