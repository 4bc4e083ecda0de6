package caddymodule

import (
	"bufio"
	"strconv"
	"strings"
	"testing"

	"github.com/iottunnel/iottunnel/agent"
)

// scrape reads the metrics of a site.
func (f *fixture) scrape() map[string]float64 {
	f.t.Helper()
	values := make(map[string]float64)
	lines := bufio.NewScanner(strings.NewReader(f.get(f.url("localhost") + "metrics").body))
	for lines.Scan() {
		name, value, ok := strings.Cut(lines.Text(), " ")
		if n, err := strconv.ParseFloat(value, 64); ok && err == nil {
			values[strings.TrimPrefix(name, "caddy_iottunnel_")] = n
		}
	}
	return values
}

func TestMetrics(t *testing.T) {
	site := "handle /metrics {\nmetrics\n}\nhandle {\niottunnel\n}"
	f := start(t, config{site: site})
	before := f.scrape()
	d := f.connect("cam-1", testSite())
	f.get(d.up.Ports[0].URL)
	f.upgrade(d.up.Hostname).mustEcho(t, "hello")
	mid := f.scrape()
	if mid["tunnels"] != 1 || mid["streams"] < 1 {
		t.Errorf("tunnels %v, streams %v", mid["tunnels"], mid["streams"])
	}
	refused, err := agent.New(agent.Config{
		Servers: []string{"ws://localhost:" + strconv.Itoa(f.port)}, Device: "cam-1", Token: "wrong",
		Forwards: []agent.Forward{{Port: 80, Kind: agent.HTTP, Target: "127.0.0.1:1"}}, Once: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := refused.Run(t.Context()); err == nil {
		t.Error("a wrong token was taken")
	}
	f.mustLoad(config{site: site, app: "wait 1s"}) // counters go on
	d.stop()
	f.await("the tunnel is gone", func() bool { return f.scrape()["tunnels"] == 0 })
	f.await("its close is counted", func() bool {
		return f.scrape()[`closes_total{reason="goodbye"}`] > before[`closes_total{reason="goodbye"}`]
	})
	after := f.scrape()
	for name, least := range map[string]float64{
		`accepts_total{result="ok"}`:             1,
		`accepts_total{result="unauthorized"}`:   1,
		`streams_total{kind="http",result="ok"}`: 1,
		`stream_open_seconds_count`:              1,
		`bytes_total{direction="in"}`:            100,
		`registry_seconds_count{op="claim"}`:     1,
		`registry_seconds_count{op="beat"}`:      0,
		`registry_errors_total{op="claim"}`:      0,
		`takeovers_total`:                        0,
	} {
		if got := after[name] - before[name]; got < least || least == 0 && name != `registry_seconds_count{op="beat"}` && got != 0 {
			t.Errorf("%s grew by %v, want %v", name, got, least)
		}
	}
	for name := range after {
		if strings.Contains(name, "cam-1") {
			t.Errorf("a device in %s", name)
		}
	}
}
