// The page's pure modules, without a browser: node --test tests/test_static.mjs (tests/test_static.py does that).

import assert from "node:assert/strict";
import { execFile, execFileSync } from "node:child_process";
import { createServer } from "node:http";
import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { promisify } from "node:util";

import { formatFragment, isSeed, parseFragment } from "../app/static/fragment.js";
import { latest, quietly, signal } from "../app/static/latest.js";
import { byDivergence, fixed, milliseconds, percent } from "../app/static/numbers.js";
import { centered, pixels } from "../app/static/picture.js";
import { atFrame, counts, ellipse, frame, inFrame, lattice, lift, nearest, project } from "../app/static/plane.js";
import { method, PROGRAMS, target, timings } from "../app/static/request.js";

const AXES = [[0.6, 0.8, 0], [0, 0, 1]]; // of a plane in three dimensions

test("a fragment comes back as the state that it was made of, bit for bit", () => {
  const z = [...Float32Array.from([0, -1.5, 0.1, 3.4028234e38, -1e-40])];
  const state = { n: 64, temperature: 0.35, seed: "9223372036854775807", dims: [4, 17], z };
  assert.deepEqual(parseFragment(`#${formatFragment(state)}`), state);
  assert.deepEqual(parseFragment(formatFragment({ ...state, dims: null, z: null })), { ...state, dims: null, z: null });
});

test("what makes no sense in a fragment takes its default, and the rest stands", () => {
  const defaults = { n: 16, temperature: 1, seed: "7", dims: null, z: null };
  for (const wrong of ["", "#", "#input", "#n=0&temperature=3&seed=-1&z=%%%", "#n=1.5&seed=9223372036854775808", "#dims=1", "#dims=-1,2"]) {
    assert.deepEqual(parseFragment(wrong), defaults, wrong);
  }
  for (const z of ["a", "AAA", "AAAAAAA", "AADAfw", "AACAfw", "_-_-"]) assert.equal(parseFragment(`#z=${z}`).z, null, z);
  assert.deepEqual(parseFragment("#n=4&temperature=&seed=x"), { ...defaults, n: 4 });
  assert.deepEqual(parseFragment("#temperature=0"), { ...defaults, temperature: 0 });
});

test("a seed is a whole number from 0 to 2^63 - 1", () => {
  for (const seed of ["0", "007", "9223372036854775807"]) assert.ok(isSeed(seed), seed);
  for (const seed of ["", "-1", "1e3", "1.0", " 1", "9223372036854775808", undefined]) assert.ok(!isSeed(seed), seed);
});

test("a curl line is quoted so that a shell hands on exactly what was meant", () => {
  const request = { path: "/kl", query: { unit: "nats" }, body: { text: "it's \"$HOME\" `\\n` ü" } };
  const line = PROGRAMS.curl(request, "http://127.0.0.1:1", true).replace(/^curl/, "printf '%s\\0'");
  const words = execFileSync("sh", ["-c", line], { env: { VAE_API_KEY: "a b" } }).toString().split("\0").slice(0, -1);
  const headers = ["-H", "Authorization: Bearer a b", "-H", "Content-Type: application/json"];
  assert.deepEqual(words, ["-s", "http://127.0.0.1:1/kl?unit=nats", ...headers, "-d", JSON.stringify(request.body)]);
});

test("a request without query and body is a bare address", () => {
  assert.equal(target({ path: "/model" }), "/model");
  assert.equal(PROGRAMS.curl({ path: "/model" }, "http://h", false), "curl -s 'http://h/model'");
  assert.equal(PROGRAMS.JavaScript({ path: "/model" }, "http://h", false).split(" .then")[0], 'fetch("http://h/model", {\n  method: "GET",\n})\n ');
});

test("programs in all languages send the same request, with the key of the environment, and print the same answer", async () => {
  const bodies = [{ text: "it's \"$HOME\" `\\n` ü\u2028 ${1}", z: [[0.1, -2, 1e-7]] }, undefined];
  for (const body of bodies) {
    const request = { path: "/kl", query: { unit: "nats", text: "a&b c" }, body };
    const seen = await exchanges(request, "application/json", '{"kl": [0.5]}');
    assert.equal(seen.length, 3);
    for (const { url, method: verb, type, key, sent, printed } of seen) {
      assert.deepEqual([url, verb, key], [target(request), method(request), "Bearer a b"]);
      assert.deepEqual(sent && JSON.parse(sent), body ?? "");
      if (body) assert.equal(type, "application/json");
      assert.deepEqual(JSON.parse(printed), { kl: [0.5] });
    }
  }
});

