package monitor

import (
	"encoding/json"
	"fmt"
	"html"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/iottunnel/iottunnel/agent"
)

// About is what there is to tell. It does not change, but for what Status returns.
type About struct {
	Device   string
	Version  string
	Started  time.Time
	Forwards []agent.Forward
	Status   func() agent.Status // may be called concurrently
}

// notReady says why visitors are not served; empty when they are.
func notReady(s agent.Status) string {
	switch {
	case s.State == agent.Connected:
		return ""
	case s.Err != nil:
		return string(s.State) + ": " + s.Err.Error()
	}
	return string(s.State)
}

// answerJSON is what /status says.
type answerJSON struct {
	Device   string     `json:"device"`
	State    string     `json:"state"` // stopped, connecting, up, waiting
	Since    *time.Time `json:"since,omitempty"`
	Server   string     `json:"server,omitempty"` // of the last tunnel, as the three that follow
	Label    string     `json:"label,omitempty"`
	Hostname string     `json:"hostname,omitempty"`
	Ports    []portJSON `json:"ports"`
	Error    string     `json:"error,omitempty"` // why there is no tunnel
	Next     *time.Time `json:"next_attempt,omitempty"`
	Tunnels  int        `json:"tunnels"`  // that came up so far
	Failures int        `json:"failures"` // their ends, and attempts that failed
	Streams  int        `json:"streams"`  // right now
	// Heartbeat is between the edge's pings, of the last tunnel.
	Heartbeat int `json:"heartbeat_s,omitempty"`
	// Bytes to and from edges, TLS included: since the start, and in a day.
	Received    int64     `json:"bytes_received"`
	Sent        int64     `json:"bytes_sent"`
	DayReceived int64     `json:"bytes_received_24h"`
	DaySent     int64     `json:"bytes_sent_24h"`
	Started     time.Time `json:"started"`
	Version     string    `json:"version"`
}

type portJSON struct {
	Port   uint16 `json:"port"`
	Kind   string `json:"kind"`
	Target string `json:"target,omitempty"`
	URL    string `json:"url,omitempty"`
}

func moment(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC().Truncate(time.Second)
	return &t
}

func (a About) json(s agent.Status, _ time.Time) string {
	answer := answerJSON{
		Device: a.Device, State: string(s.State), Since: moment(s.Since),
		Server: s.Up.Server, Label: s.Up.Label, Hostname: s.Up.Hostname, Ports: a.ports(s),
		Next: moment(s.Next), Tunnels: s.Tunnels, Failures: s.Failures, Streams: s.Streams,
		Heartbeat: int(s.Heartbeat / time.Second),
		Received:  s.Traffic.Received, Sent: s.Traffic.Sent, DayReceived: s.Traffic.DayReceived, DaySent: s.Traffic.DaySent,
		Started: *moment(a.Started), Version: a.Version,
	}
	if s.Err != nil {
		answer.Error = s.Err.Error()
	}
	text, err := json.MarshalIndent(answer, "", "  ")
	if err != nil {
		panic(err) // there is nothing in it that has no JSON
	}
	return string(text) + "\n"
}

// ports are the forwarded ports, with what the last tunnel told of them.
func (a About) ports(s agent.Status) []portJSON {
	ports := make([]portJSON, len(a.Forwards))
	for i, f := range a.Forwards {
		ports[i] = portJSON{Port: f.Port, Kind: string(f.Kind), Target: f.Target}
		for _, p := range s.Up.Ports {
			if p.Number == f.Port {
				ports[i].Kind, ports[i].URL = string(p.Kind), p.URL
			}
		}
	}
	return ports
}

// metrics writes the text format of Prometheus, version 0.0.4.
func (a About) metrics(s agent.Status, now time.Time) string {
	var b strings.Builder
	write := func(name, kind, help, labels string, value float64) {
		fmt.Fprintf(&b, "# HELP %s %s\n# TYPE %s %s\n%s%s %s\n", name, help, name, kind, name, labels, strconv.FormatFloat(value, 'g', -1, 64))
	}
	truth := map[bool]float64{true: 1}
	seconds := func(t time.Time) float64 { return float64(t.UnixMilli()) / 1000 }
	write("iottunnel_agent_info", "gauge", "What runs here; always 1.",
		labels("device", a.Device, "version", a.Version, "goversion", runtime.Version(), "platform", runtime.GOOS+"/"+runtime.GOARCH), 1)
	write("iottunnel_agent_up", "gauge", "Whether the tunnel is up.", "", truth[s.State == agent.Connected])
	if !s.Since.IsZero() {
		write("iottunnel_agent_state_seconds", "gauge", "For how long the tunnel has been up, or away.", labels("state", string(s.State)), max(now.Sub(s.Since), 0).Seconds())
	}
	write("iottunnel_agent_tunnels_total", "counter", "Tunnels that came up.", "", float64(s.Tunnels))
	write("iottunnel_agent_failures_total", "counter", "Tunnels that ended, and attempts that failed.", "", float64(s.Failures))
	write("iottunnel_agent_streams", "gauge", "Visitors' connections right now.", "", float64(s.Streams))
	if s.Heartbeat > 0 {
		write("iottunnel_agent_heartbeat_seconds", "gauge", "Time between the edge's pings, of the last tunnel.", "", s.Heartbeat.Seconds())
	}
	write("iottunnel_agent_received_bytes_total", "counter", "Bytes from edges, TLS included.", "", float64(s.Traffic.Received))
	write("iottunnel_agent_sent_bytes_total", "counter", "Bytes to edges, TLS included.", "", float64(s.Traffic.Sent))
	write("iottunnel_agent_day_bytes", "gauge", "Bytes to and from edges in the last 24 hours.", "", float64(s.Traffic.DayReceived+s.Traffic.DaySent))
	write("process_start_time_seconds", "gauge", "Start of the process, in seconds since the epoch.", "", seconds(a.Started))
	resources(write)
	return b.String()
}

