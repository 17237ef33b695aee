/**
 * Requests as plain data, `{method, path, query?, body?}`, and as the line that sends the same from a shell.
 * What is sent and what is shown are made from one object. Knows neither fetch nor the page.
 */

/** Return path and query of a request. */
export function target({ path, query = {} }) {
  const pairs = new URLSearchParams(query).toString();
  return pairs ? `${path}?${pairs}` : path;
}

/**
 * Return a request as a curl command for a POSIX shell.
 *
 * @param {string} root address of the service, without a slash at its end
 * @param {boolean} guarded whether a key is wanted; it is read from a variable, so that none is on the screen
 */
export function curl(request, root, guarded) {
  const parts = [`curl -s ${quoted(root + target(request))}`];
  if (guarded) parts.push('-H "Authorization: Bearer $VAE_API_KEY"');
  if (request.body) parts.push("-H 'Content-Type: application/json'", `-d ${quoted(JSON.stringify(request.body))}`);
  return parts.join(" \\\n  ");
}

/** Return the durations of a Server-Timing header in milliseconds, by name. */
export function timings(header) {
  const found = (header ?? "").matchAll(/([\w-]+)\s*;[^,]*?\bdur=([\d.]+)/g);
  return Object.fromEntries(Array.from(found, ([, name, ms]) => [name, Number(ms)]));
}

function quoted(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}
