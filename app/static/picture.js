/**
 * Image files, in and out. Pixels are bytes in rows, channels innermost; a shape is `{channels, height, width}`.
 */

/** Return pixels as a PNG file: 8-bit gray or RGB, the same bytes in every browser. */
export async function encodePng({ channels, height, width }, data) {
  const stride = width * channels;
  const rows = new Uint8Array(height * (stride + 1)); // each row begins with its filter: 0, none
  for (let y = 0; y < height; y++) rows.set(data.subarray(y * stride, (y + 1) * stride), y * (stride + 1) + 1);
  const header = new Uint8Array(13);
  const view = new DataView(header.buffer);
  view.setUint32(0, width);
  view.setUint32(4, height);
  header.set([8, channels === 3 ? 2 : 0], 8);
  const packed = new Blob([rows]).stream().pipeThrough(new CompressionStream("deflate"));
  const body = new Uint8Array(await new Response(packed).arrayBuffer());
  const signature = [137, 80, 78, 71, 13, 10, 26, 10];
  return Uint8Array.from([...signature, ...chunk("IHDR", header), ...chunk("IDAT", body), ...chunk("IEND", [])]);
}

/**
 * Return the pixels of an image file at `scale` times a shape, decoded by the browser as the service would: upright,
 * transparency on black, the center cropped to the shape's aspect, gray by ITU-R 601.
 *
 * A file that has the shape's size already keeps its very pixels.
 *
 * @throws the browser cannot decode the file
 */
export async function decodeFile(blob, { channels, height, width }, scale = 1) {
  const image = await createImageBitmap(blob);
  const [columns, rows] = [width * scale, height * scale];
  const canvas = Object.assign(document.createElement("canvas"), { width: columns, height: rows });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillRect(0, 0, columns, rows);
  context.imageSmoothingEnabled = image.width !== width || image.height !== height;
  context.imageSmoothingQuality = "high";
  const zoom = Math.max(columns / image.width, rows / image.height);
  const [w, h] = [image.width * zoom, image.height * zoom];
  context.drawImage(image, (columns - w) / 2, (rows - h) / 2, w, h);
  const { data } = context.getImageData(0, 0, columns, rows);
  if (channels === 3) return data.filter((_, i) => i % 4 < 3);
  const gray = (_, i) => 0.299 * data[4 * i] + 0.587 * data[4 * i + 1] + 0.114 * data[4 * i + 2];
  return Uint8Array.from({ length: columns * rows }, (_, i) => Math.round(gray(_, i)));
}

/** Return a PNG in base64 as a Blob. */
export function pngBlob(base64) {
  return new Blob([Uint8Array.from(atob(base64), (c) => c.charCodeAt(0))], { type: "image/png" });
}

function chunk(name, data) {
  const bytes = new Uint8Array(data.length + 12);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, data.length);
  bytes.set(new TextEncoder().encode(name), 4);
  bytes.set(data, 8);
  view.setUint32(data.length + 8, crc32(bytes.subarray(4, data.length + 8)));
  return bytes;
}

function crc32(bytes) {
  let crc = ~0;
  for (const byte of bytes) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit++) crc = (crc >>> 1) ^ (crc & 1 ? 0xedb88320 : 0);
  }
  return ~crc;
}
