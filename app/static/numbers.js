/** Numbers for people, and the order of latent dimensions. Pure functions. */

/** Under this many nats a dimension carries nothing: its posterior is the prior. */
export const INACTIVE_NATS = 0.01;

/** Return `x` with a true minus sign, but no negative zero. */
export function fixed(x, digits = 2) {
	const text = Math.abs(x).toFixed(digits);
	return x < 0 && Number(text) ? `−${text}` : text;
}

export const milliseconds = (ms) => (ms < 1000 ? `${ms.toFixed(ms < 10 ? 1 : 0)} ms` : `${(ms / 1000).toFixed(1)} s`);

/** Return the dimensions, those of most KL first; equals keep their order. */
export const byDivergence = (kl) => [...kl.keys()].sort((a, b) => kl[b] - kl[a]);

/** Return where `x` stands between `low` and `high`, as a percentage kept inside. */
export const percent = (x, low, high) => `${Math.min(100, Math.max(0, ((x - low) / (high - low)) * 100))}%`;
