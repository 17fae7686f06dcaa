// The words of the service, as people read them.

/** The way of a message, in order. @type {string[]} */
export const FUNNEL = ["target", "sent", "received", "display", "click"];
/** All stages that a chart can show, in order. @type {string[]} */
export const STAGES = ["target", "sent", "online_push", "received", "display", "click"];
/** @type {Record<string, {name: string, what: string}>} */
export const STAGE_WORDS = {
  target: { name: "Target", what: "meant to get it" },
  sent: { name: "Sent", what: "the gateway took it" },
  online_push: { name: "Online push", what: "sent over the vendor's live connection" },
  received: { name: "Received", what: "the device has it" },
  display: { name: "Displayed", what: "shown to the user" },
  click: { name: "Clicked", what: "opened by the user" },
};
/** @type {Record<string, {name: string, what: string}>} */
export const MEASURES = {
  new: { name: "New", what: "first seen that day" },
  online: { name: "Online", what: "any sign of life that day" },
  active: { name: "Active", what: "the app was opened that day" },
};
/** @type {Record<string, string>} */
const PLATFORM_NAMES = {
  android: "Android", ios: "iOS", web: "Web", winphone: "Windows Phone", quickapp: "Quick App", hmos: "HarmonyOS",
  unknown: "Unknown platform",
};
/** @type {Record<string, string>} */
const KIND_NAMES = {
  notification: "Notification", message: "Custom message", inapp: "In-app message", live_activity: "Live activity",
};

/** @param {string} platform */
export const platformName = (platform) => PLATFORM_NAMES[platform] ?? platform;
/** @param {string} kind */
export const kindName = (kind) => KIND_NAMES[kind] ?? kind;
/** @param {string} channel */
export const channelName = (channel) => channel || "channel not named";
