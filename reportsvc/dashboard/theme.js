// Light, dark, or as the system has it. The choice is kept on this device.
import { h } from "./dom.js";

const KEY = "reportsvc.theme";
const THEMES = { system: "System", light: "Light", dark: "Dark" };
const system = matchMedia("(prefers-color-scheme: dark)");

/** @returns {string} `system`, `light` or `dark` */
function chosen() {
  return document.documentElement.dataset.theme ?? "system";
}

/** @param {string} theme */
function choose(theme) {
  const { dataset } = document.documentElement;
  if (theme === "system") delete dataset.theme;
  else dataset.theme = theme;
  try {
    if (theme === "system") localStorage.removeItem(KEY);
    else localStorage.setItem(KEY, theme);
  } catch {
    // It holds until the page is left.
  }
  dispatchEvent(new Event("themechange"));
}

system.addEventListener("change", () => dispatchEvent(new Event("themechange")));

/** @returns {HTMLElement} the control that switches it */
export function themeSwitch() {
  const select = /** @type {HTMLSelectElement} */ (h("select", { class: "quiet" },
    Object.entries(THEMES).map(([value, name]) => h("option", { value }, name))));
  select.value = chosen();
  select.addEventListener("change", () => choose(select.value));
  return h("label", { class: "theme" }, h("span", {}, "Theme"), select);
}
