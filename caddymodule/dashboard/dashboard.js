// The list of devices. All of them are held here; only the rows in sight are in the
// document. Text of devices enters through textContent alone.
import { at, bytes, element, getJSON, link, since } from "./text.js";
import { close, refreshOpen, show, told } from "./device.js";
import { chart, every, sample } from "./traffic.js";

const devices = new Map();
let order = []; // all devices, sorted
let shown = []; // those that match
let unsorted = true; // order has to be made anew
let loadedAt = 0;
let live = false;
let trouble = ""; // why the list is not up to date
const sort = { by: "", down: false };

const byId = (id) => document.getElementById(id);
const viewport = byId("viewport");
const list = byId("list");

// load reads the whole list, page by page, and shows what there is of it meanwhile.
let loading = false;
let stale = false; // what has been read of the list may have changed since
async function load() {
  if (loading) {
    stale = true;
    return;
  }
  loading = true;
  stale = false;
  try {
    const seen = new Set();
    let after = "";
    do {
      const page = await getJSON("api/devices?limit=1000&after=" + encodeURIComponent(after));
      for (const d of page.devices) {
        seen.add(d.device);
        keep(d);
      }
      after = page.next || "";
      if (!loadedAt) soon();
    } while (after);
    for (const id of devices.keys()) {
      if (seen.has(id)) continue;
      devices.delete(id);
      unsorted = true;
    }
    loadedAt = Date.now();
    trouble = "";
    const { nodes } = await getJSON("api/nodes");
    showNodes(nodes);
    refresh();
  } catch (err) {
    live = false;
    fail(err);
  } finally {
    loading = false;
    if (stale) load();
  }
}

// fail says why what is shown is not what is.
function fail(err) {
  trouble = String(err.message || err);
  summarise();
  if (loadedAt || devices.size > 0) return;
  byId("empty").textContent = whyEmpty();
  byId("empty").hidden = false;
}

function keep(d) {
  d.text = [d.device, d.hostname, d.remote, d.node, d.agent, ...d.tags, ...d.ports.map((p) => p.addr || "")].join(" ").toLowerCase();
  const old = devices.get(d.device);
  devices.set(d.device, d);
  if (!old || key(old) !== key(d)) unsorted = true;
}

// key is what a device is sorted by.
function key(d) {
  switch (sort.by) {
    case "for": return -Date.parse((d.state === "online" ? d.since : d.last_seen) || 0);
    case "from": return d.remote || "";
    default: return d[sort.by] || "";
  }
}

function inOrder() {
  if (!unsorted && order.length === devices.size) {
    order = order.map((d) => devices.get(d.device));
    return;
  }
  unsorted = false;
  const keyed = Array.from(devices.values(), (d) => [key(d), d]);
  const sign = sort.down ? -1 : 1;
  keyed.sort(([a, x], [b, y]) => (a < b ? -sign : a > b ? sign : x.device < y.device ? -1 : 1));
  order = keyed.map(([, d]) => d);
}

// refresh finds out which devices match, and draws.
function refresh() {
  inOrder();
  const text = byId("search").value.trim().toLowerCase();
  const state = document.querySelector("input[name=state]:checked").value;
  const tag = byId("tag").value;
  shown = order.filter((d) => (!state || d.state === state) && (!tag || d.tags.includes(tag)) && (!text || d.text.includes(text)));
  const empty = byId("empty");
  empty.hidden = shown.length > 0;
  viewport.hidden = shown.length === 0;
  empty.textContent = whyEmpty();
  byId("table").setAttribute("aria-rowcount", shown.length + 1);
  offerTags();
  summarise();
  draw(true);
}

// whyEmpty says why no device is shown.
function whyEmpty() {
  if (devices.size > 0) return "No device matches.";
  if (loadedAt) return "No device yet. “caddy iottunnel enroll ID” gives one its secret; it is listed here from then on.";
  return trouble ? "The list cannot be read: " + trouble + ". It is tried again." : "Loading…";
}

// soon refreshes, but leaves the browser most of its time: a fleet that comes back is
// drawn a few times a second.
let due = 0;
let took = 0;
function soon() {
  if (due) return;
  due = setTimeout(() => {
    due = 0;
    const began = performance.now();
    refresh();
    took = performance.now() - began;
  }, Math.max(150, 5 * took));
}

// offerTags lists the tags that devices have.
function offerTags() {
  const all = new Set();
  for (const d of order) for (const tag of d.tags) if (all.size < 500) all.add(tag);
  const select = byId("tag");
  const names = [...all].sort();
  if (names.join() === select.dataset.names) return;
  select.dataset.names = names.join();
  const chosen = select.value;
  const any = element("option", "", "All tags");
  any.value = "";
  select.replaceChildren(any, ...names.map((name) => element("option", "", name)));
  select.value = all.has(chosen) ? chosen : "";
  select.hidden = all.size === 0;
}

