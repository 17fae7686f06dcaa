// Asking again by itself: on a beat, not while nobody looks, later when the service says so.

/**
 * @typedef {Object} PollState
 * @property {"loading" | "live" | "failed"} phase
 * @property {number | null} updatedAt of the answer that is shown, in milliseconds
 * @property {number | null} retryAt of the next attempt after a failure, in milliseconds
 * @property {import("./api.js").ApiError | null} error
 */

/** The first wait after a failure; it doubles with each further one. */
const FIRST_WAIT = 2_000;
const LONGEST_WAIT = 120_000;
/** Tabs that failed together do not come back together. */
const SPREAD = 0.2;
/** Failures that asking again does not mend. */
const FINAL = new Set(["signed-out", "forbidden", "not-found", "refused"]);

/** Whether totals update by themselves: not while the tab is hidden, nor after somebody stopped it. */
export const pace = new (class extends EventTarget {
  #paused = false;

  constructor() {
    super();
    document.addEventListener("visibilitychange", () => this.dispatchEvent(new Event("change")));
  }

  get paused() {
    return this.#paused;
  }

  set paused(paused) {
    this.#paused = paused;
    this.dispatchEvent(new Event("change"));
  }

  get running() {
    return !this.#paused && !document.hidden;
  }
})();

/** @template T */
export class Poller {
  /** @type {AbortController | null} */
  #asking = null;
  #failures = 0;
  #timer = 0;
  #dueAt = 0;
  #stopped = false;
  /** @type {PollState} */
  state = { phase: "loading", updatedAt: null, retryAt: null, error: null };

  /**
   * @param {(signal: AbortSignal) => Promise<T>} ask
   * @param {number} beat milliseconds from an answer to the next question
   * @param {(answer: T) => void} onAnswer
   * @param {(state: PollState) => void} onState
   */
  constructor(ask, beat, onAnswer, onState) {
    this.#ask = ask;
    this.#beat = beat;
    this.#onAnswer = onAnswer;
    this.#onState = onState;
    pace.addEventListener("change", this.#schedule);
  }

  /** @type {(signal: AbortSignal) => Promise<T>} */ #ask;
  /** @type {number} */ #beat;
  /** @type {(answer: T) => void} */ #onAnswer;
  /** @type {(state: PollState) => void} */ #onState;

  /** Ask now, in place of a question that is under way. */
  async now() {
    if (this.#stopped) return;
    clearTimeout(this.#timer);
    this.#asking?.abort();
    const asking = new AbortController();
    this.#asking = asking;
    try {
      const answer = await this.#ask(asking.signal);
      if (asking.signal.aborted) return;
      this.#failures = 0;
      this.#next(this.#beat);
      this.#set({ phase: "live", updatedAt: Date.now(), retryAt: null, error: null });
      this.#onAnswer(answer);
    } catch (error) {
      if (asking.signal.aborted) return;
      this.#fail(/** @type {any} */ (error));
    } finally {
      if (this.#asking === asking) {
        this.#asking = null;
        this.#schedule();
      }
    }
  }

  /** @param {import("./api.js").ApiError} error */
  #fail(error) {
    if (!error.kind) throw error;
    this.#failures += 1;
    const isFinal = FINAL.has(error.kind);
    if (!isFinal) {
      const wait = Math.min(FIRST_WAIT * 2 ** (this.#failures - 1), LONGEST_WAIT);
      this.#next(Math.max(wait, error.retryAfter * 1000) * (1 + Math.random() * SPREAD));
    } else {
      this.#dueAt = 0;
    }
    this.#set({ ...this.state, phase: "failed", retryAt: isFinal ? null : this.#dueAt, error });
  }

  /** @param {number} wait */
  #next(wait) {
    this.#dueAt = Date.now() + wait;
  }

  #schedule = () => {
    clearTimeout(this.#timer);
    if (this.#stopped || this.#asking || !this.#dueAt || !pace.running) return;
    this.#timer = setTimeout(() => this.now(), Math.max(0, this.#dueAt - Date.now()));
  };

  /** @param {PollState} state */
  #set(state) {
    this.state = state;
    this.#onState(state);
  }

  stop() {
    this.#stopped = true;
    clearTimeout(this.#timer);
    this.#asking?.abort();
    pace.removeEventListener("change", this.#schedule);
  }
}
