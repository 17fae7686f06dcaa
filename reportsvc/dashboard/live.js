// A part of a page that asks, shows the answer, and keeps it up to date; and everything that can happen meanwhile.
import { announce } from "./announce.js";
import { h, update } from "./dom.js";
import { Poller } from "./poll.js";
import { loading, problem, stale } from "./states.js";

/** @typedef {import("./poll.js").PollState} PollState */
/** @type {Set<Live<any>>} */
const shown = new Set();

/** Told with `change` when the state of what is shown changes. */
export const lives = new EventTarget();

/** @returns {PollState | null} the state of what is shown: the worst of all */
export function worstState() {
  const states = [...shown].map((live) => live.state);
  return states.find(({ phase }) => phase === "failed") ?? states.find(({ phase }) => phase === "loading")
    ?? states[0] ?? null;
}

/** @template T */
export class Live {
  /** @type {T | null} */
  #answer = null;

  /**
   * @param {Object} options
   * @param {(signal: AbortSignal) => Promise<T>} options.ask
   * @param {(answer: T) => import("./dom.js").Child | import("./dom.js").Child[]} options.render
   * @param {number} options.beat milliseconds between questions
   * @param {string} options.what what is loaded, for those who do not see it: "messages"
   * @param {(error: import("./api.js").ApiError) => import("./dom.js").Child} [options.explain] what to show in place
   *   of the usual words for an error; null for those
   */
  constructor({ ask, render, beat, what, explain = () => null }) {
    this.#render = render;
    this.#what = what;
    this.#explain = explain;
    this.notice = h("div", { class: "notice-place" });
    this.body = h("div", { class: "live", "aria-busy": "true" }, loading(what));
    this.element = h("div", {}, this.notice, this.body);
    this.#poller = new Poller(ask, beat, (answer) => this.#show(answer), (state) => this.#tell(state));
    shown.add(this);
    this.#poller.now();
    lives.dispatchEvent(new Event("change"));
  }

  /** @type {(answer: T) => any} */ #render;
  /** @type {(error: import("./api.js").ApiError) => any} */ #explain;
  /** @type {string} */ #what;
  /** @type {Poller<T>} */ #poller;

  /** @returns {PollState} */
  get state() {
    return this.#poller.state;
  }

  /** @returns {T | null} the last answer */
  get answer() {
    return this.#answer;
  }

  /** Ask now. */
  refresh() {
    return this.#poller.now();
  }

  /** Ask for something else: what is shown is of no use any more. */
  restart() {
    this.#answer = null;
    this.body.setAttribute("aria-busy", "true");
    update(this.body, loading(this.#what));
    update(this.notice);
    this.#poller.now();
  }

  /** Draw the last answer again. */
  redraw() {
    if (this.#answer !== null) update(this.body, this.#render(this.#answer));
  }

  /** @param {T} answer */
  #show(answer) {
    this.#answer = answer;
    this.body.setAttribute("aria-busy", "false");
    this.redraw();
  }

  /** @param {PollState} state */
  #tell(state) {
    const wasFailed = this.notice.childNodes.length > 0 || this.body.dataset.failed === "yes";
    if (state.phase === "failed" && state.error) {
      this.#tellFailure(state, wasFailed);
    } else {
      delete this.body.dataset.failed;
      update(this.notice);
      if (wasFailed) announce("The numbers are up to date again.");
    }
    lives.dispatchEvent(new Event("change"));
  }

  /** @param {PollState} state @param {boolean} wasFailed */
  #tellFailure(state, wasFailed) {
    const error = /** @type {import("./api.js").ApiError} */ (state.error);
    const again = () => this.refresh();
    const isGone = ["forbidden", "not-found", "refused"].includes(error.kind);
    if (this.#answer === null || isGone) {
      this.#answer = isGone ? null : this.#answer;
      this.body.dataset.failed = "yes";
      this.body.setAttribute("aria-busy", "false");
      update(this.body, this.#explain(error) ?? problem(error, state.retryAt, again));
      update(this.notice);
      if (!wasFailed) announce(this.body.querySelector("h2")?.textContent ?? error.message);
    } else {
      update(this.notice, stale(error, state, again));
      if (!wasFailed) announce(this.notice.querySelector("strong")?.textContent ?? error.message);
    }
  }

  stop() {
    shown.delete(this);
    this.#poller.stop();
    lives.dispatchEvent(new Event("change"));
  }
}
