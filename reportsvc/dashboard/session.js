// Who is signed in. The credentials live in this tab's session storage and in the Authorization header, nowhere else:
// no cookie, no address, no other tab.

/** @typedef {{key: string, secret: string, zone: string}} Session with the timezone of the app */

const STORED = "reportsvc.session";

/** Told with `change` when somebody signs in or out. */
export const session = new (class extends EventTarget {
  /** @type {Session | null} */
  #now = read();
  /** Why nobody is signed in any more, for the sign-in page; empty if it was their wish. */
  reason = "";

  /** @returns {Session | null} */
  get now() {
    return this.#now;
  }

  /** @returns {string} the timezone of the app */
  get zone() {
    return this.#now?.zone || "UTC";
  }

  /** @param {Session} next */
  signIn(next) {
    this.reason = "";
    this.#set(next);
  }

  /** @param {string} zone the timezone of the app, which some answers tell */
  learn(zone) {
    if (this.#now && this.#now.zone !== zone) this.#set({ ...this.#now, zone });
  }

  /** @param {string} [reason] */
  signOut(reason = "") {
    if (!this.#now) return;
    this.reason = reason;
    this.#set(null);
  }

  /** @param {Session | null} next */
  #set(next) {
    this.#now = next;
    try {
      if (next) sessionStorage.setItem(STORED, JSON.stringify(next));
      else sessionStorage.removeItem(STORED);
    } catch {
      // Storage may be forbidden; then it holds until the page is loaded again.
    }
    this.dispatchEvent(new Event("change"));
  }
})();

/** @returns {Session | null} */
function read() {
  try {
    const found = JSON.parse(sessionStorage.getItem(STORED) ?? "null");
    return found?.key && found?.secret ? found : null;
  } catch {
    return null;
  }
}

/** @param {Session} one @returns {string} the Authorization header */
export function authorization({ key, secret }) {
  const bytes = new TextEncoder().encode(`${key}:${secret}`);
  return `Basic ${btoa(String.fromCharCode(...bytes))}`;
}
