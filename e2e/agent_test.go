package e2e

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/iottunnel/iottunnel/e2e/harness"
)

// TestAgentOutput holds the agent to what scripts rely on: a line per port on
// standard output each time the tunnel is up and nothing else, and exit statuses.
func TestAgentOutput(t *testing.T) {
	onFaces(t, func(t *testing.T, k harness.Kind) {
		f := harness.Own(t, k, harness.Setup{})
		o := harness.StartOrigin(t)
		a := harness.StartAgent(t, f, harness.AgentSetup{Forwards: []string{"80=" + o.Addr, "8080/http=" + o.Addr}})
		up := a.Up(t)
		host := up.Hostname(t, 80)
		label, _, _ := strings.Cut(host, ".")
		want := map[string]bool{
			"80/http " + f.URL(host, "/"):                         true,
			"8080/http " + f.URL(label+"--8080."+f.Domain(), "/"): true,
		}
		for _, line := range up.Lines {
			if !want[line] {
				t.Errorf("line %q, want one of %v", line, want)
			}
		}
		c := harness.Visitor(t, f, false)
		for port := range up.URLs {
			r := do(t, c, request(t, "GET", up.URLs[port]+"page", nil))
			if r.StatusCode != 200 || !strings.Contains(r.body, "the device's page") {
				t.Errorf("port %d at %s: %v", port, up.URLs[port], r)
			}
		}
		f.Kill(t)
		f.Start(t)
		again := a.Up(t)
		if strings.Join(again.Lines, "\n") != strings.Join(up.Lines, "\n") {
			t.Errorf("first %q, then %q", up.Lines, again.Lines)
		}
		if status := a.Stop(t, 10*time.Second); status != 0 {
			t.Errorf("status %d after SIGTERM", status)
		}
		if all := a.Stdout.Since(0); len(all) != 4 {
			t.Errorf("standard output is %q", all)
		}
		for _, line := range a.Stderr.Since(0) {
			if strings.Contains(line, a.Device.Token) {
				t.Errorf("the token is in the log: %s", line)
			}
		}
	})
}

// TestAgentUnderSystemd has the agent tell a service manager that it has started, that it is
// alive, and that it ends; whether or not there is an edge.
func TestAgentUnderSystemd(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "notify")
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer manager.Close()
	hear := func() string {
		t.Helper()
		b := make([]byte, 100)
		if err := manager.SetReadDeadline(time.Now().Add(harness.Patience)); err != nil {
			t.Fatal(err)
		}
		n, err := manager.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		return string(b[:n])
	}
	start := `WATCHDOG_PID=$$ exec "$@"`
	p := harness.Run(t, harness.Command{Name: "agent", Args: []string{
		"sh", "-c", start, "sh", harness.Binary(t, "iottunnel-agent"), "run", "--server", "ws://127.0.0.1:1", "--device", "cam-17", "--forward", "22",
	}, Env: []string{"NOTIFY_SOCKET=" + path, "WATCHDOG_USEC=2000000", "IOTTUNNEL_TOKEN=secret"}})
	if got := hear(); got != "READY=1" {
		t.Fatalf("the first word is %q", got)
	}
	for range 3 {
		if got := hear(); got != "WATCHDOG=1" {
			t.Fatalf("the agent says %q", got)
		}
	}
	p.Signal(syscall.SIGTERM)
	got := hear()
	for got == "WATCHDOG=1" {
		got = hear()
	}
	if status := p.Wait(t, 10*time.Second); got != "STOPPING=1" || status != 0 {
		t.Errorf("after SIGTERM it says %q, status %d", got, status)
	}
}

