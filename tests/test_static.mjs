// The page's pure modules, without a browser: node --test tests/test_static.mjs (tests/test_static.py does that).

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { test } from "node:test";
import { inflateSync } from "node:zlib";

import { formatFragment, isSeed, parseFragment, toBase64 } from "../app/static/fragment.js";
import { Ink } from "../app/static/ink.js";
import { latest, signal } from "../app/static/latest.js";
import { byDivergence, fixed, milliseconds, percent } from "../app/static/numbers.js";
import { encodePng } from "../app/static/picture.js";
import { curl, target, timings } from "../app/static/request.js";

const SHAPE = { channels: 1, height: 4, width: 5 };

test("a fragment comes back as the state that it was made of, bit for bit", () => {
  const z = [...Float32Array.from([0, -1.5, 0.1, 3.4028234e38, -1e-40])];
  const state = { n: 64, temperature: 0.35, seed: "9223372036854775807", z };
  assert.deepEqual(parseFragment(`#${formatFragment(state)}`), state);
  assert.deepEqual(parseFragment(formatFragment({ ...state, z: null })), { ...state, z: null });
});

test("what makes no sense in a fragment takes its default, and the rest stands", () => {
  const defaults = { n: 16, temperature: 1, seed: "7", z: null };
  for (const wrong of ["", "#", "#input", "#n=0&temperature=3&seed=-1&z=%%%", "#n=1.5&seed=9223372036854775808"]) {
    assert.deepEqual(parseFragment(wrong), defaults, wrong);
  }
  for (const z of ["a", "AAA", "AAAAAAA", "AADAfw", "AACAfw"]) assert.equal(parseFragment(`#z=${z}`).z, null, z);
  assert.deepEqual(parseFragment("#n=4&temperature=&seed=x"), { ...defaults, n: 4 });
  assert.deepEqual(parseFragment("#temperature=0"), { ...defaults, temperature: 0 });
});

test("a seed is a whole number from 0 to 2^63 - 1", () => {
  for (const seed of ["0", "007", "9223372036854775807"]) assert.ok(isSeed(seed), seed);
  for (const seed of ["", "-1", "1e3", "1.0", " 1", "9223372036854775808", undefined]) assert.ok(!isSeed(seed), seed);
});

test("a curl line is quoted so that a shell hands on exactly what was meant", () => {
  const request = { method: "POST", path: "/kl", query: { unit: "nats" }, body: { text: "it's \"$HOME\" `\\n` ü" } };
  const line = curl(request, "http://127.0.0.1:1", true).replace(/^curl/, "printf '%s\\0'");
  const words = execFileSync("sh", ["-c", line], { env: { VAE_API_KEY: "a b" } }).toString().split("\0").slice(0, -1);
  const headers = ["-H", "Authorization: Bearer a b", "-H", "Content-Type: application/json"];
  assert.deepEqual(words, ["-s", "http://127.0.0.1:1/kl?unit=nats", ...headers, "-d", JSON.stringify(request.body)]);
});

test("a request without query and body is a bare address", () => {
  assert.equal(target({ path: "/model" }), "/model");
  assert.equal(curl({ method: "GET", path: "/model" }, "http://h", false), "curl -s 'http://h/model'");
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

test("a stroke covers what it passes, softly at its edge, and nothing else", () => {
  const ink = new Ink(SHAPE, 8);
  assert.ok(ink.blank);
  ink.line([0, 2], [5, 2], 1);
  const rows = byRow(ink.picture());
  assert.deepEqual(rows[0], [0, 0, 0, 0, 0]);
  assert.deepEqual(rows[3], [0, 0, 0, 0, 0]);
  for (const row of [rows[1], rows[2]]) assert.ok(row.every((value) => value > 240), row);
});

test("a click leaves a round dot, also beyond the edge of the sheet", () => {
  const ink = new Ink(SHAPE, 8);
  ink.line([2.5, 2.5], [2.5, 2.5], 0.5);
  const around = [...ink.picture()];
  assert.ok(around[12] > 0.7 * 255 && around[12] < 0.9 * 255, `${around[12]}, the area of a disc is 0.785`);
  assert.ok(around.every((value, i) => i === 12 || value < 10), around);
  ink.line([-9, -9], [99, 99], 0.2);
});

test("undo goes back step by step, through strokes, inversion, pictures and clearing", () => {
  const ink = new Ink(SHAPE, 2);
  const pictures = [[...ink.picture()]];
  const actions = [
    () => (ink.remember(), ink.line([1, 1], [3, 3], 1)),
    () => ink.invert(),
    () => ink.load(Uint8Array.from({ length: 80 }, (_, i) => i)),
    () => ink.clear(),
  ];
  for (const action of actions) {
    action();
    pictures.push([...ink.picture()]);
  }
  while (ink.past.length) {
    assert.deepEqual([...ink.picture()], pictures.pop());
    ink.undo();
  }
  assert.deepEqual([...ink.picture()], pictures.pop());
  ink.undo();
});

test("on an inverted sheet strokes are black", () => {
  const ink = new Ink(SHAPE, 4);
  ink.invert();
  assert.ok(ink.picture().every((value) => value === 255));
  ink.line([2.5, 2], [2.5, 2], 1.5);
  assert.equal(byRow(ink.picture())[2][2], 0);
  assert.equal(byRow(ink.picture())[0][4], 255);
});

test("a color sheet keeps its channels apart, and averages blocks", () => {
  const ink = new Ink({ channels: 3, height: 1, width: 2 }, 2);
  ink.load(Uint8Array.from([1, 2, 3, 3, 2, 1, 9, 9, 9, 9, 9, 9, 1, 2, 3, 3, 2, 1, 9, 9, 9, 9, 9, 9]));
  assert.deepEqual([...ink.picture()], [2, 2, 2, 9, 9, 9]);
});

for (const [channels, type] of [[1, 0], [3, 2]]) {
  test(`a PNG with ${channels} channels holds exactly the pixels`, async () => {
    const pixels = Uint8Array.from({ length: 20 * channels }, (_, i) => (i * 37) % 256);
    const file = Buffer.from(await encodePng({ ...SHAPE, channels }, pixels));
    assert.equal(file.subarray(1, 4).toString(), "PNG");
    assert.deepEqual([file.readUInt32BE(16), file.readUInt32BE(20), file[24], file[25]], [5, 4, 8, type]);
    const rows = inflateSync(file.subarray(41, 41 + file.readUInt32BE(33)));
    const unfiltered = byRow(rows, 5 * channels + 1).flatMap(([filter, ...row]) => (assert.equal(filter, 0), row));
    assert.deepEqual(unfiltered, [...pixels]);
    assert.equal(file.subarray(-12).toString("hex"), "0000000049454e44ae426082");
  });
}

test("base64 is the usual one", () => {
  assert.equal(toBase64(Uint8Array.from([0, 255, 62, 63])), Buffer.from([0, 255, 62, 63]).toString("base64"));
});

function byRow(data, width = SHAPE.width) {
  return Array.from({ length: data.length / width }, (_, y) => [...data.slice(y * width, (y + 1) * width)]);
}

function settled() {
  return new Promise((resolve) => setImmediate(resolve));
}
