/**
 * What a shared address says: `#n=16&temperature=0.8&seed=7&dims=4,17&z=…`. What makes no sense takes its default. A seed
 * is a text: it goes up to 2^63 - 1, and numbers here do not. `dims` are the map's; `z` is float32 in base64.
 */

const MAX_SEED = 2n ** 63n - 1n;

/** Return the state that a fragment stands for. */
export function parseFragment(fragment) {
	const { n, temperature, seed, dims, z } = Object.fromEntries(new URLSearchParams(fragment.replace("#", "")));
	return {
		n: /^0*[1-9]\d{0,9}$/.test(n) ? Number(n) : 16,
		temperature: parseFloat(temperature) >= 0 && parseFloat(temperature) <= 2 ? parseFloat(temperature) : 1,
		seed: isSeed(seed) ? seed : "7",
		dims: /^\d+,\d+$/.test(dims) ? dims.split(",").map(Number) : null,
		z: parseLatents(z),
	};
}

/** Return the fragment of a state, without `#`. */
export function formatFragment({ z, dims, ...state }) {
	if (dims) state.dims = dims;
	if (z) state.z = btoa(String.fromCharCode(...new Uint8Array(Float32Array.from(z).buffer)));
	return `${new URLSearchParams(state)}`;
}

/** Tell whether a text is a seed: 0 to 2^63 - 1, in digits. */
export const isSeed = (text) => /^\d{1,19}$/.test(text) && BigInt(text) <= MAX_SEED;

function parseLatents(text = "") {
	try {
		const z = [...new Float32Array(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer)];
		return z.length && z.every(Number.isFinite) ? z : null;
	} catch {
		return null; // no base64, or no whole number of float32
	}
}