// TestAgentTellsHowItIs reads what --status serves: whether the tunnel is up, and what the
// device has used today, which is what visitors have moved and a little more.
func TestAgentTellsHowItIs(t *testing.T) {
	onFaces(t, func(t *testing.T, k harness.Kind) {
		f := harness.Own(t, k, harness.Setup{})
		o := harness.StartOrigin(t)
		addr := fmt.Sprintf("127.0.0.1:%d", harness.FreePort(t, 1))
		a := harness.StartAgent(t, f, harness.AgentSetup{Forwards: []string{"80=" + o.Addr}, Flags: []string{"--status", addr, "--heartbeat", "auto"}})
		s := &site{face: f, origin: o, agent: a, host: a.Up(t).Hostname(t, 80), client: harness.Visitor(t, f, false)}
		ask := func(path string) reply { return do(t, http.DefaultClient, request(t, "GET", "http://"+addr+path, nil)) }
		if r := ask("/ready"); r.StatusCode != 200 {
			t.Errorf("ready: %v", r)
		}
		const n = 1 << 20
		if r := s.get(t, fmt.Sprintf("/bytes?n=%d", n)); len(r.body) != n {
			t.Fatalf("download: %d bytes", len(r.body))
		}
		var now struct {
			State    string
			Hostname string
			Beat     int `json:"heartbeat_s"`
			In       int `json:"bytes_received_24h"`
			Out      int `json:"bytes_sent_24h"`
		}
		if r := ask("/status"); json.Unmarshal([]byte(r.body), &now) != nil || now.State != "up" || now.Hostname != s.host || now.Beat != 25 {
			t.Errorf("status: %v", r)
		}
		// Without TLS the control socket alone is counted.
		if most := n + n/10; f.CAFile() != "" && (now.Out < n || now.Out > most || now.In < 100 || now.In > n/10) {
			t.Errorf("%d bytes sent and %d received for a download of %d", now.Out, now.In, n)
		}
		if r := ask("/metrics"); !strings.Contains(r.body, "iottunnel_agent_up 1\n") || !strings.Contains(r.body, "\niottunnel_agent_day_bytes ") {
			t.Errorf("metrics: %v", r)
		}
		f.Kill(t)
		harness.Eventually(t, harness.Patience, "the agent tells that the tunnel is down", func() error {
			if r := ask("/ready"); r.StatusCode != 503 {
				return fmt.Errorf("%v", r)
			}
			return nil
		})
		if r := ask("/healthz"); r.StatusCode != 200 {
			t.Errorf("healthz: %v", r)
		}
		f.Start(t)
		a.Up(t)
	})
}

