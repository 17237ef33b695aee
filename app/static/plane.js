/**
 * Planes in latent space: what the map draws on. Latents are lists of D numbers, a plane's directions two unit vectors at
 * right angles, a place on it is `[x, y]`. A frame, `{x, y, half}`, is the square that is seen: -1 to 1, right and down.
 */

const DECIMALS = 1e4; // of latents that are sent: finer than any eye, and short
const dot = (a, b) => a.reduce((sum, x, i) => sum + x * b[i], 0);

/** Return the place of a latent, seen at right angles. */
export const project = (z, [u, v]) => [dot(z, u), dot(z, v)];

/** Return the latent at a place of the plane through `origin`. */
export function lift([x, y], [u, v], origin) {
	const [a, b] = project(origin, [u, v]);
	return origin.map((o, i) => Math.round((o + (x - a) * u[i] + (y - b) * v[i]) * DECIMALS) / DECIMALS);
}

/** Return the frame around a center that reaches three standard deviations of the places each way. */
export function frame(places, [x, y]) {
	const squares = places.reduce((sum, [a, b]) => sum + (a - x) ** 2 + (b - y) ** 2, 0);
	return { x, y, half: 3 * Math.sqrt(squares / 2 / places.length) || 1 };
}

/** Return where a place lies in its frame; and the place that lies there. */
export const inFrame = ([a, b], { x, y, half }) => [(a - x) / half, (y - b) / half];
export const atFrame = ([a, b], { x, y, half }) => [x + a * half, y - b * half];

/** Return the places in the middles of `n` x `n` cells of a frame, row by row. */
export function lattice(seen, n) {
	const middle = (i) => (2 * i + 1) / n - 1;
	return Array.from({ length: n * n }, (_, i) => atFrame([middle(i % n), middle(Math.floor(i / n))], seen));
}

/** Return how many places lie in each of these cells. */
export function counts(places, seen, n) {
	const sums = new Array(n * n).fill(0);
	for (const place of places) {
		const [column, row] = inFrame(place, seen).map((at) => Math.floor(((at + 1) / 2) * n));
		if (column >= 0 && column < n) sums[row * n + column]++; // another row is no cell
	}
	return sums.slice(0, n * n);
}

/** Return places around the 1-sigma ellipse of N(mu, diag(sigma²)), seen at right angles; by Cholesky's factors. */
export function ellipse(mu, sigma, [u, v]) {
	const covariance = (a, b) => sigma.reduce((sum, s, i) => sum + s * s * a[i] * b[i], 0);
	const [x, y] = project(mu, [u, v]);
	const a = Math.sqrt(covariance(u, u));
	const b = covariance(u, v) / a;
	const c = Math.sqrt(Math.max(0, covariance(v, v) - b * b));
	const angles = Array.from({ length: 64 }, (_, i) => (i * Math.PI) / 32);
	return angles.map((t) => [x + a * Math.cos(t), y + b * Math.cos(t) + c * Math.sin(t)]);
}

/** Return the indices of the `k` points nearest to a point. */
export function nearest(points, point, k) {
	const distance = points.map((other) => other.reduce((sum, x, i) => sum + (x - point[i]) ** 2, 0));
	return [...points.keys()].sort((a, b) => distance[a] - distance[b]).slice(0, k);
}
