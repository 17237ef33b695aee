/**
 * Requests as plain data, `{path, query?, body?}`, and as programs that send the same. Bodies hold texts, numbers and
 * lists, so their JSON is Python too. Pure functions.
 */

export const target = ({ path, query }) => (query ? `${path}?${new URLSearchParams(query)}` : path);

export const method = ({ body }) => (body ? "POST" : "GET");

/** Programs by language. They print JSON, or write a file; a key is read from a variable, so none is on the screen. */
export const PROGRAMS = {
	curl: (request, root, guarded) =>
		lines(" \\\n  ", [
			`curl -s ${quoted(root + target(request))}`,
			guarded && '-H "Authorization: Bearer $VAE_API_KEY"',
			request.body && `-H 'Content-Type: application/json' \\\n  -d ${quoted(JSON.stringify(request.body))}`,
			file(request) && `-o ${file(request)}`,
		]),

	Python: (request, root, guarded) =>
		lines("\n", [
			`import json${guarded ? ", os" : ""}\nfrom urllib.request import Request, urlopen\n`,
			`request = Request("${root}${target(request)}")`,
			guarded && 'request.add_header("Authorization", "Bearer " + os.environ["VAE_API_KEY"])',
			request.body && 'request.add_header("Content-Type", "application/json")',
			request.body && `request.data = json.dumps(${JSON.stringify(request.body)}).encode()`,
			file(request)
				? `open("${file(request)}", "wb").write(urlopen(request).read())`
				: "answer = json.load(urlopen(request))\nprint(json.dumps(answer))",
		]),

	JavaScript: (request, root, guarded) =>
		lines("\n", [
			`fetch("${root}${target(request)}", {\n  method: "${method(request)}",\n  headers: {`,
			guarded && "    Authorization: `Bearer ${process.env.VAE_API_KEY}`,",
			request.body && '    "Content-Type": "application/json",',
			"  },",
			request.body && `  body: JSON.stringify(${JSON.stringify(request.body)}),`,
			"})",
			file(request)
				? `  .then((response) => response.arrayBuffer())
  .then(async (answer) => (await import("node:fs")).writeFileSync("${file(request)}", Buffer.from(answer)));`
				: `  .then((response) => response.json())
  .then((answer) => console.log(JSON.stringify(answer)));`,
		]).replace("\n  headers: {\n  },", ""),
};

/** Return the durations of a Server-Timing header in milliseconds, by name. */
export function timings(header) {
	const found = (header ?? "").matchAll(/([\w-]+)\s*;[^,]*?\bdur=([\d.]+)/g);
	return Object.fromEntries(Array.from(found, ([, name, ms]) => [name, Number(ms)]));
}

const lines = (separator, parts) => parts.filter(Boolean).join(separator);
const file = ({ path, query }) => query?.format && `${path.slice(1)}.${query.format}`;
const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