test("programs write what is no JSON into a file", async () => {
  const request = { path: "/decode", query: { format: "png" }, body: { z: [[0]] } };
  for (const { printed, written } of await exchanges(request, "image/png", "a picture")) {
    assert.deepEqual(written, [["decode.png", "a picture"]]);
    assert.equal(printed, "");
  }
});

test("Server-Timing is read by name, and a missing one is empty", () => {
  assert.deepEqual(timings('queue;dur=0.125, device;desc="x";dur=3, total;dur=4.5, cache'), { queue: 0.125, device: 3, total: 4.5 });
  assert.deepEqual(timings(null), {});
});

test("the latest value wins, one call at a time, and the last is always worked on", async () => {
  const seen = [];
  let release;
  const offer = latest((value) => {
    seen.push(value);
    return new Promise((resolve) => (release = resolve));
  });
  for (let i = 0; i < 30; i++) offer(i);
  assert.deepEqual(seen, [0]);
  release();
  await settled();
  assert.deepEqual(seen, [0, 29]);
  release();
  await settled();
  assert.deepEqual(seen, [0, 29]);
  offer(30);
  assert.deepEqual(seen, [0, 29, 30]);
});

test("work that asks for it is called again with the newest value", async () => {
  const seen = [];
  const offer = latest(async (value) => {
    seen.push(value);
    return seen.length < 3 ? 1 : 0;
  });
  offer("a");
  while (seen.length < 3) await new Promise((resolve) => setTimeout(resolve, 1));
  assert.deepEqual(seen, ["a", "a", "a"]);
});

test("a signal tells all its listeners, in their order", () => {
  const heard = [];
  const value = signal(1);
  value.subscribe((x) => heard.push(["first", x]));
  value.subscribe((x) => heard.push(["second", x]));
  value.set(2);
  assert.equal(value.value, 2);
  assert.deepEqual(heard, [["first", 2], ["second", 2]]);
});

test("numbers are written for people", () => {
  assert.deepEqual([fixed(-1.005), fixed(-0.001), fixed(2, 3)], ["−1.00", "0.00", "2.000"]);
  assert.deepEqual([milliseconds(0.04), milliseconds(12.3), milliseconds(2345)], ["0.0 ms", "12 ms", "2.3 s"]);
  assert.deepEqual([percent(0, -3, 3), percent(-9, -3, 3), percent(9, -3, 3)], ["50%", "0%", "100%"]);
});

test("dimensions come by their divergence, and equals in their order", () => {
  assert.deepEqual(byDivergence([0.1, 2, 0.1, 3]), [3, 1, 0, 2]);
});

test("work that waits for quiet is done once, with the last value", async () => {
  const seen = [];
  const offer = quietly((value) => seen.push(value), 1);
  for (let i = 0; i < 5; i++) offer(i);
  await new Promise((resolve) => setTimeout(resolve, 20));
  assert.deepEqual(seen, [4]);
});

test("pixels are the means of blocks, in color or gray", () => {
  const red = [200, 0, 0, 255];
  const blue = [0, 0, 100, 255];
  const image = { width: 4, data: [red, red, blue, blue, red, blue, blue, blue].flat() };
  assert.deepEqual([...pixels(image, 3, 2)], [150, 0, 25, 0, 0, 100]);
  assert.deepEqual([...pixels(image, 1, 2)], [Math.round(0.299 * 150 + 0.114 * 25), 11]);
  assert.deepEqual([...pixels({ width: 1, data: [7, 7, 7, 255, 0, 0, 0, 255] }, 1)], [7, 0]);
});

test("a latent is lifted to the place at which it is seen, through the origin, and no other part of it changes", () => {
  const origin = [1, 2, 3];
  assert.deepEqual(project(origin, AXES), [0.6 + 1.6, 3]);
  const lifted = lift([-1, 5], AXES, origin);
  close(project(lifted, AXES), [-1, 5]);
  assert.ok(Math.abs(0.8 * (lifted[0] - 1) - 0.6 * (lifted[1] - 2)) < 1e-3, "moved at right angles to the plane");
  assert.deepEqual(lift(project(origin, AXES), AXES, origin), origin);
});

