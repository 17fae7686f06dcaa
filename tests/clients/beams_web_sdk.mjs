// Runs Pusher's web SDK and its service worker under Node, on commands.
//
//   node beams_web_sdk.mjs FOLDER SERVICE_URL INSTANCE_ID SECONDS
//
// FOLDER has the packages in node_modules; the browser's clock is SECONDS ahead, as the service's may be. Each line of
// standard input is a command, {"call": name, "args": [...]}; each is answered by one line, {"result": ...} or
// {"error": text}. What a browser has and Node lacks stands here: a window, a push manager, a service worker's scope, and
// the rules by which a browser lets a page of one origin call another.
import crypto from 'node:crypto';
import { createRequire } from 'node:module';
import path from 'node:path';
import readline from 'node:readline';
import { pathToFileURL } from 'node:url';
import vm from 'node:vm';

const [folder, serviceUrl, instanceId, ahead] = process.argv.slice(2);
const require = createRequire(path.join(folder, 'package.json'));
const origin = 'https://shop.example';
const nodeFetch = globalThis.fetch;

// ------------------------------------------------------------------------------------------------------ same-origin policy
const SIMPLE_METHODS = ['GET', 'HEAD', 'POST'];

async function allowed(url, options) {
  const unsafe = Object.keys(options.headers || {}).map((name) => name.toLowerCase());
  if (SIMPLE_METHODS.includes(options.method || 'GET') && unsafe.length === 0) return;
  const answer = await nodeFetch(url, {
    method: 'OPTIONS',
    headers: {
      Origin: origin,
      'Access-Control-Request-Method': options.method,
      'Access-Control-Request-Headers': unsafe.join(','),
    },
  });
  const words = (name) => (answer.headers.get(name) || '').toLowerCase().split(/\s*,\s*/);
  if (
    !answer.ok ||
    !['*', origin].includes(answer.headers.get('Access-Control-Allow-Origin')) ||
    !words('Access-Control-Allow-Methods').includes(options.method.toLowerCase()) ||
    !unsafe.every((name) => words('Access-Control-Allow-Headers').includes(name))
  ) {
    throw new TypeError(`the browser does not let the page call ${options.method} ${url}`);
  }
}

let running = 0;

async function browserFetch(url, options = {}) {
  running += 1;
  try {
    await allowed(url, options);
    const answer = await nodeFetch(url, { ...options, headers: { Origin: origin, ...options.headers } });
    if (!['*', origin].includes(answer.headers.get('Access-Control-Allow-Origin'))) {
      throw new TypeError(`the browser does not let the page read ${url}`);
    }
    return answer;
  } finally {
    running -= 1;
  }
}

async function quiet() {
  // Reports of the service worker are nobody's to wait for: a while without any under way means that they are done.
  for (let still = 0; still < 5; still = running ? 0 : still + 1) {
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

// ------------------------------------------------------------------------------------------------------------ push manager
let subscription = null;

const pushManager = {
  getSubscription: async () => subscription,
  subscribe: async ({ userVisibleOnly, applicationServerKey }) => {
    if (userVisibleOnly !== true) throw new Error('a browser wants pushes to be visible');
    const browser = crypto.createECDH('prime256v1');
    browser.generateKeys();
    browser.computeSecret(applicationServerKey); // throws unless the key is a point of the curve
    const json = {
      endpoint: `https://push.example/${crypto.randomUUID()}`,
      expirationTime: null,
      keys: { p256dh: browser.getPublicKey('base64url'), auth: crypto.randomBytes(16).toString('base64url') },
    };
    subscription = {
      unsubscribe: () => {
        subscription = null;
      },
      toJSON: () => json,
    };
    return subscription;
  },
};

// ------------------------------------------------------------------------------------------------------------------ window
const { indexedDB } = require('fake-indexeddb');
const registration = { scope: `${origin}/`, pushManager };

Object.assign(globalThis, {
  fetch: browserFetch,
  window: globalThis,
  self: globalThis,
  indexedDB,
  isSecureContext: true,
  PushManager: class {},
  Notification: { permission: 'granted' },
  location: { href: `${origin}/page` },
});
Object.defineProperty(globalThis, 'navigator', {
  configurable: true,
  value: { userAgent: 'Node', serviceWorker: { ready: Promise.resolve(registration) } },
});

// ---------------------------------------------------------------------------------------------------------- service worker
const listeners = {};
const shown = [];
let windows = [];
const worker = {
  addEventListener: (type, listener) => {
    listeners[type] = listener;
  },
  clients: { matchAll: async () => windows, openWindow: async () => null },
  registration: {
    showNotification: async (title, options) => {
      shown.push({ title, ...options });
    },
  },
};

function startWorker() {
  const bundle = require('esbuild').buildSync({
    entryPoints: [path.join(folder, 'node_modules/@pusher/push-notifications-web/src/service-worker.js')],
    bundle: true,
    format: 'iife',
    write: false,
  });
  const clock = { now: () => Date.now() + ahead * 1000 };
  const scope = vm.createContext({ self: worker, clients: worker.clients, indexedDB, fetch: browserFetch, Date: clock });
  vm.runInContext(bundle.outputFiles[0].text, scope);
  worker.PusherPushNotifications.endpointOverride = serviceUrl;
}

async function dispatch(type, event) {
  const waits = [];
  listeners[type]({ ...event, waitUntil: (promise) => waits.push(promise) });
  await Promise.all(waits);
  await quiet();
}

// ---------------------------------------------------------------------------------------------------------------- commands
const sdk = await import(
  pathToFileURL(path.join(folder, 'node_modules/@pusher/push-notifications-web/dist/push-notifications-esm.js'))
);
let client = null;

const commands = {
  load: async () => {
    client = new sdk.Client({ instanceId, endpointOverride: serviceUrl, serviceWorkerRegistration: registration });
    return client.getRegistrationState();
  },
  start: async () => {
    await client.start();
    return client.getDeviceId();
  },
  changeBrowser: async (userAgent) => {
    navigator.userAgent = userAgent;
    await client._updateDeviceMetadata();
  },
  setUserId: async (userId, token) => client.setUserId(userId, { fetchToken: async () => ({ token }) }),
  push: async (payload, isVisible) => {
    windows = isVisible ? [{ visibilityState: 'visible', focused: false }] : [];
    await dispatch('push', { data: { json: () => payload } });
    return shown.at(-1);
  },
  click: async () => dispatch('notificationclick', {
    notification: { data: shown.at(-1).data, close: () => {} },
  }),
};

startWorker();
for await (const line of readline.createInterface({ input: process.stdin })) {
  const { call, args } = JSON.parse(line);
  let answer;
  try {
    const result = await (commands[call] ? commands[call](...args) : client[call](...args));
    answer = { result: result === undefined ? null : result };
  } catch (error) {
    answer = { error: error.message };
  }
  console.log(JSON.stringify(answer));
}