// TestAgentStatuses ends agents in each way that has an exit status of its own.
func TestAgentStatuses(t *testing.T) {
	onFaces(t, func(t *testing.T, k harness.Kind) {
		f := harness.Shared(t, k)
		d := f.NewDevice(t)
		free := fmt.Sprintf("127.0.0.1:%d", harness.FreePort(t, 1))
		forward := []string{"80=127.0.0.1:1"}
		bad := d
		bad.Token = "wrong"
		odd := func(id string) harness.Device { return harness.Device{ID: id, Token: "x"} }
		for _, c := range []struct {
			name   string
			setup  harness.AgentSetup
			status int
			says   string // in standard error
		}{
			{"wrong token", harness.AgentSetup{Device: bad, Forwards: forward, Flags: []string{"--once"}}, 3, "unauthorized"},
			{"nobody at the server", harness.AgentSetup{Device: d, Forwards: forward, Servers: []string{"ws://" + free}, Flags: []string{"--once"}}, 4, free},
			{"no such host", harness.AgentSetup{Device: d, Forwards: forward, Servers: []string{"wss://nowhere.invalid"}, Flags: []string{"--once"}}, 4, "nowhere.invalid"},
			{"not an edge", harness.AgentSetup{Device: d, Forwards: forward, Servers: []string{"ws://" + plainServer(t)}, Flags: []string{"--once"}}, 0, ""},
			{"unknown flag", harness.AgentSetup{Device: d, Forwards: forward, Flags: []string{"--no-such-flag"}}, 2, "no-such-flag"},
			{"no forward", harness.AgentSetup{Device: d}, 2, "--forward is needed"},
			{"odd forward", harness.AgentSetup{Device: d, Forwards: []string{"80=nowhere"}}, 2, "--forward: 80=nowhere: "},
			{"odd kind", harness.AgentSetup{Device: d, Forwards: []string{"80/gopher=127.0.0.1:1"}}, 2, "gopher"},
			{"port twice", harness.AgentSetup{Device: d, Forwards: []string{"80=127.0.0.1:1", "80=127.0.0.1:2"}}, 2, "--forward: port 80 is given twice"},
			{"plain to elsewhere", harness.AgentSetup{Device: d, Forwards: forward, Servers: []string{"ws://192.0.2.1"}}, 2, "allow-plaintext"},
			{"odd server", harness.AgentSetup{Device: d, Forwards: forward, Servers: []string{"gopher://localhost"}}, 2, `--server: "gopher://localhost"`},
			{"device in capitals", harness.AgentSetup{Device: odd("CAM"), Forwards: forward}, 2, "--device: "},
			{"device with --", harness.AgentSetup{Device: odd("a--b"), Forwards: forward}, 2, "--device: "},
			{"device of 57 characters", harness.AgentSetup{Device: odd(strings.Repeat("a", 57)), Forwards: forward}, 2, "--device: longer than 56"},
			{"no token file", harness.AgentSetup{Device: d, Forwards: forward, Flags: []string{"--token-file", "/nowhere/token"}}, 2, "/nowhere/token"},
			{"no configuration file", harness.AgentSetup{Device: d, Forwards: forward, Flags: []string{"--config", "/nowhere/agent.yaml"}}, 2, "/nowhere/agent.yaml"},
		} {
			t.Run(c.name, func(t *testing.T) {
				status, out, errs := harness.AgentToEnd(t, f, 30*time.Second, c.setup)
				switch {
				case c.name == "not an edge" && (status == 3 || status == 4): // both are true
				case status != c.status:
					t.Errorf("status %d, want %d:\n%s", status, c.status, errs)
				}
				if out != "" {
					t.Errorf("standard output: %q", out)
				}
				if errs == "" || !strings.Contains(errs, c.says) {
					t.Errorf("standard error does not speak of %q: %q", c.says, errs)
				}
			})
		}
		t.Run("stopped while it tries", func(t *testing.T) {
			a := harness.StartAgent(t, f, harness.AgentSetup{Device: d, Forwards: forward, Servers: []string{"ws://" + free}})
			a.WaitStderr(t, 0, harness.UpTime, free)
			if status := a.Stop(t, 5*time.Second); status != 0 {
				t.Errorf("status %d", status)
			}
		})
		t.Run("stopped by Ctrl-C", func(t *testing.T) {
			a := harness.StartAgent(t, f, harness.AgentSetup{Forwards: forward})
			a.Up(t)
			a.Signal(syscall.SIGINT)
			if status := a.Wait(t, 10*time.Second); status != 0 {
				t.Errorf("status %d", status)
			}
		})
		t.Run("version", func(t *testing.T) {
			status, out, _ := harness.RunToEnd(t, 10*time.Second, harness.Command{Name: "version", Args: []string{harness.Binary(t, "iottunnel-agent"), "version"}})
			if status != 0 || out == "" {
				t.Errorf("status %d, %q", status, out)
			}
		})
	})
}