test("a frame reaches three standard deviations, and there and back is where one was", () => {
  const seen = frame([[0, 1], [2, 1], [1, 0], [1, 2]], [1, 1]);
  close([seen.x, seen.y, seen.half], [1, 1, 3 * Math.sqrt(0.5)]);
  close(atFrame(inFrame([0.3, -2], seen), seen), [0.3, -2]);
  assert.deepEqual(inFrame([1, 2], { x: 0, y: 0, half: 2 }), [0.5, -1]);
  assert.equal(frame([[3, 3]], [3, 3]).half, 1);
});

test("a lattice goes row by row from the top, and counts what lies in its cells", () => {
  const seen = { x: 0, y: 0, half: 2 };
  assert.deepEqual(lattice(seen, 2), [[-1, 1], [1, 1], [-1, -1], [1, -1]]);
  assert.deepEqual(counts([[-1, 1], [-0.1, 0.1], [1.9, -1.9], [0, 9], [0, -9], [9, 0], [-9, 0]], seen, 2), [2, 0, 0, 1]);
});

test("the outline of a posterior lies one sigma away, in the plane's own directions", () => {
  const flat = ellipse([1, 2, 3], [0.5, 0.5, 2], AXES);
  for (const [x, y] of flat) assert.ok(Math.abs(((x - 2.2) / 0.5) ** 2 + ((y - 3) / 2) ** 2 - 1) < 1e-9);
  const tilted = ellipse([0, 0], [1, 3], [[0.6, 0.8], [-0.8, 0.6]]);
  for (const [x, y] of tilted) assert.ok(Math.abs((0.6 * x - 0.8 * y) ** 2 + ((0.8 * x + 0.6 * y) / 3) ** 2 - 1) < 1e-9);
});

test("the nearest points come nearest first", () => {
  assert.deepEqual(nearest([[0, 0], [3, 0], [1, 1], [0, 2]], [0, 1.2], 3), [3, 2, 0]);
});

function close(found, expected) {
  expected.forEach((value, i) => assert.ok(Math.abs(found[i] - value) < 1e-3, `${found} is not ${expected}`));
}

/** Run the programs of a request against a server that gives one answer; return what it saw, and what they printed. */
async function exchanges(request, type, answer) {
  const seen = [];
  const server = createServer((incoming, outgoing) => {
    let sent = "";
    incoming.setEncoding("utf8").on("data", (part) => (sent += part));
    incoming.on("end", () => {
      const { url, method: verb, headers } = incoming;
      seen.push({ url, method: verb, type: headers["content-type"], key: headers.authorization, sent });
      outgoing.writeHead(200, { "Content-Type": type, Connection: "close" }).end(answer);
    });
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  const runners = { curl: ["sh", "-c"], Python: ["python3", "-c"], JavaScript: ["node", "-e"] };
  const env = { ...process.env, VAE_API_KEY: "a b" };
  for (const [language, [command, flag]] of Object.entries(runners)) {
    const program = PROGRAMS[language](request, `http://127.0.0.1:${server.address().port}`, true);
    const folder = mkdtempSync(join(tmpdir(), "page-"));
    const { stdout } = await promisify(execFile)(command, [flag, program], { env, cwd: folder });
    const written = readdirSync(folder).map((name) => [name, readFileSync(join(folder, name), "latin1")]);
    Object.assign(seen.at(-1), { printed: stdout, written });
    rmSync(folder, { recursive: true });
  }
  server.close();
  return seen;
}

function settled() {
  return new Promise((resolve) => setImmediate(resolve));
}

test("a drawing is moved so that its center of mass is in the middle, and what would leave the sheet is cut off", () => {
  const shape = { channels: 1, height: 5, width: 7 };
  const one = (x, y) => Uint8Array.from({ length: 35 }, (_, i) => (i === y * 7 + x ? 200 : 0));
  assert.deepEqual(centered(one(1, 0), shape), one(3, 2));
  assert.deepEqual(centered(one(3, 2), shape), one(3, 2));
  const heavy = one(6, 4).map((value, i) => value || (i === 2 * 7 + 0 ? 9 : 0)); // the light pixel would go beyond the edge
  assert.deepEqual(centered(heavy, shape), one(3, 2));
  assert.deepEqual(centered(new Uint8Array(35), shape), new Uint8Array(35));
  const inverted = (data) => data.map((value) => 255 - value);
  assert.deepEqual(centered(inverted(one(1, 0)), shape), inverted(one(3, 2)));
  const color = { channels: 3, height: 3, width: 3 };
  const red = (at) => Uint8Array.from({ length: 27 }, (_, i) => (i === 3 * at ? 255 : 0));
  assert.deepEqual(centered(red(2), color), red(4));
});
