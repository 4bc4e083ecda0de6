// What devices in sight send and take, as small charts: bytes per second of the last
// two minutes, asked for every few seconds.
const every = 3000;
const most = 40; // samples of a device
const samples = new Map(); // id → { at, sum, rates }

// sample asks for the traffic of devices, and forgets those that are not among them.
export async function sample(ids, getJSON) {
  for (const id of samples.keys()) if (!ids.includes(id)) samples.delete(id);
  if (ids.length === 0) return;
  const all = await getJSON("api/traffic?ids=" + ids.map(encodeURIComponent).join(","));
  const now = performance.now();
  for (const [id, [received, sent]] of Object.entries(all)) {
    const sum = received + sent;
    const s = samples.get(id);
    if (!s || sum < s.sum) { // or it has connected anew
      samples.set(id, { at: now, sum, rates: s ? s.rates : [] });
      continue;
    }
    s.rates.push(((sum - s.sum) * 1000) / Math.max(1, now - s.at));
    if (s.rates.length > most) s.rates.shift();
    s.at = now;
    s.sum = sum;
  }
}

const svg = (name, attributes) => {
  const e = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) e.setAttribute(key, value);
  return e;
};

// chart returns the line of a device, or nothing when there is none.
export function chart(id, bytes) {
  const rates = samples.get(id)?.rates || [];
  if (rates.length < 2) return undefined;
  const top = Math.max(1024, ...rates);
  const points = rates.map((r, i) => ((most - rates.length + i) * 2).toFixed(0) + "," + (19 - (r / top) * 18).toFixed(1));
  const e = svg("svg", { viewBox: "0 0 80 20", preserveAspectRatio: "none", class: "chart", role: "img", "aria-label": bytes(Math.round(rates.at(-1))) + " per second" });
  const title = svg("title", {});
  title.textContent = e.getAttribute("aria-label");
  // The line below shows how far back the chart goes, whatever has been seen of it.
  e.append(title, svg("path", { d: "M0 19.5h80" }), svg("polyline", { points: points.join(" ") }));
  return e;
}

export const rate = (id) => samples.get(id)?.rates.at(-1);
export { every };
