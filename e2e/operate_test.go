package e2e

import (
	"cmp"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/iottunnel/iottunnel/e2e/harness"
)

const hookSecret = "a-secret-that-webhooks-share"

// hookEvent is an event as docs/operations.md tells it.
type hookEvent struct {
	ID, Event, Node, Device, Hostname, Why, Limit string
	At                                            time.Time
	Times                                         int
}

// hooked is a receiver of webhooks that looks at signatures.
type hooked struct {
	*httptest.Server
	mu     sync.Mutex // guards what follows
	refuse bool
	events []hookEvent
	faults []string
}

func startHooked(t *testing.T) *hooked {
	t.Helper()
	h := new(hooked)
	h.Server = httptest.NewServer(h)
	t.Cleanup(func() {
		h.Close()
		for _, fault := range h.faults {
			t.Error(fault)
		}
	})
	return h
}

func (h *hooked) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body) // a broken body has no right signature
	var at, signature string
	for part := range strings.SplitSeq(r.Header.Get("Iottunnel-Signature"), ",") {
		switch key, value, _ := strings.Cut(part, "="); key {
		case "t":
			at = value
		case "v1":
			signature = value
		}
	}
	mac := hmac.New(sha256.New, []byte(hookSecret))
	mac.Write([]byte(at + "." + string(body)))
	seconds, _ := strconv.ParseInt(at, 10, 64)
	h.mu.Lock()
	defer h.mu.Unlock()
	var batch struct{ Events []hookEvent }
	switch {
	case hex.EncodeToString(mac.Sum(nil)) != signature, time.Since(time.Unix(seconds, 0)).Abs() > time.Minute:
		h.faults = append(h.faults, "a wrong signature: "+r.Header.Get("Iottunnel-Signature"))
	case json.Unmarshal(body, &batch) != nil:
		h.faults = append(h.faults, "no JSON: "+string(body))
	case h.refuse:
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	h.events = append(h.events, batch.Events...)
}

func (h *hooked) setRefuse(on bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.refuse = on
}

func (h *hooked) all() []hookEvent {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.events)
}

// wait returns the nth event of that name of a device.
func (h *hooked) wait(t *testing.T, n int, event, device string) (found hookEvent) {
	t.Helper()
	harness.Eventually(t, harness.Patience, fmt.Sprintf("event %s of %q, for the %d. time", event, device, n), func() error {
		seen := 0
		for _, e := range h.all() {
			if e.Event == event && e.Device == device {
				if seen++; seen == n {
					found = e
					return nil
				}
			}
		}
		return fmt.Errorf("%+v", h.all())
	})
	return found
}

// twoTokens are the authenticators where a test says nothing of them.
const twoTokens = "auth static {\ndevice cam-1 token-of-cam-1\ndevice cam-2 token-of-cam-2\n}"

// oneSite is an edge with one site, for agents and devices, without TLS.
type oneSite struct {
	global string // options of Caddy's
	auth   string // "": twoTokens
	app    string // settings beside these
	site   string // directives beside iottunnel
}

// caddyfile is for startRig.
func (s oneSite) caddyfile() string {
	return `{
	admin ADMIN
	persist_config off
	auto_https off
	grace_period 2s
	log access {
		include http.log.access
		output file DIR/access.log
		format json
	}
	` + s.global + `
	iottunnel {
		domain devices.test
		visitors http PORT
		` + cmp.Or(s.auth, twoTokens) + `
		` + s.app + `
	}
}
http://:PORT {
	bind 127.0.0.1
	log
	` + s.site + `
	iottunnel
}
`
}

// plainRig is oneSite of cam-1 and cam-2 with settings beside.
func plainRig(app string) string { return oneSite{app: app}.caddyfile() }

