// The public API, as much of it as the dashboard uses. Every failure is an ApiError whose `kind` a view can act on.
import { authorization, session } from "./session.js";

/**
 * @typedef {Record<string, number | null>} Totals devices by stage; null is "no data"
 * @typedef {Object} Message
 * @property {string} msg_id
 * @property {string | null} vendor
 * @property {string | null} kind
 * @property {string | null} title
 * @property {number | null} created_at unix seconds
 * @property {number | null} expires_at unix seconds
 * @property {number | null} first_event_at the hour, unix seconds
 * @property {number | null} last_event_at the hour, unix seconds
 * @property {Totals} totals
 * @property {Record<string, number | null>} rates
 * @typedef {{platform: string, channel: string, kind: string, totals: Totals}} Part
 * @typedef {Message & {payload: any, audience: any, breakdown: Part[], platforms: Record<string, Totals>,
 *   channels: Record<string, Totals>, kinds: Record<string, Totals>}} WholeMessage
 * @typedef {{time: string, start: number, new: Totals, cumulative: Totals}} Interval
 * @typedef {{msg_id: string, interval: string, timezone: string, series: Interval[]}} Timeline
 * @typedef {{timezone: string, messages: Message[], next: string | null}} MessagePage
 * @typedef {{time_unit: string, start: string, duration: number, items: Record<string, any>[]}} Users
 * @typedef {"signed-out" | "forbidden" | "not-found" | "rate-limited" | "store-down" | "offline" | "refused" | "failed"
 *   } Kind
 */

/** A query is answered in milliseconds; after so long the answer will not come. */
const TIMEOUT_MILLISECONDS = 30_000;

export class ApiError extends Error {
  /**
   * @param {Kind} kind
   * @param {string} message what the service says
   * @param {number} [retryAfter] seconds that it asks to wait
   */
  constructor(kind, message, retryAfter = 0) {
    super(message);
    this.kind = kind;
    this.retryAfter = retryAfter;
  }
}

/** @type {Record<number, Kind>} */
const KINDS = {
  400: "refused", 401: "signed-out", 403: "forbidden", 404: "not-found", 413: "refused", 429: "rate-limited",
  503: "store-down",
};

/**
 * @param {string} path relative to the page
 * @param {{query?: Record<string, any>, body?: any, signal?: AbortSignal,
 *   credentials?: {key: string, secret: string}}} [options]
 * @returns {Promise<any>} the body of the answer
 */
async function call(path, { query = {}, body, signal, credentials } = {}) {
  const who = credentials ?? session.now;
  if (!who) throw new ApiError("signed-out", "nobody is signed in");
  const url = new URL(path, document.baseURI.split("#")[0]);
  for (const [name, value] of Object.entries(query)) {
    if (value !== undefined && value !== null && value !== "") url.searchParams.set(name, value);
  }
  const headers = { Authorization: authorization({ ...who, zone: "" }), Accept: "application/json" };
  const timeout = AbortSignal.timeout(TIMEOUT_MILLISECONDS);
  let response, answer;
  try {
    response = await fetch(url, {
      method: body === undefined ? "GET" : "POST",
      headers: body === undefined ? headers : { ...headers, "Content-Type": "application/json" },
      body: body === undefined ? undefined : JSON.stringify(body),
      // The browser adds no credentials of its own, and so asks nobody for any.
      credentials: "omit", cache: "no-store", redirect: "error",
      signal: signal ? AbortSignal.any([signal, timeout]) : timeout,
    });
    answer = await response.json();
  } catch (error) {
    if (signal?.aborted) throw error;
    if (!response) throw new ApiError("offline", "the service does not answer");
    throw new ApiError(KINDS[response.status] ?? "failed", "the service's answer cannot be read");
  }
  if (response.ok) return answer;
  const kind = KINDS[response.status] ?? "failed";
  if (kind === "signed-out" && !credentials) session.signOut("The service does not take these keys any more.");
  throw new ApiError(kind, answer?.error?.message ?? `HTTP ${response.status}`,
    Number(response.headers.get("Retry-After")) || 0);
}

/** @param {string} id */
const messagePath = (id) => `v1/messages/${encodeURIComponent(id)}`;

export const api = {
  /**
   * @param {{limit?: number, before?: string, signal?: AbortSignal, credentials?: {key: string, secret: string}}} [options]
   * @returns {Promise<MessagePage>}
   */
  async messages({ limit, before, ...options } = {}) {
    const page = await call("v1/messages", { query: { limit, before }, ...options });
    session.learn(page.timezone);
    return page;
  },

  /** @param {string} id @param {AbortSignal} [signal] @returns {Promise<WholeMessage>} */
  message: async (id, signal) => (await call(messagePath(id), { signal })).message,

  /**
   * @param {string} id
   * @param {{interval?: string, platform?: string, signal?: AbortSignal}} [options]
   * @returns {Promise<Timeline>}
   */
  async timeline(id, { interval, platform, ...options } = {}) {
    const timeline = await call(`${messagePath(id)}/timeline`, { query: { interval, platform }, ...options });
    session.learn(timeline.timezone);
    return timeline;
  },

  /** @param {string} start the first day @param {number} days @param {AbortSignal} [signal] @returns {Promise<Users>} */
  users: (start, days, signal) => call("v3/users", { query: { time_unit: "DAY", start, duration: days }, signal }),

  /**
   * @param {string} id
   * @param {string[]} devices
   * @param {string} date empty: now
   * @param {AbortSignal} [signal]
   * @returns {Promise<Record<string, {status: number}>>}
   */
  status: (id, devices, date, signal) => call("v3/status/message", {
    body: { msg_id: id, registration_ids: devices, ...(date ? { date } : {}) }, signal }),
};

/**
 * Check credentials, and learn the timezone of their app.
 *
 * @param {string} key
 * @param {string} secret
 * @returns {Promise<import("./session.js").Session>}
 */
export async function check(key, secret) {
  return { key, secret, zone: (await api.messages({ limit: 1, credentials: { key, secret } })).timezone };
}