// plainServer is a web server that knows nothing of tunnels.
func plainServer(t *testing.T) string {
	t.Helper()
	s := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

// TestAgentConfiguration gives the same settings by file and environment: flags
// win over the environment, the environment over the file.
func TestAgentConfiguration(t *testing.T) {
	onFaces(t, func(t *testing.T, k harness.Kind) {
		f := harness.Shared(t, k)
		o := harness.StartOrigin(t)
		d := f.NewDevice(t)
		dir := t.TempDir()
		token, config := filepath.Join(dir, "token"), filepath.Join(dir, "agent.yaml")
		if err := os.WriteFile(token, []byte(d.Token), 0o600); err != nil {
			t.Fatal(err)
		}
		text := "server:\n  - " + f.Servers()[0] + "\ndevice: not-this-one\ntoken_file: " + token + "\nforward:\n  - 80=" + o.Addr + "\n"
		if ca := f.CAFile(); ca != "" {
			text += "ca: " + ca + "\n"
		}
		if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		p := harness.Run(t, harness.Command{
			Name: "agent of a file",
			Args: []string{harness.Binary(t, "iottunnel-agent"), "run", "--config", config},
			Env:  []string{"IOTTUNNEL_DEVICE=" + d.ID},
		})
		p.WaitStdout(t, 0, harness.UpTime, "80/http ")
	})
}

// TestDrainOfAgent stops an agent under a download: it lets what runs come to an
// end, if that is soon.
func TestDrainOfAgent(t *testing.T) {
	onFaces(t, func(t *testing.T, k harness.Kind) {
		s := newSite(t, harness.Shared(t, k))
		const n = 100 << 10
		resp, err := s.client.Do(request(t, "GET", s.url(fmt.Sprintf("/bytes?n=%d&piece=10240&pause_ms=100", n)), nil))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		first := make([]byte, 10240)
		if _, err := resp.Body.Read(first); err != nil {
			t.Fatal(err)
		}
		s.agent.Signal(syscall.SIGTERM)
		rest, _, err := harness.Sum(resp.Body)
		if err != nil || rest < n-10240 {
			t.Errorf("the download ended after another %d bytes: %v", rest, err)
		}
		if status := s.agent.Wait(t, 15*time.Second); status != 0 {
			t.Errorf("status %d", status)
		}
	})
}

// TestEndlessStreamsEnd stops an agent, and an edge, whose streams never end by
// themselves: neither waits for them for ever.
func TestEndlessStreamsEnd(t *testing.T) {
	onFaces(t, func(t *testing.T, k harness.Kind) {
		f := harness.Own(t, k, harness.Setup{})
		s := newSite(t, f)
		feed := s.openFeed(t)
		if err := feed.want(3); err != nil {
			t.Fatal(err)
		}
		s.agent.Stop(t, 30*time.Second)
		if _, _, err := harness.Sum(feed.body); err == nil {
			t.Log("the feed ended as if it were complete") // chunked or not is the device's choice
		}
		s = newSite(t, f)
		feed, ws := s.openFeed(t), s.openSocket(t)
		if err := feed.want(3); err != nil {
			t.Fatal(err)
		}
		if err := echoes(ws, 1, "hello"); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		f.Stop(t) // its grace_period is 3s
		inTime(t, "an edge stops", time.Since(began), 8*time.Second)
		harness.CloseCode(t, ws, 5*time.Second)
	})
}

// TestSeveralServers gives agents two servers of which one is not there.
func TestSeveralServers(t *testing.T) {
	onFaces(t, func(t *testing.T, k harness.Kind) {
		f := harness.Shared(t, k)
		o := harness.StartOrigin(t)
		refuses := fmt.Sprintf("ws://127.0.0.1:%d", harness.FreePort(t, 1))
		silent := "ws://" + silentServer(t)
		for _, dead := range []string{refuses, silent} {
			for _, servers := range [][]string{{dead, f.Servers()[0]}, {f.Servers()[0], dead}} {
				t.Run(strings.Join(servers, " "), func(t *testing.T) {
					t.Parallel()
					a := harness.StartAgent(t, f, harness.AgentSetup{Servers: servers, Forwards: []string{"80=" + o.Addr}})
					a.UpWithin(t, 60*time.Second)
				})
			}
		}
	})
}

// silentServer accepts connections and says nothing.
func silentServer(t *testing.T) string {
	return harness.ServeTCP(t, func(c *net.TCPConn) {
		buf := make([]byte, 1024)
		for {
			if _, err := c.Read(buf); err != nil {
				return
			}
		}
	})
}

// TestEdgeIsAwayForAWhile restarts an edge that was away: the agent comes back by
// itself within seconds, and says once that it lost it, not again and again.
func TestEdgeIsAwayForAWhile(t *testing.T) {
	onFaces(t, func(t *testing.T, k harness.Kind) {
		f := harness.Own(t, k, harness.Setup{})
		s := newSite(t, f)
		s.mustServe(t)
		f.Kill(t)
		mark := s.agent.Stderr.Mark()
		s.agent.WaitStderr(t, mark, 20*time.Second) // its first word on it
		time.Sleep(2 * time.Second)                 // the time away is the subject
		f.Start(t)
		began := time.Now()
		s.agent.UpWithin(t, 10*time.Second)
		t.Logf("back after %v", time.Since(began).Round(time.Millisecond))
		s.mustServe(t)
	})
}
