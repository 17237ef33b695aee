/**
 * What a shared address says: `#n=16&temperature=0.8&seed=7&z=…`. What is missing or makes no sense takes its default.
 * A seed is a text: it goes up to 2^63 - 1, and numbers here do not. Latents are float32 in base64url.
 */

const MAX_SEED = 2n ** 63n - 1n;

/** Return the state that a fragment stands for, with or without its `#`. */
export function parseFragment(fragment) {
  const given = Object.fromEntries(new URLSearchParams(fragment.replace("#", "")));
  const [n, temperature] = [Number(given.n), parseFloat(given.temperature)];
  return {
    n: Number.isInteger(n) && n > 0 ? n : 16,
    temperature: temperature >= 0 && temperature <= 2 ? temperature : 1,
    seed: isSeed(given.seed) ? given.seed : "7",
    z: parseLatents(given.z),
  };
}

/** Return the fragment of a state, without `#`. */
export function formatFragment({ z, ...state }) {
  const pairs = new URLSearchParams(state);
  if (z) pairs.set("z", toBase64(new Uint8Array(Float32Array.from(z).buffer)).replace(/[+/=]/g, (c) => URL_SAFE[c]));
  return pairs.toString();
}

/** Tell whether a text is a seed: 0 to 2^63 - 1, in digits. */
export function isSeed(text) {
  return /^\d{1,19}$/.test(text) && BigInt(text) <= MAX_SEED;
}

/** Return bytes in base64. */
export function toBase64(bytes) {
  return btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));
}

const URL_SAFE = { "+": "-", "/": "_", "=": "" };

function parseLatents(text = "") {
  try {
    const bytes = atob(text.replaceAll("-", "+").replaceAll("_", "/"));
    const z = [...new Float32Array(Uint8Array.from(bytes, (c) => c.charCodeAt(0)).buffer)];
    return z.length && z.every(Number.isFinite) ? z : null;
  } catch {
    return null; // no base64, or no whole number of float32
  }
}
