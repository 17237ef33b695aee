/** Who works on what, and when: one thing at a time and always the newest; and values with listeners. */

/**
 * Return a function that hands values to `work`, one call at a time.
 *
 * A value that comes meanwhile waits, and replaces one that waits already: so few calls are made, and the last value is
 * always worked on. Where `work` resolves to a number, it is called again that many milliseconds later.
 *
 * @param {(value: any) => Promise<number | void>} work must not reject
 */
export function latest(work) {
  let newest, running, timer;
  let waiting = false;

  async function drain() {
    while (waiting) {
      waiting = false;
      const again = await work(newest);
      if (again && !waiting) timer = setTimeout(offer, again, newest);
    }
    running = false;
  }

  function offer(value) {
    clearTimeout(timer);
    newest = value;
    waiting = true;
    if (!running) running = drain();
  }
  return offer;
}

/** Return a value that tells its listeners when it is set: the way in which panels hear of each other. */
export function signal(value) {
  const listeners = [];
  return {
    get value() {
      return value;
    },
    set(next) {
      value = next;
      listeners.forEach((listener) => listener(value));
    },
    subscribe: (listener) => listeners.push(listener),
  };
}