func TestWebhooks(t *testing.T) {
	t.Parallel()
	hooks := startHooked(t)
	config := plainRig(`webhook ` + hooks.URL + `/in {
			secret {env.HOOK_SECRET}
			batch 10 100ms
			flapping 4 10m
		}`)
	r := startRig(t, config, "HOOK_SECRET="+hookSecret)
	origin := harness.StartOrigin(t)
	a, host := r.agent(t, "cam-1", "token-of-cam-1", origin.Addr)
	e := hooks.wait(t, 1, "online", "cam-1")
	if e.Hostname != host || e.ID == "" || e.Node == "" || e.At.IsZero() {
		t.Errorf("event %+v", e)
	}
	a.Stop(t, harness.Patience)
	if e := hooks.wait(t, 1, "offline", "cam-1"); e.Why == "" {
		t.Errorf("event %+v", e)
	}

	// What the receiver does not take comes later, over a reload.
	hooks.setRefuse(true)
	a, _ = r.agent(t, "cam-1", "token-of-cam-1", origin.Addr)
	r.reload(t, strings.Replace(config, "batch 10 100ms", "batch 20 100ms", 1))
	r.WaitStderr(t, 0, harness.Patience, "webhook: the receiver does not take events")
	hooks.setRefuse(false)
	hooks.wait(t, 2, "online", "cam-1")

	// A device that comes and goes is told of once.
	for range 3 {
		a.Stop(t, harness.Patience)
		a, _ = r.agent(t, "cam-1", "token-of-cam-1", origin.Addr)
	}
	if e := hooks.wait(t, 1, "flapping", "cam-1"); e.Times != 4 {
		t.Errorf("event %+v", e)
	}
	r.agent(t, "cam-2", "token-of-cam-2", origin.Addr)
	hooks.wait(t, 1, "online", "cam-2")
	n := 0
	for _, e := range hooks.all() {
		if e.Device == "cam-1" && e.Event != "flapping" {
			n++
		}
	}
	if n != 7 { // three pairs, and the arrival before the fourth departure
		t.Errorf("%d events of a flapping device: %+v", n, hooks.all())
	}
	if m := r.metrics(t); !strings.Contains(m, `caddy_iottunnel_webhook_events_total{result="sent"} `) || !strings.Contains(m, `caddy_iottunnel_webhook_events_total{result="dropped"} 0`) {
		t.Error("events are not counted")
	}
	if errs := strings.Join(r.Stderr.Since(0), "\n"); strings.Contains(errs, hookSecret) {
		t.Error("the secret is in the log")
	}
}

// TestWebhookOfDrain has a node of two give its device away: the node tells that it
// is empty, and with offline_after nobody is told of a device that has only moved.
func TestWebhookOfDrain(t *testing.T) {
	t.Parallel()
	hooks := startHooked(t)
	redis := harness.StartRedis(t, harness.RedisSetup{})
	node := func(id string) *rig {
		return startRig(t, plainRig(fmt.Sprintf(`registry redis %s
		node {
			id %s
			url ws://127.0.0.1:PORT
			internal 127.0.0.1:INNER
			secret 0123456789abcdef0123456789abcdef
		}
		webhook %s/ {
			secret %s
			offline_after 30s
			batch 10 100ms
		}`, redis.URL(""), id, hooks.URL, hookSecret))+`http://:INNER {
	bind 127.0.0.1
	iottunnel internal
}
`)
	}
	one, two := node("edge-1"), node("edge-2")
	harness.Eventually(t, harness.Patience, "two nodes", func() error {
		var list struct{ Nodes []struct{ Node string } }
		if one.ask(t, "GET", "/iottunnel/nodes", "", &list); len(list.Nodes) != 2 {
			return fmt.Errorf("%+v", list)
		}
		return nil
	})
	origin := harness.StartOrigin(t)
	one.agent(t, "cam-1", "token-of-cam-1", origin.Addr, "--server", fmt.Sprintf("ws://127.0.0.1:%d", one.port), "--server", fmt.Sprintf("ws://127.0.0.1:%d", two.port))
	hooks.wait(t, 1, "online", "cam-1") // nothing was known of it
	owner := func() string {
		var d struct{ State, Node string }
		one.ask(t, "GET", "/iottunnel/devices/cam-1", "", &d)
		return d.Node
	}
	from, to, id := one, "edge-2", owner()
	if id == "edge-2" {
		from, to = two, "edge-1"
	}
	from.ask(t, "POST", "/iottunnel/drain", `{"within":"1s"}`, nil)
	if e := hooks.wait(t, 1, "drained", ""); e.Node != id {
		t.Errorf("event %+v, of %s", e, id)
	}
	harness.Eventually(t, harness.Patience, "the device is at the other node", func() error {
		if now := owner(); now != to {
			return fmt.Errorf("at %q", now)
		}
		return nil
	})
	for _, e := range hooks.all() {
		if e.Event == "offline" {
			t.Errorf("event %+v", e)
		}
	}
}

