// Building and updating the page. Text is only ever set as text: nothing here parses HTML.

/** @typedef {Node | string | number | null | undefined | false} Child */

const SVG = "http://www.w3.org/2000/svg";

/**
 * An element. Properties: `on` has event listeners, `style` custom properties, `key` tells siblings apart when they
 * change; everything else is an attribute, and null or false leaves it out.
 *
 * @param {string} tag
 * @param {Record<string, any> | null} [properties]
 * @param {...(Child | Child[])} children
 * @returns {HTMLElement}
 */
export function h(tag, properties, ...children) {
  const element = document.createElement(tag);
  set(element, properties ?? {});
  add(element, children);
  return element;
}

/**
 * An element of a drawing, which screen readers do not meet.
 *
 * @param {string} path the `d` of its one path
 * @returns {Element}
 */
export function icon(path) {
  const drawing = document.createElementNS(SVG, "svg");
  set(drawing, { viewBox: "0 0 16 16", class: "icon", "aria-hidden": "true" });
  const line = document.createElementNS(SVG, "path");
  line.setAttribute("d", path);
  drawing.append(line);
  return drawing;
}

/** @param {string} text @returns {HTMLElement} text for screen readers alone */
export const unseen = (text) => h("span", { class: "unseen" }, text);

/** @param {Element} element @param {Record<string, any>} properties */
function set(element, properties) {
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "on") {
      for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
    } else if (name === "style") {
      for (const [property, text] of Object.entries(value)) {
        /** @type {HTMLElement} */ (element).style.setProperty(property, text);
      }
    } else if (name === "key") {
      element.setAttribute("data-key", value);
    } else {
      element.setAttribute(name, value === true ? "" : String(value));
    }
  }
}

/** @param {Element} element @param {any[]} children */
function add(element, children) {
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    element.append(child instanceof Node ? child : String(child));
  }
}

/**
 * Make the children of *parent* like *children*, and keep what is the same: focus, selection, scroll positions and open
 * details stay where they are. Listeners of elements that stay are those they had.
 *
 * @param {Element} parent
 * @param {...(Child | Child[])} children
 */
export function update(parent, ...children) {
  const wanted = document.createElement("div");
  add(wanted, children);
  morphChildren(parent, wanted);
}

/**
 * A place for an element that lives longer than what is drawn around it: it is put there once, and then left alone.
 *
 * @param {string} key
 * @param {Element} element
 * @returns {HTMLElement}
 */
export function slot(key, element) {
  return h("div", { class: "slot", key, "data-own": "" }, element.isConnected ? null : element);
}

/** @param {Node} node @returns {string | null} */
const keyOf = (node) => (node instanceof Element ? node.getAttribute("data-key") : null);

/** @param {Node} one @param {Node} other */
const isAlike = (one, other) => one.nodeName === other.nodeName && keyOf(one) === keyOf(other);

/** @param {Element} parent @param {Element} wanted */
function morphChildren(parent, wanted) {
  const keyed = new Map([...parent.childNodes].map((node) => [keyOf(node), node]));
  let here = parent.firstChild;
  for (const child of [...wanted.childNodes]) {
    const key = keyOf(child);
    const old = key === null ? here : keyed.get(key) ?? null;
    if (old && isAlike(old, child)) {
      if (old === here) here = here.nextSibling;
      else parent.insertBefore(old, here);
      morph(old, child);
    } else {
      parent.insertBefore(child, here);
    }
  }
  while (here) {
    const next = here.nextSibling;
    here.remove();
    here = next;
  }
}

/** @param {Node} old @param {Node} wanted */
function morph(old, wanted) {
  if (!(old instanceof Element) || !(wanted instanceof Element)) {
    if (old.nodeValue !== wanted.nodeValue) old.nodeValue = wanted.nodeValue;
    return;
  }
  if (old.hasAttribute("data-own")) return; // it draws itself
  morphAttributes(old, wanted);
  morphChildren(old, wanted);
}

/** @param {Element} old @param {Element} wanted */
function morphAttributes(old, wanted) {
  for (const { name } of [...old.attributes]) {
    // Whoever opened or closed details did it by hand.
    if (!wanted.hasAttribute(name) && name !== "open") old.removeAttribute(name);
  }
  for (const { name, value } of wanted.attributes) {
    if (old.getAttribute(name) === value || name === "open") continue;
    // The policy of the page forbids to set the attribute, but not what it stands for.
    if (name === "style") {
      /** @type {HTMLElement} */ (old).style.cssText = /** @type {HTMLElement} */ (wanted).style.cssText;
    } else {
      old.setAttribute(name, value);
    }
  }
}
