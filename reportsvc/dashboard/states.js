// What is shown while there are no numbers: loading, nothing yet, and everything that can go wrong, each with what to do.
import { h, unseen } from "./dom.js";
import { second } from "./format.js";
import { session } from "./session.js";

/** @typedef {import("./api.js").ApiError} ApiError */

/** @param {string} what @returns {Node} */
export function loading(what) {
  return h("div", { class: "loading", key: "loading" }, unseen(`Loading ${what}…`),
    [1, 2, 3, 4].map(() => h("div", { class: "bone", "aria-hidden": "true" })));
}

/**
 * @param {string} title
 * @param {import("./dom.js").Child[]} text
 * @param {{tone?: string}} [options]
 * @returns {HTMLElement}
 */
export function panel(title, text, { tone = "plain" } = {}) {
  return h("section", { class: `panel ${tone}` }, h("h2", {}, title), ...text);
}

/**
 * What went wrong, where there is nothing else to show.
 *
 * @param {ApiError} error
 * @param {number | null} retryAt
 * @param {() => void} again
 * @returns {HTMLElement}
 */
export function problem(error, retryAt, again) {
  const { title, help } = words(error);
  return panel(title, [
    h("p", {}, help),
    h("p", { class: "quiet" }, "The service says: ", h("q", {}, error.message), "."),
    h("p", { class: "row" }, h("button", { type: "button", on: { click: again } }, "Try now"), countdown(retryAt)),
  ], { tone: error.kind === "rate-limited" ? "warning" : "danger" });
}

/**
 * What went wrong, above older numbers.
 *
 * @param {ApiError} error
 * @param {import("./poll.js").PollState} state
 * @param {() => void} again
 * @returns {HTMLElement}
 */
export function stale(error, state, again) {
  const { title, help } = words(error);
  const since = state.updatedAt ? ` These numbers are from ${second(state.updatedAt, session.zone)}.` : "";
  return h("div", { class: `notice ${error.kind === "rate-limited" ? "warning" : "danger"}` },
    h("div", {}, h("strong", {}, `${title}.${since}`), " ", h("span", {}, help)),
    h("div", { class: "row" }, countdown(state.retryAt), h("button", { type: "button", on: { click: again } }, "Try now")));
}

/** @param {ApiError} error @returns {{title: string, help: string}} */
function words(error) {
  switch (error.kind) {
    case "rate-limited":
      return { title: "Too many calls this minute",
        help: "This app has used its calls for the minute, here or elsewhere. Updates go on by themselves." };
    case "store-down":
      return storeWords(error.message);
    case "offline":
      return { title: "The service does not answer",
        help: "It may be restarting, or this device may be off the network. The page tries again by itself." };
    case "signed-out":
      return { title: "Not signed in", help: "Sign in again to go on." };
    case "forbidden":
      return { title: "Not allowed", help: "This app may not use this report." };
    case "not-found":
      return { title: "Not found", help: "There is nothing at this address." };
    case "refused":
      return { title: "The service refused the question", help: "Something in it is not as it should be." };
    default:
      return { title: "Something went wrong in the service",
        help: "Its log has the details. The page tries again by itself." };
  }
}

/** @param {string} message @returns {{title: string, help: string}} */
function storeWords(message) {
  if (/clickhouse/i.test(message)) {
    return { title: "The store of the numbers is away",
      help: "ClickHouse does not answer. Events are still taken and are counted when it is back: nothing is lost, and no "
        + "number is shown as 0 meanwhile." };
  }
  if (/redis/i.test(message)) {
    return { title: "The store of events and devices is away",
      help: "Redis does not answer. Senders are told to try again; what was acknowledged is safe." };
  }
  return { title: "A store is away", help: "The numbers are safe, and the page tries again by itself." };
}

/** @param {number | null} retryAt milliseconds @returns {HTMLElement | null} "next try in 8 s", counting */
export function countdown(retryAt) {
  if (!retryAt) return null;
  const place = h("span", { class: "quiet", "aria-hidden": "true", "data-own": "", key: retryAt });
  const tick = () => {
    const left = Math.ceil((retryAt - Date.now()) / 1000);
    place.textContent = left > 0 ? `next try in ${left} s` : "trying…";
    if (place.isConnected && left > 0) setTimeout(tick, 500);
  };
  setTimeout(tick, 500);
  tick();
  return place;
}

/**
 * A command to paste, with a button that copies it.
 *
 * @param {string} text
 * @param {string} name
 * @returns {HTMLElement}
 */
export function command(text, name) {
  const copy = h("button", { type: "button", class: "copy", "aria-label": `Copy ${name}` }, "Copy");
  copy.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text);
      copy.textContent = "Copied";
    } catch {
      copy.textContent = "Select and copy by hand";
    }
    setTimeout(() => { copy.textContent = "Copy"; }, 2000);
  });
  return h("div", { class: "command", "data-own": "" },
    h("pre", { tabindex: 0, role: "region", "aria-label": name }, h("code", {}, text)), copy);
}