// TestLimitsPerDevice has a device asked too often, and for too much.
func TestLimitsPerDevice(t *testing.T) {
	t.Parallel()
	hooks := startHooked(t)
	hook := `webhook ` + hooks.URL + `/ {
			secret ` + hookSecret + `
			events limited
			batch 10 100ms
		}`
	r := startRig(t, plainRig(hook))
	origin := harness.StartOrigin(t)
	_, host := r.agent(t, "cam-1", "token-of-cam-1", origin.Addr)
	ask := func(n int) (refused int) {
		for range n {
			if got := r.get(t, host, "/"); got.StatusCode == http.StatusTooManyRequests && got.code() == "too_many" {
				refused++
			}
		}
		return refused
	}
	if n := ask(30); n != 0 {
		t.Errorf("%d requests are refused without a limit", n)
	}
	r.reload(t, plainRig(hook+"\nlimits {\nrequests_per_device 5\n}"))
	if n := ask(30); n == 0 {
		t.Error("no request is refused at more than 5 per second")
	}
	if e := hooks.wait(t, 1, "limited", "cam-1"); e.Limit != "requests" {
		t.Errorf("event %+v", e)
	}
	const size = 2 << 20
	r.reload(t, plainRig(hook+"\nlimits {\nbandwidth_per_device 1MiB\n}"))
	began := time.Now()
	if got := r.get(t, host, fmt.Sprintf("/bytes?n=%d", size)); len(got.body) < size {
		t.Fatalf("%d bytes of %d: %s", len(got.body), size, got)
	}
	if took := time.Since(began); took < 800*time.Millisecond { // one second's worth passes at once
		t.Errorf("2 MiB took %v at 1 MiB/s", took)
	}
	if e := hooks.wait(t, 2, "limited", "cam-1"); e.Limit != "bandwidth" {
		t.Errorf("event %+v", e)
	}
	m := r.metrics(t)
	for _, limit := range []string{"requests", "bandwidth"} {
		if !strings.Contains(m, `caddy_iottunnel_limited_total{limit="`+limit+`"} `) {
			t.Errorf("limit %s is not counted", limit)
		}
	}
	if strings.Contains(m, "cam-1") || strings.Contains(m, host) {
		t.Error("a device is in the metrics")
	}
}

// promised are the metrics that dashboards and alerts go by.
var promised = []string{
	"tunnels", "streams", "parked_sockets", "streams_total", "stream_open_seconds_bucket", "bytes_total", "accepts_total", "redirects_total",
	"closes_total", "takeovers_total", "peer_streams_total", "registry_seconds_bucket", "registry_errors_total",
	"nodes", "limited_total", "webhook_events_total", "webhook_waiting",
}

// onDemand are those that are there once something was counted.
var onDemand = []string{"peer_streams_total", "registry_errors_total", "limited_total"}

func TestObservability(t *testing.T) {
	t.Parallel()
	r := startRig(t, oneSite{site: "tracing {\nspan edge\n}"}.caddyfile(), "OTEL_TRACES_EXPORTER=none")
	origin := harness.StartOrigin(t)
	a, host := r.agent(t, "cam-1", "token-of-cam-1", origin.Addr)
	const parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	r.get(t, host, "/echo", "Traceparent", parent, "Tracestate", "a=b")
	seen := origin.Seen("/echo")
	if len(seen) != 1 || !strings.HasPrefix(seen[0].Header.Get("Traceparent"), "00-4bf92f3577b34da6a3ce929d0e0e4736-") || seen[0].Header.Get("Tracestate") != "a=b" {
		t.Errorf("with the tracing handler the device sees %+v", seen)
	}
	r.reload(t, plainRig(""))
	r.get(t, host, "/echo?2", "Traceparent", parent)
	if seen := origin.Seen("/echo"); len(seen) != 2 || seen[1].Header.Get("Traceparent") != parent {
		t.Errorf("without it the device sees %+v", seen)
	}
	harness.Eventually(t, harness.Patience, "an access log with the device", func() error {
		text, err := os.ReadFile(filepath.Join(r.dir, "access.log"))
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(text)) {
			var entry struct{ Device, Logger string }
			if json.Unmarshal([]byte(line), &entry) == nil && entry.Device == "cam-1" && strings.HasPrefix(entry.Logger, "http.log.access") {
				return nil
			}
		}
		return fmt.Errorf("%s", text)
	})
	a.Stop(t, harness.Patience)
	harness.Eventually(t, harness.Patience, "a closed tunnel is counted", func() error {
		if m := r.metrics(t); !strings.Contains(m, "caddy_iottunnel_closes_total") {
			return fmt.Errorf("%s", m)
		}
		return nil
	})
	m := r.metrics(t)
	for _, name := range promised {
		if !slices.Contains(onDemand, name) && !strings.Contains(m, "\ncaddy_iottunnel_"+name) {
			t.Errorf("no metric %s", name)
		}
	}
}