function summarise() {
  const to = byId("summary");
  to.replaceChildren();
  to.classList.toggle("bad", !!trouble);
  if (trouble) {
    to.textContent = "Not up to date" + (loadedAt ? " since " + new Date(loadedAt).toLocaleTimeString() : "") + ": " + trouble;
    return;
  }
  if (!loadedAt && devices.size === 0) return; // nothing is known yet
  let online = 0;
  for (const d of order) if (d.state === "online") online++;
  to.append(element("b", "", online.toLocaleString()), " of " + devices.size.toLocaleString() + " online");
  if (shown.length !== devices.size) to.append(" · " + shown.length.toLocaleString() + " shown");
  to.append(!loadedAt ? " · loading" : live ? " · live" : " · as of " + new Date(loadedAt).toLocaleTimeString());
}

// showNodes shows how full each node is, where there are several.
function showNodes(nodes) {
  byId("nodes").replaceChildren(...(nodes.length < 2 ? [] : nodes.map((n) => {
    const silent = n.heartbeat_age_ms > 6000;
    const item = element("li", n.draining || silent ? "away" : "");
    const meter = element("meter");
    meter.max = Math.max(1, n.capacity);
    meter.high = n.capacity * 0.9;
    meter.value = n.clients;
    meter.setAttribute("aria-label", n.node + ": " + n.clients + " of " + n.capacity);
    item.append(element("b", "", n.node), meter, n.clients.toLocaleString() + (silent ? " · silent" : n.draining ? " · draining" : ""));
    return item;
  })));
}

// draw puts the rows in sight into the document.
const rows = new Map(); // id → element
function inSight() {
  const root = getComputedStyle(document.documentElement);
  const height = parseFloat(root.getPropertyValue("--row")) * parseFloat(root.fontSize);
  const first = Math.max(0, Math.floor(viewport.scrollTop / height) - 8);
  const last = Math.min(shown.length, Math.ceil((viewport.scrollTop + viewport.clientHeight) / height) + 8);
  return { height, first, last };
}

function draw(again) {
  const { height, first, last } = inSight();
  list.style.height = shown.length * height + "px";
  const want = new Set();
  for (let i = first; i < last; i++) want.add(shown[i].device);
  const focused = document.activeElement?.closest?.(".row")?.device?.device;
  for (const [id, row] of rows) {
    if (want.has(id)) continue;
    const i = id === focused ? shown.findIndex((d) => d.device === id) : -1;
    if (i >= 0) { // the keyboard's place stays
      row.style.top = i * height + "px";
      continue;
    }
    row.remove();
    rows.delete(id);
    if (id === focused) viewport.focus({ preventScroll: true });
  }
  for (let i = first; i < last; i++) {
    const d = shown[i];
    let row = rows.get(d.device);
    if (!row) {
      row = element("div");
      row.setAttribute("role", "row");
      rows.set(d.device, row);
      fill(row, d);
      list.append(row);
    } else if (again) {
      fill(row, d);
    }
    row.style.top = i * height + "px";
    row.setAttribute("aria-rowindex", i + 2);
  }
}

function cell(kind, ...what) {
  const e = element("span", kind);
  e.setAttribute("role", "cell");
  e.append(...what);
  return e;
}

function fill(row, d) {
  if (row.device === d) {
    row.querySelector(".for").textContent = since(d);
    return;
  }
  const fresh = row.device && row.device.state !== d.state;
  const focused = row.contains(document.activeElement);
  row.device = d;
  row.className = "row " + d.state + (d.secret === "revoked" ? " revoked" : "") + (fresh ? " fresh" : "");
  const dot = element("span", "dot");
  dot.title = d.secret === "revoked" ? "revoked" : d.state;
  dot.setAttribute("role", "img");
  dot.setAttribute("aria-label", dot.title);
  const name = element("button", "name", d.device);
  name.type = "button";
  const tags = d.tags.map((tag) => element("span", "tag", tag));
  const page = d.ports.find((p) => p.url);
  const host = link(page && page.url, d.hostname || (d.secret === "revoked" ? "revoked" : "was never connected"), "host");
  const ports = d.ports.map((p) => {
    const port = link(p.url, String(p.port), "port");
    port.title = [p.kind, p.url || p.addr || "not public"].filter(Boolean).join(" ");
    return port;
  });
  row.replaceChildren(
    cell("state", dot), cell("who", name, ...tags), cell("where", host), cell("ports", ...ports), cell("traffic"),
    cell("for", since(d)), cell("from", d.remote || ""), cell("node", d.node || ""),
  );
  drawTraffic(row);
  if (focused) name.focus({ preventScroll: true });
}

