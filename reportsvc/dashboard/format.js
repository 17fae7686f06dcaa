// How numbers, shares and times are written. What is not known is "no data", and never 0.
import { h } from "./dom.js";

export const NO_DATA = "no data";

const numbers = new Intl.NumberFormat("en-US");
const small = new Intl.NumberFormat("en-US", { maximumFractionDigits: 1, minimumFractionDigits: 1 });

/** @param {number | null | undefined} value @returns {string} */
export function number(value) {
  return value === null || value === undefined ? NO_DATA : numbers.format(value);
}

/** @param {number | null | undefined} share 0.5 is 50 % @returns {string} */
export function percent(share) {
  if (share === null || share === undefined) return NO_DATA;
  if (share > 0 && share < 0.0005) return "<0.1%";
  // What is not all does not look like all.
  const shown = share < 1 && share > 0.9995 ? 0.999 : share;
  return `${small.format(shown * 100)}%`;
}

/**
 * @param {number | null | undefined} part
 * @param {number | null | undefined} whole
 * @returns {number | null} null where there is nothing to compare
 */
export function ratio(part, whole) {
  return part === null || part === undefined || !whole ? null : part / whole;
}

/** @param {string} text @returns {Node | string} the text, marked where it says that there is no data */
export function marked(text) {
  return text === NO_DATA ? h("span", { class: "nothing" }, text) : text;
}

/** @param {number} count @param {string} one @param {string} [many] @returns {string} "1 device", "2 devices" */
export function plural(count, one, many = `${one}s`) {
  return `${number(count)} ${count === 1 ? one : many}`;
}

/** @type {Map<string, Intl.DateTimeFormat>} */
const clocks = new Map();

/** @param {string} zone @returns {Intl.DateTimeFormat} */
function clock(zone) {
  let found = clocks.get(zone);
  if (!found) {
    // Sweden writes what everybody can read: 2026-11-21 10:00:00.
    found = new Intl.DateTimeFormat("sv-SE", { timeZone: zone, dateStyle: "short", timeStyle: "medium" });
    clocks.set(zone, found);
  }
  return found;
}

/** @param {number} seconds unix time @param {string} zone @returns {string} `2026-11-21 10:00` */
export function minute(seconds, zone) {
  return clock(zone).format(seconds * 1000).slice(0, 16);
}

/** @param {number} milliseconds unix time @param {string} zone @returns {string} `10:00:30` */
export function second(milliseconds, zone) {
  return clock(zone).format(milliseconds).slice(11);
}

/** @param {number} milliseconds unix time @param {string} zone @returns {string} `2026-11-21` */
export function day(milliseconds, zone) {
  return clock(zone).format(milliseconds).slice(0, 10);
}

/** @param {number | null} seconds unix time @param {string} zone @returns {Node | string} the time as an element */
export function time(seconds, zone) {
  if (seconds === null || seconds === undefined) return marked(NO_DATA);
  return h("time", { datetime: new Date(seconds * 1000).toISOString() }, minute(seconds, zone));
}