// resources writes what the process takes, as Prometheus' own clients name it.
func resources(write func(name, kind, help, labels string, value float64)) {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	write("go_memory_used_bytes", "gauge", "Memory that the runtime holds.", "", float64(m.Sys-m.HeapReleased))
	write("go_goroutines", "gauge", "Goroutines right now.", "", float64(runtime.NumGoroutine()))
	if resident, ok := residentMemory(); ok {
		write("process_resident_memory_bytes", "gauge", "Memory of the process.", "", float64(resident))
	}
}

// labels writes pairs of name and value.
func labels(pairs ...string) string {
	escape := strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`)
	var b strings.Builder
	for i := 0; i < len(pairs); i += 2 {
		fmt.Fprintf(&b, `,%s="%s"`, pairs[i], escape.Replace(pairs[i+1]))
	}
	return "{" + b.String()[1:] + "}"
}

const style = `:root{color-scheme:light dark;--ok:#1a7f37;--bad:#b3261e}
@media(prefers-color-scheme:dark){:root{--ok:#4ac26b;--bad:#ff8a80}}
body{font:16px/1.5 system-ui,sans-serif;max-width:44rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.4rem}h2{font-size:1.1rem;margin-top:2rem}.up{color:var(--ok)}.down{color:var(--bad)}
table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:.3rem .8rem .3rem 0;vertical-align:top;overflow-wrap:anywhere}
th{font-weight:600;white-space:nowrap}footer{margin-top:2rem;font-size:.85rem;opacity:.75}`

// page is /status for people. It reads itself again every 5 s.
func (a About) page(s agent.Status, now time.Time) string {
	var b strings.Builder
	class, state := "down", map[agent.State]string{agent.Connected: "is connected", agent.Connecting: "is connecting", agent.Waiting: "is not connected", agent.Stopped: "is stopping"}[s.State]
	if s.State == agent.Connected {
		class = "up"
	}
	fmt.Fprintf(&b, "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">"+
		"<meta http-equiv=\"refresh\" content=\"5\"><meta name=\"robots\" content=\"noindex\"><title>%[1]s %[2]s</title><style>%[3]s</style></head>\n"+
		"<body><h1>%[1]s <span class=%[4]q>%[2]s</span></h1>\n<table>\n", html.EscapeString(a.Device), state, style, class)
	row := func(name, value string) {
		if value != "" {
			fmt.Fprintf(&b, "<tr><th scope=\"row\">%s</th><td>%s</td></tr>\n", name, value)
		}
	}
	row("Since", when(s.Since, now))
	if s.Err != nil {
		row("Why", html.EscapeString(s.Err.Error()))
	}
	row("Next attempt", when(s.Next, now))
	row("Edge", html.EscapeString(s.Up.Server))
	row("Name", html.EscapeString(s.Up.Hostname))
	row("Visitors' connections", strconv.Itoa(s.Streams))
	row("Tunnels so far", fmt.Sprintf("%d, and %d failures", s.Tunnels, s.Failures))
	row("Traffic", fmt.Sprintf("%d kB in the last 24 hours, with a heartbeat of %v", (s.Traffic.DayReceived+s.Traffic.DaySent+500)/1000, s.Heartbeat))
	b.WriteString("</table>\n<h2>Ports</h2>\n<table>\n<tr><th scope=\"col\">Port</th><th scope=\"col\">Service</th><th scope=\"col\">For visitors</th></tr>\n")
	for _, p := range a.ports(s) {
		fmt.Fprintf(&b, "<tr><td>%d/%s</td><td>%s</td><td>%s</td></tr>\n", p.Port, html.EscapeString(p.Kind), html.EscapeString(p.Target), link(p.URL, len(s.Up.Ports) > 0))
	}
	fmt.Fprintf(&b, "</table>\n<footer>iottunnel-agent %s, started %s. The same for programs: <a href=\"status\">status</a>, <a href=\"metrics\">metrics</a>, "+
		"<a href=\"ready\">ready</a>, <a href=\"healthz\">healthz</a>.</footer>\n</body></html>\n", html.EscapeString(a.Version), when(a.Started, now))
	return b.String()
}

// link is a URL, to be clicked if that is harmless: the edge made it. told says that
// it has.
func link(url string, told bool) string {
	text := html.EscapeString(url)
	switch {
	case !told:
		return "not known yet"
	case url == "":
		return "not from outside"
	case strings.HasPrefix(url, "https://"), strings.HasPrefix(url, "http://"):
		return `<a href="` + text + `" rel="noreferrer">` + text + "</a>"
	}
	return text
}

// when is a moment, and how far away it is; empty for the zero time.
func when(t, now time.Time) string {
	if t.IsZero() {
		return ""
	}
	far, words := now.Sub(t), "ago"
	if far < 0 {
		far, words = -far, "from now"
	}
	stamp := t.UTC().Format(time.DateTime) + " UTC"
	return fmt.Sprintf(`<time datetime=%q>%s</time>, %v %s`, t.UTC().Format(time.RFC3339), stamp, far.Round(time.Second), words)
}
