// The live part of the page. Readings, settings and firmware come as server-sent
// events; commands, and the round trip that is shown, go over a WebSocket. What
// comes from the device enters the page as text only.
"use strict";

(() => {
	const $ = (id) => document.getElementById(id);
	const windowMS = 10 * 60 * 1000;
	const state = { settings: null, readings: [], intervalMS: 1000, startedMS: 0, skewMS: 0, alarm: null };

	const invalid = document.querySelector("[aria-invalid]");
	if (invalid) invalid.focus();
	let edited = invalid !== null;
	$("settings-form").addEventListener("input", () => { edited = true; });

	// ---- Units and words

	const inUnit = (celsius) => state.settings.unit === "F" ? celsius * 9 / 5 + 32 : celsius;
	const degrees = (celsius, digits = 2) => inUnit(celsius).toFixed(digits) + " °" + state.settings.unit;
	const clock = (ms, seconds) => new Date(ms).toLocaleTimeString([], {
		hour: "2-digit", minute: "2-digit", second: seconds ? "2-digit" : undefined, hour12: false,
	});
	const size = (bytes) => {
		for (const unit of ["bytes", "KiB", "MiB"]) {
			if (bytes < 1024) return (unit === "bytes" ? bytes : bytes.toFixed(1)) + " " + unit;
			bytes /= 1024;
		}
		return bytes.toFixed(2) + " GiB";
	};
	const span = (ms) => {
		const s = Math.floor(ms / 1000), m = Math.floor(s / 60), h = Math.floor(m / 60), d = Math.floor(h / 24);
		if (d > 0) return d + " d " + h % 24 + " h";
		if (h > 0) return h + " h " + m % 60 + " min";
		return m > 0 ? m + " min" : s + " s";
	};
	const put = (node, text) => { if (node.textContent !== text) node.textContent = text; };
	const link = (id, to, text) => {
		$(id).dataset.state = to;
		put($(id).querySelector(".text"), text);
	};
	// announce is for those who do not see the page: changes of state, no numbers
	// that run.
	const announce = (text) => put($("announce"), text);

	// ---- What is known now

	function takeSnapshot(s) {
		state.settings = s.settings;
		state.intervalMS = s.interval_ms;
		state.startedMS = s.started_ms;
		state.readings = s.time_ms.map((t, i) => ({ t, c: s.celsius[i], door: s.door_open[i] }));
		state.skewMS = Date.now() - s.time_ms[s.time_ms.length - 1];
		for (const part of document.querySelectorAll("#chart-card, .units, .range")) part.hidden = false;
		if (s.firmware) showFirmware(s.firmware);
		showSettings();
		show();
	}

	function takeReading(r) {
		if (!state.settings) return;
		state.readings.push({ t: r.time_ms, c: r.celsius, door: r.door_open });
		while (state.readings.length && state.readings[0].t < r.time_ms - windowMS) state.readings.shift();
		state.skewMS = Date.now() - r.time_ms;
		show();
	}

	function takeSettings(s) {
		if (!state.settings) return;
		state.settings = s;
		showSettings();
		show();
	}

	function showSettings() {
		const s = state.settings;
		put($("probe"), s.name);
		document.title = s.name;
		for (const b of document.querySelectorAll("[data-unit]")) {
			b.setAttribute("aria-pressed", String(b.dataset.unit === s.unit));
		}
		// What a visitor has begun to write stays.
		if (edited) return;
		$("name").value = s.name;
		$("unit").value = s.unit;
		$("alarm").value = inUnit(s.alarm_celsius).toFixed(1);
	}

	function show() {
		const now = state.readings[state.readings.length - 1];
		const alarm = now.c > state.settings.alarm_celsius;
		put($("value"), degrees(now.c));
		put($("state"), alarm ? "Alarm: above " + degrees(state.settings.alarm_celsius, 1) : "Normal");
		$("now").classList.toggle("alarm", alarm);
		$("door").hidden = !now.door;
		if (state.alarm !== null && state.alarm !== alarm) {
			announce((alarm ? "Alarm: " : "Normal again: ") + degrees(now.c, 1));
		}
		state.alarm = alarm;
		let low = Infinity, high = -Infinity, sum = 0;
		for (const r of state.readings) {
			low = Math.min(low, r.c);
			high = Math.max(high, r.c);
			sum += r.c;
		}
		put($("low"), degrees(low, 1));
		put($("average"), degrees(sum / state.readings.length, 1));
		put($("high"), degrees(high, 1));
		showAge();
		chart.draw();
		showTable(false);
	}

	// showAge says how old the number is, by the clock of this browser.
	function showAge() {
		if (!state.settings) return;
		const last = state.readings[state.readings.length - 1];
		const age = Math.max(0, Date.now() - state.skewMS - last.t);
		const stale = age > Math.max(5000, 4 * state.intervalMS);
		$("now").classList.toggle("stale", stale);
		put($("age"), stale ? "Last reading " + span(age) + " ago" : "Measured at " + clock(last.t, true));
		put($("uptime"), "Running for " + span(Date.now() - state.skewMS - state.startedMS));
	}

	let tableShown = 0;
	function showTable(force) {
		if (!$("table").open || !force && Date.now() - tableShown < 5000) return;
		tableShown = Date.now();
		const rows = state.readings.slice(-60).reverse().map((r) => {
			const row = document.createElement("tr");
			for (const text of [clock(r.t, true), degrees(r.c), r.door ? "open" : "closed"]) {
				row.appendChild(document.createElement("td")).textContent = text;
			}
			return row;
		});
		$("table").querySelector("tbody").replaceChildren(...rows);
	}
	$("table").addEventListener("toggle", () => showTable(true));

	// ---- The chart

	const chart = (() => {
		const svg = $("chart"), tip = $("tip");
		const make = (name, attributes = {}, parent = svg) => {
			const node = document.createElementNS("http://www.w3.org/2000/svg", name);
			for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
			return parent.appendChild(node);
		};
		const clip = make("rect", {}, make("clipPath", { id: "hot" }, make("defs")));
		const back = make("g"), doors = make("g");
		const area = make("path", { class: "area" });
		const limit = make("line", { class: "limit" });
		const line = make("path", { class: "line" });
		const hot = make("path", { class: "line hot", "clip-path": "url(#hot)" });
		const cursor = make("line", { class: "cursor", visibility: "hidden" });
		const last = make("circle", { class: "last", r: 5 });
		const space = { top: 10, right: 10, bottom: 24, left: 38 };
		let width = 600, height = 256, pointer = null, scale = null;

		// steps are round numbers that cut the range into about n parts.
		function steps(from, to, n) {
			const rough = (to - from) / n, power = 10 ** Math.floor(Math.log10(rough));
			const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough);
			const out = [];
			for (let v = Math.ceil(from / step) * step; v <= to + step / 1000; v += step) out.push(v);
			return { out, digits: Math.max(0, -Math.floor(Math.log10(step))) };
		}

		function draw() {
			const readings = state.readings;
			if (!readings.length) return;
			const to = readings[readings.length - 1].t, from = to - windowMS;
			const threshold = inUnit(state.settings.alarm_celsius);
			let low = Infinity, high = -Infinity;
			for (const r of readings) {
				low = Math.min(low, inUnit(r.c));
				high = Math.max(high, inUnit(r.c));
			}
			// The alarm belongs into the picture unless it is far away.
			const spread = Math.max(high - low, 1);
			if (Math.abs(threshold - high) < 3 * spread || Math.abs(threshold - low) < 3 * spread) {
				low = Math.min(low, threshold);
				high = Math.max(high, threshold);
			}
			const air = Math.max(high - low, 1) * 0.12;
			low -= air;
			high += air;
			const x = (t) => space.left + (t - from) / windowMS * (width - space.left - space.right);
			const y = (v) => height - space.bottom - (v - low) / (high - low) * (height - space.top - space.bottom);
			scale = { x, y, from, to };

			back.replaceChildren();
			const { out, digits } = steps(low, high, height < 230 ? 4 : 5);
			for (const v of out) {
				make("line", { class: "grid", x1: space.left, x2: width - space.right, y1: y(v), y2: y(v) }, back);
				make("text", { x: space.left - 8, y: y(v) + 4, "text-anchor": "end" }, back).textContent = v.toFixed(digits);
			}
			const every = (width < 420 ? 3 : 2) * 60000;
			for (let t = Math.ceil(from / every) * every; t <= to; t += every) {
				if (x(t) < space.left + 14 || x(t) > width - space.right - 14) continue;
				make("text", { x: x(t), y: height - 6, "text-anchor": "middle" }, back).textContent = clock(t, false);
			}

			doors.replaceChildren();
			for (let i = 0; i < readings.length; i++) {
				if (!readings[i].door) continue;
				const first = readings[i].t;
				while (i + 1 < readings.length && readings[i + 1].door) i++;
				make("rect", {
					class: "door", x: x(first), width: Math.max(1, x(readings[i].t) - x(first)),
					y: space.top, height: height - space.top - space.bottom,
				}, doors);
			}

			let path = "", before = 0;
			for (const r of readings) {
				// A gap in time is a gap in the line.
				path += (r.t - before > 5 * state.intervalMS + 1000 ? "M" : "L") + x(r.t).toFixed(1) + " " + y(inUnit(r.c)).toFixed(1);
				before = r.t;
			}
			line.setAttribute("d", path);
			hot.setAttribute("d", path);
			area.setAttribute("d", path.indexOf("M", 1) > 0 ? "" :
				path + "L" + x(to) + " " + (height - space.bottom) + "L" + x(readings[0].t) + " " + (height - space.bottom) + "Z");
			const set = (node, attributes) => { for (const [k, v] of Object.entries(attributes)) node.setAttribute(k, v); };
			const inside = threshold >= low && threshold <= high;
			limit.setAttribute("visibility", inside ? "visible" : "hidden");
			set(limit, { x1: space.left, x2: width - space.right, y1: y(threshold), y2: y(threshold) });
			set(clip, { x: 0, y: 0, width, height: Math.max(0, y(threshold)) });
			set(last, { cx: x(to), cy: y(inUnit(readings[readings.length - 1].c)) });
			point();
		}

		// point shows the reading under the pointer.
		function point() {
			const shown = pointer !== null && scale !== null;
			cursor.setAttribute("visibility", shown ? "visible" : "hidden");
			tip.hidden = !shown;
			if (!shown) return;
			const t = scale.from + (pointer - space.left) / (width - space.left - space.right) * windowMS;
			let best = state.readings[0];
			for (const r of state.readings) if (Math.abs(r.t - t) < Math.abs(best.t - t)) best = r;
			const at = scale.x(best.t);
			for (const [k, v] of Object.entries({ x1: at, x2: at, y1: space.top, y2: height - space.bottom })) cursor.setAttribute(k, v);
			put(tip, clock(best.t, true) + "  " + degrees(best.c) + (best.door ? "  door open" : ""));
			tip.style.transform = "translateX(" + Math.max(0, Math.min(at - tip.offsetWidth / 2, width - tip.offsetWidth)) + "px)";
		}

		svg.addEventListener("pointermove", (e) => { pointer = e.clientX - svg.getBoundingClientRect().left; point(); });
		svg.addEventListener("pointerleave", () => { pointer = null; point(); });
		new ResizeObserver(() => {
			width = Math.max(200, svg.clientWidth);
			height = Math.max(120, svg.clientHeight);
			svg.setAttribute("viewBox", "0 0 " + width + " " + height);
			if (state.settings) draw();
		}).observe(svg);
		return { draw };
	})();

	// ---- Connections: both open again by themselves, later and later

	const wait = (tries) => Math.min(15000, 500 * 2 ** tries) * (0.5 + Math.random() / 2);

	const events = { source: null, tries: 0, timer: 0, heard: 0, lost: false };
	events.open = () => {
		events.close();
		link("live", "wait", "Connecting");
		const source = events.source = new EventSource("/events");
		events.heard = Date.now();
		const on = (name, take) => source.addEventListener(name, (e) => {
			events.heard = Date.now();
			take(JSON.parse(e.data));
		});
		on("snapshot", (s) => {
			events.tries = 0;
			link("live", "on", "Live");
			if (events.lost) announce("Live again.");
			events.lost = false;
			takeSnapshot(s);
		});
		on("reading", takeReading);
		on("settings", takeSettings);
		on("firmware", showFirmware);
		source.onerror = () => events.later();
	};
	events.close = () => {
		clearTimeout(events.timer);
		if (events.source) events.source.close();
		events.source = null;
	};
	events.later = () => {
		events.close();
		link("live", "wait", "Reconnecting");
		if (!events.lost) announce("The connection is lost. Trying again.");
		events.lost = true;
		events.timer = setTimeout(events.open, wait(events.tries++));
	};

	const commands = { socket: null, tries: 0, timer: 0, pinged: 0 };
	commands.open = () => {
		commands.close();
		link("socket", "wait", "Commands");
		const url = location.protocol.replace("http", "ws") + "//" + location.host + "/ws";
		const socket = commands.socket = new WebSocket(url, "thermometer");
		socket.onopen = () => {
			commands.tries = 0;
			link("socket", "on", "Commands");
			usable(true);
			commands.ping();
		};
		socket.onmessage = (e) => {
			const m = JSON.parse(e.data);
			if ("pong" in m) {
				commands.pinged = 0;
				link("socket", "on", "Round trip " + Math.max(1, Math.round(performance.now() - m.pong)) + " ms");
			}
			if ("error" in m) announce(m.error);
		};
		socket.onclose = () => {
			if (commands.socket === socket) commands.later();
		};
	};
	commands.close = () => {
		clearTimeout(commands.timer);
		const socket = commands.socket;
		commands.socket = null;
		commands.pinged = 0;
		usable(false);
		if (socket) socket.close();
	};
	commands.later = () => {
		commands.close();
		link("socket", "wait", "Reconnecting");
		commands.timer = setTimeout(commands.open, wait(commands.tries++));
	};
	commands.send = (message) => {
		if (commands.socket && commands.socket.readyState === WebSocket.OPEN) commands.socket.send(JSON.stringify(message));
	};
	commands.ping = () => {
		if (commands.pinged) return;
		commands.pinged = Date.now();
		commands.send({ ping: performance.now() });
	};
	function usable(yes) {
		for (const b of document.querySelectorAll("[data-unit]")) b.disabled = !yes;
	}
	for (const b of document.querySelectorAll("[data-unit]")) {
		b.addEventListener("click", () => commands.send({ set: "unit", value: b.dataset.unit }));
	}

	// Once a second: the age of what is shown, and whether the connections are
	// only said to be there.
	let ticks = 0;
	setInterval(() => {
		showAge();
		ticks++;
		if (events.source && Date.now() - events.heard > Math.max(12000, 5 * state.intervalMS)) events.later();
		if (commands.socket && commands.socket.readyState === WebSocket.OPEN) {
			if (commands.pinged && Date.now() - commands.pinged > 12000) commands.later();
			else if (ticks % 3 === 0) commands.ping();
		}
	}, 1000);

	// A page that nobody looks at for a while gives its connections back.
	let asleep = false, sleep = 0;
	document.addEventListener("visibilitychange", () => {
		clearTimeout(sleep);
		if (document.hidden) {
			sleep = setTimeout(() => {
				asleep = true;
				events.close();
				commands.close();
				link("live", "off", "Paused");
				link("socket", "off", "Paused");
			}, 30000);
		} else if (asleep) {
			asleep = false;
			events.open();
			commands.open();
		}
	});

	// ---- Forms

	// The threshold follows the unit that is chosen for it.
	const unit = $("unit"), alarm = $("alarm");
	unit.addEventListener("change", () => {
		const v = Number(alarm.value.replace(",", "."));
		if (alarm.value.trim() === "" || Number.isNaN(v)) return;
		alarm.value = (unit.value === "F" ? v * 9 / 5 + 32 : (v - 32) * 5 / 9).toFixed(1);
	});
	if (location.search === "?saved") history.replaceState(null, "", "/#settings");

	function showFirmware(f) {
		const code = document.createElement("code");
		code.textContent = f.sha256;
		$("firmware-last").replaceChildren("Last upload: " + size(f.bytes) + " at " + clock(Date.parse(f.at), false) + ", SHA‑256 ", code);
	}

	// fetch cannot tell how far an upload is; XMLHttpRequest can.
	$("firmware-form").addEventListener("submit", (e) => {
		e.preventDefault();
		const file = $("image").files[0];
		if (!file) return;
		const request = new XMLHttpRequest(), started = performance.now();
		const busy = (yes) => {
			$("upload").disabled = yes;
			$("cancel").hidden = $("upload-state").hidden = !yes;
		};
		const done = (text) => {
			busy(false);
			put($("upload-done"), text);
		};
		request.upload.onprogress = (p) => {
			if (!p.lengthComputable) return;
			$("upload-bar").value = p.total ? p.loaded / p.total : 1;
			const seconds = (performance.now() - started) / 1000;
			put($("upload-text"), size(p.loaded) + " of " + size(p.total) + ", " + size(p.loaded / seconds) + " per second");
		};
		request.onload = () => {
			if (request.status !== 200) return done("Not uploaded: the answer was " + request.status + ".");
			const f = JSON.parse(request.responseText);
			done(size(f.bytes) + " received and checked.");
			showFirmware(f);
		};
		request.onerror = () => done("Not uploaded: the connection broke off.");
		request.onabort = () => done("Cancelled.");
		$("cancel").onclick = () => request.abort();
		put($("upload-done"), "");
		$("upload-bar").value = 0;
		busy(true);
		request.open("POST", "/firmware");
		request.setRequestHeader("Content-Type", "application/octet-stream");
		request.send(file);
	});

	events.open();
	commands.open();
})();
