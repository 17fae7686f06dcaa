// Small controls that several views use.
import { h } from "./dom.js";

/**
 * A choice between few words.
 *
 * @param {string} label
 * @param {Record<string, string>} words
 * @param {() => string} now
 * @param {(value: string) => void} choose
 */
export function switcher(label, words, now, choose) {
  const name = label.replace(/\W/g, "-");
  const inputs = Object.entries(words).map(([value, text]) => {
    const input = /** @type {HTMLInputElement} */ (h("input", { type: "radio", name, value }));
    input.addEventListener("change", () => choose(value));
    return { input, element: h("label", {}, input, h("span", {}, text)) };
  });
  const show = () => { for (const { input } of inputs) input.checked = input.value === now(); };
  show();
  return { show, element: h("fieldset", { class: "switcher" }, h("legend", { class: "unseen" }, label), inputs.map(({ element }) => element)) };
}
