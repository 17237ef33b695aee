/** One thing at a time and always the newest; and values with listeners. */

/**
 * Return a function that hands values to `work`, one at a time; of those that wait only the newest is kept. `work` must
 * not reject; where it resolves to a number, it is called again that many milliseconds later.
 */
export function latest(work) {
	let newest, running, timer, waiting;
	return async function offer(value) {
		clearTimeout(timer);
		[newest, waiting] = [value, true];
		if (running) return;
		running = true;
		while (waiting) {
			waiting = false;
			const again = await work(newest);
			if (again && !waiting) timer = setTimeout(offer, again, newest);
		}
		running = false;
	};
}

/** Return a function that does `work` with the last value, once no other came for `ms` milliseconds. */
export function quietly(work, ms) {
	let timer;
	return (value) => {
		clearTimeout(timer);
		timer = setTimeout(work, ms, value);
	};
}

/** Return a value that tells its listeners when it is set: the way in which panels hear of each other. */
export const signal = (value, listeners = []) => ({
	value,
	subscribe: (listener) => listeners.push(listener),
	set(next) {
		this.value = next;
		listeners.forEach((listener) => listener(next));
	},
});
