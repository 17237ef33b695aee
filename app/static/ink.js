/**
 * The sheet that one draws on, as numbers: strokes, undo, invert, and the picture that the model reads.
 *
 * The sheet is `scale` times finer than that picture, whose pixels are the means of `scale` x `scale` blocks.
 * Coordinates are in pixels of the picture; data are bytes in rows, channels innermost. Knows no canvas.
 */

const MAX_UNDO = 40;

export class Ink {
  constructor({ channels, height, width }, scale) {
    Object.assign(this, { channels, height, width, scale, past: [], white: 255 });
    this.sheet = new Uint8Array(height * width * channels * scale ** 2);
  }

  get blank() {
    return !this.sheet.some(Boolean);
  }

  /** Make `undo` come back to this sheet. */
  remember() {
    this.past = [...this.past.slice(1 - MAX_UNDO), [this.sheet.slice(), this.white]];
  }

  undo() {
    if (this.past.length) [this.sheet, this.white] = this.past.pop();
  }

  clear() {
    this.load(new Uint8Array(this.sheet.length));
  }

  /** Replace the sheet. */
  load(data) {
    this.remember();
    [this.sheet, this.white] = [data, 255];
  }

  /** Turn black into white and back; strokes too from now on. */
  invert() {
    this.remember();
    [this.sheet, this.white] = [this.sheet.map((value) => 255 - value), 255 - this.white];
  }

  /** Paint a straight stroke with round ends and soft edges. */
  line(from, to, radius) {
    const [x0, y0, x1, y1, r] = [...from, ...to, radius].map((value) => value * this.scale);
    const [columns, rows] = [this.width * this.scale, this.height * this.scale];
    const [left, right] = [Math.min(x0, x1) - r - 1, Math.max(x0, x1) + r + 1];
    const [top, bottom] = [Math.min(y0, y1) - r - 1, Math.max(y0, y1) + r + 1];
    for (let y = Math.max(0, Math.floor(top)); y < Math.min(rows, bottom); y++) {
      for (let x = Math.max(0, Math.floor(left)); x < Math.min(columns, right); x++) {
        const cover = Math.min(1, r + 0.5 - distance(x + 0.5 - x0, y + 0.5 - y0, x1 - x0, y1 - y0));
        if (cover > 0) this.#blend(y * columns + x, cover);
      }
    }
  }

  /** Return the picture that the model reads. */
  picture() {
    const { channels, width, scale, sheet } = this;
    const sums = new Float64Array(sheet.length / scale ** 2);
    const row = width * scale * channels;
    sheet.forEach((value, i) => {
      const [y, x] = [Math.floor(i / row), Math.floor((i % row) / channels)];
      sums[(Math.floor(y / scale) * width + Math.floor(x / scale)) * channels + (i % channels)] += value;
    });
    return Uint8Array.from(sums, (sum) => Math.round(sum / scale ** 2));
  }

  #blend(pixel, cover) {
    const value = Math.round(this.white ? 255 * cover : 255 * (1 - cover));
    const better = this.white ? Math.max : Math.min;
    for (let i = pixel * this.channels; i < (pixel + 1) * this.channels; i++) {
      this.sheet[i] = better(this.sheet[i], value);
    }
  }
}

/** Return the distance of a point from a segment that begins at the origin. */
function distance(x, y, dx, dy) {
  const t = Math.min(1, Math.max(0, (x * dx + y * dy) / (dx * dx + dy * dy || 1)));
  return Math.hypot(x - t * dx, y - t * dy);
}