// TestAlerts has Prometheus' own tool read the examples, and looks that they, and the
// dashboard, speak of metrics that there are.
func TestAlerts(t *testing.T) {
	t.Parallel()
	rules := filepath.Join("..", "examples", "prometheus", "alerts.yml")
	if promtool, err := exec.LookPath("promtool"); err != nil {
		t.Error("promtool is not there (Debian: apt-get install prometheus)")
	} else {
		for _, args := range [][]string{
			{"check", "rules", rules},
			{"check", "config", filepath.Join("..", "examples", "prometheus", "prometheus.yml")},
			{"test", "rules", filepath.Join("..", "examples", "prometheus", "alerts_test.yml")},
		} {
			if out, err := exec.Command(promtool, args...).CombinedOutput(); err != nil {
				t.Errorf("promtool %v: %v\n%s", args, err, out)
			}
		}
	}
	text, err := os.ReadFile(rules)
	if err != nil {
		t.Fatal(err)
	}
	known(t, "alerts.yml", string(text))
}

func TestGrafanaDashboard(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(filepath.Join("..", "examples", "grafana", "iottunnel.json"))
	if err != nil {
		t.Fatal(err)
	}
	var dashboard struct {
		UID, Title    string
		SchemaVersion int
		Panels        []struct {
			ID          int
			Type, Title string
			GridPos     struct{ H, W, X, Y int }
			Targets     []struct{ Expr, RefID string }
		}
		Templating struct {
			List []struct{ Name, Type string }
		}
	}
	if err := json.Unmarshal(text, &dashboard); err != nil {
		t.Fatal(err)
	}
	if dashboard.UID == "" || dashboard.Title == "" || dashboard.SchemaVersion < 36 || len(dashboard.Panels) < 8 {
		t.Errorf("%q %q, schema %d, %d panels", dashboard.UID, dashboard.Title, dashboard.SchemaVersion, len(dashboard.Panels))
	}
	ids := make(map[int]bool)
	for _, p := range dashboard.Panels {
		if ids[p.ID] || p.ID == 0 || p.Title == "" || p.GridPos.W < 1 || p.GridPos.X+p.GridPos.W > 24 || p.GridPos.H < 1 {
			t.Errorf("panel %+v", p)
		}
		ids[p.ID] = true
		if p.Type != "row" && len(p.Targets) == 0 {
			t.Errorf("panel %s shows nothing", p.Title)
		}
		for _, target := range p.Targets {
			if promtool, err := exec.LookPath("promtool"); err == nil {
				expr := strings.NewReplacer("$__rate_interval", "5m", "$instance", ".*").Replace(target.Expr)
				checkExpression(t, promtool, p.Title, expr)
			}
		}
	}
	known(t, "the dashboard", string(text))
}

// checkExpression has promtool parse a query, as a rule.
func checkExpression(t *testing.T, promtool, title, expr string) {
	t.Helper()
	quoted, err := json.Marshal(expr)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "rule.yml")
	rule := fmt.Sprintf("groups:\n- name: a\n  rules:\n  - record: a:b\n    expr: %s\n", quoted)
	if err := os.WriteFile(file, []byte(rule), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(promtool, "check", "rules", file).CombinedOutput(); err != nil {
		t.Errorf("panel %s: %s: %s", title, expr, out)
	}
}

// known wants each metric in text to be one that there is.
func known(t *testing.T, where, text string) {
	t.Helper()
	found := 0
	for i := strings.Index(text, "caddy_iottunnel_"); i >= 0; i = strings.Index(text, "caddy_iottunnel_") {
		text = text[i+len("caddy_iottunnel_"):]
		end := strings.IndexFunc(text, func(c rune) bool { return (c < 'a' || c > 'z') && c != '_' })
		if name := text[:end]; !slices.Contains(promised, name) {
			t.Errorf("%s speaks of caddy_iottunnel_%s, which is not there", where, name)
		}
		found++
	}
	if found == 0 {
		t.Errorf("%s speaks of no metric", where)
	}
}

// operated is what the command says of a device.
type operated struct {
	Device, State, Node, Remote, Secret, Hostname, Summary string
	Streams                                                *int
}

