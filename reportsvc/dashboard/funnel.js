// One message as a funnel, and the same in a table by platform and channel.
import { h, unseen } from "./dom.js";
import { marked, number, percent, ratio } from "./format.js";
import { FUNNEL, STAGE_WORDS, channelName, platformName } from "./vocabulary.js";

/** @typedef {import("./api.js").Totals} Totals */

/** @param {Totals} totals @returns {number} the largest stage, which is the full width */
const widest = (totals) => Math.max(1, ...FUNNEL.map((stage) => totals[stage] ?? 0));

/** @param {Totals} totals @param {number} place @returns {string | null} the last stage before it that has data */
function before(totals, place) {
  return FUNNEL.slice(0, place).findLast((stage) => totals[stage]) ?? null;
}

/**
 * The same rates as the service's. Those of one channel are of what was sent over it, if that is known: a target seldom
 * says how it will be reached.
 *
 * @param {Totals} totals
 * @param {boolean} [ofChannel]
 * @returns {{received: number | null, click: number | null, of: string | null}} and of what stage "received" is a part
 */
export function rates(totals, ofChannel = false) {
  const of = (ofChannel ? ["sent", "online_push", "target"] : ["target", "sent", "online_push"]).find((stage) => totals[stage]) ?? null;
  return { received: ratio(totals.received, of && totals[of]), click: ratio(totals.click, totals.received), of };
}

/** @param {Totals} totals @returns {HTMLElement} */
export function funnel(totals) {
  return h("ol", { class: "funnel", role: "list" }, FUNNEL.map((stage, place) => step(totals, stage, place)));
}

/** @param {Totals} totals @param {string} stage @param {number} place */
function step(totals, stage, place) {
  const count = totals[stage] ?? null;
  const { name, what } = STAGE_WORDS[stage];
  const previous = before(totals, place);
  const share = (count ?? 0) / widest(totals);
  const online = stage === "sent" && totals.online_push;
  return h("li", { key: stage, class: count === null ? "empty" : "", style: { "--share": share.toFixed(5), "--colour": `var(--${stage})` } },
    h("div", { class: "stage" }, h("span", { class: "name" }, name), h("span", { class: "what" }, what)),
    h("div", { class: "track", "aria-hidden": "true" }, h("div", { class: "fill" })),
    h("div", { class: "count" }, marked(number(count)), count !== null && unseen(count === 1 ? " device" : " devices")),
    h("div", { class: "rate" }, previous && count !== null
      ? [h("b", {}, percent(ratio(count, totals[previous]))), ` of ${STAGE_WORDS[previous].name.toLowerCase()}`]
      : null,
    online ? h("span", {}, `${number(online)} over the vendor's live connection`) : null));
}

/** @param {number | null} share @param {string} colour @returns {HTMLElement} a percentage with a small bar */
export function rateBar(share, colour) {
  return h("span", { class: "rate-bar", style: { "--share": String(Math.min(share ?? 0, 1)), "--colour": `var(--${colour})` } },
    marked(percent(share)));
}

/**
 * @param {string} caption
 * @param {string} heading of the first column
 * @param {{key: string, name: string, note?: string, href?: string, totals: Totals}[]} rows
 * @param {boolean} [ofChannels]
 * @returns {HTMLElement}
 */
export function totalsTable(caption, heading, rows, ofChannels = false) {
  const stages = [...FUNNEL.slice(0, 2), "online_push", ...FUNNEL.slice(2)]
    .filter((stage) => stage !== "online_push" || rows.some(({ totals }) => totals.online_push));
  return h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": caption },
    h("table", { class: "totals" }, h("caption", {}, caption),
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, heading),
        stages.map((stage) => h("th", { scope: "col", class: "number" }, STAGE_WORDS[stage].name)),
        h("th", { scope: "col", class: "number" }, "Received rate"), h("th", { scope: "col", class: "number" }, "Click rate"))),
      h("tbody", {}, rows.map(({ key, name, note, href, totals }) => h("tr", { key },
        h("th", { scope: "row" }, href ? h("a", { href }, name) : name, note ? h("span", { class: "note" }, note) : null),
        stages.map((stage) => h("td", { class: "number" }, marked(number(totals[stage])))),
        h("td", { class: "number" }, rateBar(rates(totals, ofChannels).received, "received")),
        h("td", { class: "number" }, rateBar(rates(totals).click, "click")))))));
}

/**
 * The rows of a message's channels, each with its platform.
 *
 * @param {import("./api.js").WholeMessage} message
 * @param {(platform: string, channel: string) => string} href
 */
export function channelRows(message, href) {
  return Object.entries(message.channels).map(([channel, totals]) => {
    const platforms = [...new Set(message.breakdown.filter((part) => part.channel === channel).map((part) => part.platform))];
    return { key: channel, name: channelName(channel), note: platforms.map(platformName).join(", "),
      href: href(platforms.length === 1 ? platforms[0] : "", channel), totals };
  });
}