function drawTraffic(row) {
  const line = row.device.state === "online" ? chart(row.device.device, bytes) : undefined;
  row.querySelector(".traffic").replaceChildren(...(line ? [line] : []));
}

// watchTraffic asks how much goes to and from what is in sight.
async function watchTraffic() {
  if (document.hidden) return;
  const { first, last } = inSight();
  const ids = shown.slice(first, last).filter((d) => d.state === "online").map((d) => d.device);
  const open = byId("details").open && byId("detail-name").textContent;
  if (open && !ids.includes(open)) ids.push(open);
  try {
    await sample(ids.slice(0, 200), getJSON);
  } catch {
    return; // load says what is wrong
  }
  for (const row of rows.values()) drawTraffic(row);
  refreshOpen();
}

// follow takes changes as they come, while the page is seen.
let source = null;
function follow() {
  if (source) source.close();
  source = null;
  live = false;
  if (document.hidden) return;
  source = new EventSource(at("api/events"));
  source.onopen = () => {
    live = true;
    load();
  };
  source.onerror = () => { // the browser tries again
    live = false;
    summarise();
    if (loadedAt) getJSON("api/nodes").catch(fail);
    else load();
  };
  source.addEventListener("device", (e) => {
    const d = JSON.parse(e.data);
    keep(d);
    soon();
    told(d);
  });
  source.addEventListener("missed", load);
}

function again() {
  viewport.scrollTop = 0;
  refresh();
}

function sortBy(by) {
  sort.down = sort.by === by && !sort.down;
  sort.by = by;
  unsorted = true;
  for (const button of document.querySelectorAll("[data-sort]")) {
    const header = button.closest("[role=columnheader]");
    if (button.dataset.sort === by) header.setAttribute("aria-sort", sort.down ? "descending" : "ascending");
    else header.removeAttribute("aria-sort");
  }
  again();
}

// step moves the keyboard's place by some rows.
function step(by) {
  const from = document.activeElement.closest?.(".row")?.device;
  let i = from ? shown.findIndex((d) => d.device === from.device) + by : 0;
  i = Math.max(0, Math.min(shown.length - 1, i));
  const { height } = inSight();
  const top = i * height;
  if (top < viewport.scrollTop) viewport.scrollTop = top;
  else if (top + height > viewport.scrollTop + viewport.clientHeight) viewport.scrollTop = top + height - viewport.clientHeight;
  draw(false);
  rows.get(shown[i]?.device)?.querySelector(".name").focus({ preventScroll: true });
}

// changed is told of a device that the dialog has had changed.
function changed(d) {
  keep(d);
  refresh();
}

list.addEventListener("click", (e) => {
  const row = e.target.closest(".row");
  if (row && e.target.closest("button")) show(row.device, changed);
  else if (e.target.classList.contains("tag")) {
    byId("tag").value = e.target.textContent;
    again();
  }
});
// The browser would give the keyboard's place back, had the row not been drawn anew.
byId("details").addEventListener("close", () => {
  rows.get(byId("detail-name").textContent)?.querySelector(".name").focus({ preventScroll: true });
});
byId("search").addEventListener("input", again);
byId("tag").addEventListener("change", again);
for (const radio of document.querySelectorAll("input[name=state]")) radio.addEventListener("change", again);
for (const button of document.querySelectorAll("[data-sort]")) button.addEventListener("click", () => sortBy(button.dataset.sort));
document.addEventListener("keydown", (e) => {
  if (e.ctrlKey || e.metaKey || e.altKey || byId("details").open) return;
  const typing = e.target.closest?.("input, select");
  const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: 20, PageUp: -20 };
  if (e.key === "/" && !typing) {
    byId("search").focus();
  } else if (e.key in steps && (!typing || (e.target.id === "search" && e.key === "ArrowDown"))) {
    step(steps[e.key]);
  } else if (e.key === "Escape" && e.target.id === "search") {
    e.target.value = "";
    again();
  } else {
    return;
  }
  e.preventDefault();
});
viewport.addEventListener("scroll", () => requestAnimationFrame(() => draw(false)), { passive: true });
addEventListener("resize", () => draw(false));
addEventListener("pagehide", close);
document.addEventListener("visibilitychange", follow);
setInterval(() => { if (!document.hidden) draw(true); }, 10000);
// What no event tells: the nodes' load, and what was missed.
setInterval(() => { if (!document.hidden) (live && devices.size > 2000 ? getJSON("api/nodes").then(({ nodes }) => showNodes(nodes), () => {}) : load()); }, 30000);
setInterval(() => { if (!document.hidden && loadedAt && live && Date.now() - loadedAt > 300000) load(); }, 60000);
setInterval(watchTraffic, every);
sortBy("device");
follow(); // which loads
