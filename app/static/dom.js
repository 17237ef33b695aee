/** What panels do with elements, by id where one is given. PNGs are in base64. */

export const $ = (id) => document.getElementById(id);

export const on = (id, listener, event = "click") => $(id).addEventListener(event, listener);

export const h = (name, attributes = {}, ...children) => set(document.createElement(name), attributes, ...children);

/** Give an element attributes and more children. */
export function set(element, attributes, ...children) {
	for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
	element.append(...children);
	return element;
}

/** Return a new copy of what is in a template. */
export const stamp = (id) => $(id).content.firstElementChild.cloneNode(true);

export const pngUrl = (png) => `data:image/png;base64,${png}`;

/** Show PNGs as buttons. One is a tab stop, and arrow keys go on; the same number as before keeps them, and the focus. */
export function gallery(grid, images, name, choose) {
	if (grid.childElementCount !== images.length) {
		grid.replaceChildren(...images.map((_, i) => h("button", { type: "button", tabindex: i ? -1 : 0 }, h("img"))));
	}
	const cells = [...grid.children];
	cells.forEach((cell, i) => {
		set(cell.firstChild, { src: pngUrl(images[i]), alt: name(i) });
		cell.onclick = () => choose(i);
	});
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

/** Return a button that copies what `text()` returns, and says so. */
export function copyButton(label, text) {
	const button = h("button", { type: "button" }, label);
	button.onclick = async () => {
		button.textContent = (await copied(text())) ? "Copied" : "Copying failed";
		setTimeout(() => (button.textContent = label), 1500);
	};
	return button;
}

/** Copy text; over plain HTTP the clipboard's own interface is shut, and the old way is left. */
async function copied(text) {
	if (navigator.clipboard) return navigator.clipboard.writeText(text).then(() => true, () => false);
	const area = h("textarea", {}, text);
	document.body.append(area);
	area.select();
	const done = document.execCommand("copy");
	area.remove();
	return done;
}
