// What a screen reader is told without being asked: at once when something is wrong, and seldom when numbers change.

/** Totals may change every few seconds; to hear of it once a minute is enough. */
const SELDOM_MILLISECONDS = 60_000;
let last = -Infinity;

/** @param {string} text */
export function announce(text) {
  last = Date.now();
  const place = document.getElementById("announcer");
  if (place) place.textContent = text;
}

/** @param {string} text about numbers that changed; left out if anything was said in the last minute */
export function announceSeldom(text) {
  if (Date.now() - last >= SELDOM_MILLISECONDS) announce(text);
}