// TestOperateFromAnotherNode does all that operators do to a device by commands that ask
// a node to which it is not connected, over a real Redis.
func TestOperateFromAnotherNode(t *testing.T) {
	t.Parallel()
	redis := harness.StartRedis(t, harness.RedisSetup{})
	one, two := startRig(t, sharedNode(redis, "edge-1")), startRig(t, sharedNode(redis, "edge-2"))
	origin := harness.StartOrigin(t)
	device := func() (d operated) {
		t.Helper()
		if out := two.command(t, "device", "door-1", "--output", "json"); json.Unmarshal([]byte(out), &d) != nil {
			t.Fatalf("device: %s", out)
		}
		return d
	}
	secret := two.command(t, "enroll", "door-1")
	a, host := one.agent(t, "door-1", secret, origin.Addr)
	harness.Eventually(t, harness.Patience, "the other node tells of the device what its own node knows", func() error {
		if d := device(); d.State != "online" || d.Node != "edge-1" || d.Remote != "127.0.0.1" || d.Secret != "current" || d.Hostname != host || d.Streams == nil {
			return fmt.Errorf("%+v", d)
		}
		return nil
	})
	if out := two.command(t, "devices", "--q", "door", "--state", "online"); !strings.Contains(out, "door-1") || !strings.Contains(out, "edge-1") {
		t.Errorf("devices:\n%s", out)
	}
	if out := two.command(t, "nodes"); !strings.Contains(out, "edge-1") || !strings.Contains(out, "edge-2") {
		t.Errorf("nodes:\n%s", out)
	}
	opens := func(host string) error {
		l := link{URL: two.command(t, "share", "door-1:80", "--for", "1h")}
		if !strings.Contains(l.URL, "//"+host) {
			return fmt.Errorf("a link to %s is %s", host, l.URL)
		}
		l.URL = strings.Replace(l.URL, fmt.Sprint(one.port), fmt.Sprint(two.port), 1)
		cookie, _, _ := strings.Cut(l.follow(t, two.client("127.0.0.1", nil)).Header.Get("Set-Cookie"), ";")
		if got := two.get(t, host, "/echo", "Cookie", cookie); got.StatusCode != http.StatusOK {
			return fmt.Errorf("%s by a link: %s", host, got)
		}
		return nil
	}
	if err := opens(host); err != nil {
		t.Error(err)
	}
	if out := two.command(t, "export"); !strings.Contains(out, `"door-1"`) || strings.Contains(out, secret) {
		t.Errorf("export: %s", out)
	}

	comesBack := func(do string) string {
		t.Helper()
		mark := a.Stdout.Mark()
		two.command(t, do, "door-1")
		line := a.WaitStdout(t, mark, harness.UpTime, "80/http ")
		u, err := url.Parse(strings.TrimSpace(strings.TrimPrefix(line, "80/http ")))
		if err != nil {
			t.Fatal(err)
		}
		return u.Hostname()
	}
	if again := comesBack("disconnect"); again != host {
		t.Errorf("after disconnect it is %s, and was %s", again, host)
	}
	next := comesBack("relabel")
	if next == host {
		t.Error("relabel has left the hostname")
	}
	harness.Eventually(t, harness.Patience, "the new hostname is served by the other node, and the old one is not", func() error {
		if got := two.get(t, host, "/"); got.Header.Get("Iottunnel-Error") == "" {
			return fmt.Errorf("the old hostname: %s", got)
		}
		return opens(next)
	})

	rotated := two.command(t, "rotate", "door-1")
	a.Stop(t, harness.Patience)
	a, _ = one.agent(t, "door-1", rotated, origin.Addr)
	stale := one.start(t, "door-1", secret, "--forward", "80="+origin.Addr, "--once")
	if status := stale.Wait(t, harness.Patience); status != 3 {
		t.Errorf("with the secret before: status %d", status)
	}
	cutOff := func(do, code string) {
		t.Helper()
		mark, began := a.Stderr.Mark(), time.Now()
		two.command(t, do, "door-1")
		a.WaitStderr(t, mark, harness.Patience, code)
		inTime(t, do+" at another node", time.Since(began), 5*time.Second)
		a.Stop(t, harness.Patience)
	}
	cutOff("revoke", "4003")
	if d := device(); d.State != "offline" || d.Secret != "revoked" || !strings.Contains(d.Summary, "revoked") {
		t.Errorf("revoked: %+v", d)
	}
	a, _ = one.agent(t, "door-1", two.command(t, "enroll", "door-1"), origin.Addr)
	cutOff("forget", "4003")
	for _, r := range []*rig{one, two} {
		if out := r.command(t, "devices", "--output", "json"); strings.Contains(out, "door-1") {
			t.Errorf("forgotten: %s", out)
		}
	}
}
