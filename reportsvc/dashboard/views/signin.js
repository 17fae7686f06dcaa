// Signing in with an app's key and secret.
import { check } from "../api.js";
import { h } from "../dom.js";
import { session } from "../session.js";

/** @type {Record<string, string>} */
const ADVICE = {
  "signed-out": "These are not the key and master secret of an app of this service.",
  "rate-limited": "Too many calls this minute. Wait a little and try again.",
  "store-down": "The keys seem right, but a store of the service is away. Try again in a few seconds.",
  offline: "The service does not answer. Check that it runs and that this device reaches it.",
};

/** @returns {{title: string, element: HTMLElement, stop: () => void}} */
export function signInView() {
  const key = field("App key", { id: "key", autocomplete: "username" });
  const secret = field("Master secret", { id: "secret", type: "password", autocomplete: "current-password" });
  const show = h("button", { type: "button", class: "inside", "aria-pressed": "false" }, "Show", h("span", { class: "unseen" }, " the master secret"));
  show.addEventListener("click", () => {
    const isShown = secret.input.type === "password";
    secret.input.type = isShown ? "text" : "password";
    show.setAttribute("aria-pressed", String(isShown));
  });
  secret.place.append(show);
  const error = h("p", { class: "notice danger", id: "signin-error", role: "alert", hidden: !session.reason }, session.reason);
  const button = /** @type {HTMLButtonElement} */ (h("button", { type: "submit", class: "primary" }, "Sign in"));
  const form = h("form", { class: "panel signin", novalidate: true, "aria-labelledby": "signin-title" },
    h("p", { class: "brand large" }, h("span", { class: "logo", "aria-hidden": "true" }), "reportsvc"),
    h("h1", { id: "signin-title", tabindex: -1 }, "Sign in"),
    h("p", { class: "quiet" }, "With the keys of one app. They stay in this tab and are forgotten when it is closed."),
    error, key.element, secret.element, button,
    h("details", {}, h("summary", {}, "Where do I find them?"),
      h("p", {}, "The first start of the service prints them once. For another app, the operator runs ",
        h("code", {}, "reportsvc apps create NAME"), "; lost ones are replaced with ", h("code", {}, "reportsvc apps rotate NAME"), ".")));

  /** @param {string} text @param {HTMLInputElement} input */
  const refuse = (text, input) => {
    error.textContent = text;
    error.hidden = false;
    for (const one of [key.input, secret.input]) one.setAttribute("aria-invalid", String(one === input));
    input.focus();
  };
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const [name, password] = [key.input.value.trim(), secret.input.value.trim()];
    if (!name) return refuse("Type the app key.", key.input);
    if (!password) return refuse("Type the master secret.", secret.input);
    button.disabled = true;
    button.textContent = "Signing in…";
    try {
      const found = await check(name, password);
      session.signIn(found);
    } catch (failure) {
      const { kind, message } = /** @type {import("../api.js").ApiError} */ (failure);
      refuse(ADVICE[kind] ?? `The service says: ${message}`, secret.input);
    } finally {
      button.disabled = false;
      button.textContent = "Sign in";
    }
  });
  return { title: "Sign in", element: h("div", { class: "signin-place" }, form), stop: () => {} };
}

/** @param {string} name @param {Record<string, any>} properties */
function field(name, properties) {
  const input = /** @type {HTMLInputElement} */ (h("input", {
    type: "text", required: true, spellcheck: "false", autocapitalize: "none", "aria-describedby": "signin-error", ...properties }));
  const place = h("div", { class: "field-place" }, input);
  return { input, place, element: h("div", { class: "field" }, h("label", { for: properties.id }, name), place) };
}
