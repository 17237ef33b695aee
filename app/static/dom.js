/** What panels do with elements: make them, paint on them, copy from them. Knows no panel. */

/** Return the element with this id. */
export const $ = (id) => document.getElementById(id);

/** Return a new HTML element; an attribute whose value is a function is a listener. */
export function h(name, attributes = {}, ...children) {
  return set(document.createElement(name), attributes, children);
}

/** Return a new SVG element. */
export function svg(name, attributes = {}, ...children) {
  return set(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);
}

/** Give an element attributes and more children. */
export function set(element, attributes, children = []) {
  for (const [key, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(key, value);
    else element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
}

/** Paint pixels (bytes in rows, channels innermost) on a canvas, which takes their size. */
export function paint(canvas, { channels, height, width }, data) {
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  const image = new ImageData(width, height);
  for (let i = 0; i < width * height; i++) {
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = data[i * channels + (c % channels)];
    image.data[4 * i + 3] = 255;
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

/** Return a button that shows a PNG in base64. */
export function pictureButton(png, alt, click) {
  return h("button", { type: "button", click }, h("img", { src: pngUrl(png), alt }));
}

/** Return an address for an `<img>` that shows a PNG in base64. */
export const pngUrl = (png) => `data:image/png;base64,${png}`;

/** Return a button that copies what `text()` returns, and says so. */
export function copyButton(label, text) {
  const button = h("button", { type: "button" }, label);
  button.addEventListener("click", async () => {
    button.textContent = (await copied(text())) ? "Copied" : "Copying failed";
    setTimeout(() => (button.textContent = label), 1500);
  });
  return button;
}

/** Copy text; where the page came over plain HTTP, the clipboard's own interface is shut, and the old way is left. */
async function copied(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text).then(() => true, () => false);
  const area = h("textarea", {}, text);
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  return done;
}

/** Make one child of a grid a tab stop, and let the arrow keys move the focus from there. */
export function rove(grid) {
  const cells = [...grid.children];
  cells.forEach((cell, i) => (cell.tabIndex = i ? -1 : 0));
  grid.onkeydown = (event) => {
    const columns = cells.filter((cell) => cell.offsetTop === cells[0].offsetTop).length;
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[event.key];
    const next = step && cells[cells.indexOf(document.activeElement) + step];
    if (!next) return;
    event.preventDefault();
    cells.forEach((cell) => (cell.tabIndex = cell === next ? 0 : -1));
    next.focus();
  };
}
