package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"github.com/iottunnel/iottunnel/e2e/harness"
)

// TestEnrollByCommand has a device get its own secret by a claim code, and use it.
func TestEnrollByCommand(t *testing.T) {
	t.Parallel()
	r := startRig(t, plainRig("auth enrolled"))
	code := func(device string) string {
		t.Helper()
		var made struct{ Code string }
		r.ask(t, "POST", "/iottunnel/codes", fmt.Sprintf(`{"ttl":"15m","device":%q}`, device), &made)
		return made.Code
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "token")
	enroll := func(code string, more ...string) (int, string) {
		t.Helper()
		status, _, errs := harness.RunToEnd(t, time.Minute, harness.Command{Name: "enroll", Args: append([]string{
			harness.Binary(t, "iottunnel-agent"), "enroll", "--server", fmt.Sprintf("ws://127.0.0.1:%d", r.port),
			"--device", "door-{hostname}", "--code", code, "--token-file", file,
		}, more...)})
		return status, errs
	}
	if status, errs := enroll(code("")); status != 0 {
		t.Fatalf("status %d:\n%s", status, errs)
	}
	info, err := os.Stat(file)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	if left, err := os.ReadDir(dir); len(left) != 1 || err != nil {
		t.Errorf("left: %v, %v", left, err)
	}
	origin := harness.StartOrigin(t)
	_, host := r.agent(t, "door-{hostname}", strings.TrimSpace(readFile(t, file)), origin.Addr)
	if got := r.get(t, host, "/echo"); got.StatusCode != http.StatusOK {
		t.Errorf("%s", got)
	}

	used := code("door-2")
	if status, errs := enroll(used, "--device", "door-2", "--force"); status != 0 {
		t.Errorf("status %d:\n%s", status, errs)
	}
	secret := readFile(t, file)
	for _, c := range []struct {
		name, code string
		flags      []string
		status     int
		says       string
	}{
		{"a file that is there", code("door-2"), []string{"--device", "door-2"}, 2, "is there already"},
		{"a code that was used", used, []string{"--device", "door-2", "--force"}, 3, "A code serves once"},
		{"one of another device", code("door-3"), []string{"--device", "door-4", "--force"}, 3, "401 unauthorized"},
		{"one for new devices", code(""), []string{"--device", "door-2", "--force"}, 3, "made for it"},
		{"nonsense", "nonsense", []string{"--device", "door-9", "--force"}, 3, "401 unauthorized"},
	} {
		if status, errs := enroll(c.code, c.flags...); status != c.status || !strings.Contains(errs, c.says) {
			t.Errorf("%s: status %d, want %d with %q:\n%s", c.name, status, c.status, c.says, errs)
		}
	}
	if readFile(t, file) != secret {
		t.Error("a code in vain has changed the secret")
	}
	for range 50 { // wrong codes are bounded by address
		status, errs := enroll("nonsense", "--device", "door-9", "--force")
		if status == 4 {
			if !strings.Contains(errs, "429") || !strings.Contains(errs, "Try again in ") {
				t.Errorf("too many: %s", errs)
			}
			return
		}
	}
	t.Error("50 wrong codes were judged")
}

// finding is a line of `check --output json`.
type finding struct{ Server, Hop, Verdict, Text, Cure string }

// check runs it where and how it is told, and returns the status and what failed.
func check(t *testing.T, args ...string) (status int, failed []finding, all string) {
	t.Helper()
	status, out, errs := harness.RunToEnd(t, 2*time.Minute, harness.Command{Name: "check", Args: append(args, "--output", "json")})
	var answer struct{ Findings []finding }
	if err := json.Unmarshal([]byte(out), &answer); err != nil {
		t.Fatalf("%v in %s%s", err, out, errs)
	}
	for _, f := range answer.Findings {
		if f.Verdict == "failed" {
			failed = append(failed, f)
		}
	}
	return status, failed, out
}

// onOneEdge runs a case that is about the agent on the faces that are one edge, by
// itself: what else is in front of it changes nothing for the agent.
func onOneEdge(t *testing.T, run func(t *testing.T, k harness.Kind)) {
	t.Helper()
	t.Parallel()
	for _, k := range kinds() {
		if name := k.Name(); name == "plain" || name == "tls" {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				run(t, k)
			})
		}
	}
}

// TestCheckNamesTheHop breaks each hop between a device and its visitors, on networks
// of their own, and sees that check names it and a cure.
func TestCheckNamesTheHop(t *testing.T) {
	onOneEdge(t, func(t *testing.T, k harness.Kind) {
		f := newFar(t, k, harness.Setup{}, 0)
		harness.ServeDNS(t, f.edge, "other.test", netip.MustParseAddr(f.edge.Addr))
		origin := f.device.StartOrigin(t)
		d := f.face.NewDevice(t)
		token := writeFile(t, filepath.Join(t.TempDir(), "token"), d.Token+"\n")
		wrong := writeFile(t, filepath.Join(t.TempDir(), "token"), "wrong\n")
		server := f.face.Servers()[0]
		scheme, addr, _ := strings.Cut(server, "://")
		_, port, err := net.SplitHostPort(addr)
		if err != nil {
			t.Fatal(err)
		}
		flags := []string{"--allow-plaintext"}
		if ca := f.face.CAFile(); ca != "" {
			flags = append(flags, "--ca", ca)
		}
		run := func(server, tokenFile, forward string, more ...string) (int, []finding, string) {
			t.Helper()
			args := append([]string{harness.Binary(t, "iottunnel-agent"), "check", "--device", d.ID, "--server", server, "--token-file", tokenFile, "--forward", forward}, flags...)
			return check(t, f.device.Args(append(args, more...)...)...)
		}
		good := "80=" + origin.Addr
		broken := func(name string, status int, hop, says, cure string) func(int, []finding, string) {
			return func(got int, failed []finding, all string) {
				t.Helper()
				if got != status || len(failed) != 1 || failed[0].Hop != hop || !strings.Contains(failed[0].Text, says) || !strings.Contains(failed[0].Cure, cure) {
					t.Errorf("%s: status %d, want %d and the one hop %s, %q, %q:\n%s", name, got, status, hop, says, cure, all)
				}
			}
		}
		if status, failed, all := run(server, token, good); status != 0 || failed != nil {
			t.Errorf("nothing is broken: status %d\n%s", status, all)
		}
		broken("name", 4, "dns", "nowhere.test", "--dns")(run(scheme+"://nowhere.test", token, good, "--dns", f.edge.Addr))
		broken("refused", 4, "tcp", "refused", "nothing listens there")(run(scheme+"://"+f.edge.Addr+":1", token, good))
		broken("token", 3, "tunnel", "401 unauthorized", "token")(run(server, wrong, good))
		broken("service", 4, "port 80/http", "connection refused", "start the service")(run(server, token, "80=127.0.0.1:1"))
		way := f.net.Host(t, "proxy")
		proxy := harness.StartProxy(t, way, "device", "s3cret")
		broken("proxy", 4, "proxy", "user and password", "--proxy http://USER:PASSWORD@HOST:PORT")(run(server, token, good, "--proxy", "http://"+proxy.Addr))
		if f.face.CAFile() != "" {
			other := harness.NewAuthority(t)
			broken("authority", 4, "tls", "", "--ca")(run(server, token, good, "--ca", other.File))
		}

		// A device whose link is silent keeps its tunnel.
		a := f.device.StartAgent(t, f.face, harness.AgentSetup{Device: d, Forwards: []string{good}})
		a.Up(t)
		a.Signal(syscall.SIGSTOP)
		status, failed, all := run(server, token, good)
		a.Signal(syscall.SIGCONT)
		if status != 0 || failed != nil || !strings.Contains(all, "is connected already, and was not disturbed") {
			t.Errorf("beside a silent device: status %d\n%s", status, all)
		}
		for _, line := range a.Stderr.Since(0) {
			if strings.Contains(line, "tunnel down") {
				t.Errorf("check has cost the device its tunnel: %s", line)
			}
		}

		lift := f.edge.Block(t, atoi(t, port))
		broken("filtered", 4, "tcp", "does not answer", "firewall")(run(server, token, good))
		lift()
		box := &harness.Middlebox{Addr: f.face.AgentAddr(), Head: func(head []byte) (forward, answer []byte) {
			var kept []string
			for line := range strings.SplitSeq(string(head), "\r\n") {
				if name, _, _ := strings.Cut(line, ":"); !strings.EqualFold(name, "Upgrade") && !strings.EqualFold(name, "Connection") {
					kept = append(kept, line)
				}
			}
			return []byte(strings.Join(kept, "\r\n")), nil
		}}
		var trust []string
		if f.face.CAFile() != "" {
			box.Authority, box.Trust = harness.NewAuthority(t), f.face.AgentTLS()
			trust = []string{"--ca", box.Authority.File}
		}
		box.Start(t, f.net)
		broken("upgrade", 4, "upgrade", "no WebSocket handshake", "")(run(server, token, good, trust...))
	})
}

func atoi(t *testing.T, s string) (n int) {
	t.Helper()
	if _, err := fmt.Sscan(s, &n); err != nil {
		t.Fatal(err)
	}
	return n
}

// TestClockNeverSet has a device come back whose clock has fallen to years before the
// edge's certificate was made.
func TestClockNeverSet(t *testing.T) {
	onOneEdge(t, func(t *testing.T, k harness.Kind) {
		f := harness.Own(t, k, harness.Setup{})
		o := harness.StartOrigin(t)
		a := harness.StartAgent(t, f, harness.AgentSetup{Forwards: []string{"80=" + o.Addr}})
		a.Up(t)
		f.Kill(t)
		a.ShiftClock(t, -30*365*24*time.Hour)
		f.Start(t)
		a.Up(t)
		if f.CAFile() != "" {
			a.WaitStderr(t, 0, harness.UpTime, "this device's clock is behind")
		}
	})
}

// TestCheckWithAClockNeverSet has check say of such a device what run does there: it
// reaches the edge all the same.
func TestCheckWithAClockNeverSet(t *testing.T) {
	onOneEdge(t, func(t *testing.T, k harness.Kind) {
		f := harness.Own(t, k, harness.Setup{})
		o := harness.StartOrigin(t)
		d := f.NewDevice(t)
		token := writeFile(t, filepath.Join(t.TempDir(), "token"), d.Token+"\n")
		// It stands still where it reads its configuration until its clock is wrong.
		config := filepath.Join(t.TempDir(), "config.yaml")
		if err := syscall.Mkfifo(config, 0o600); err != nil {
			t.Fatal(err)
		}
		args := []string{harness.Binary(t, "iottunnel-agent"), "check", "-c", config, "--server", f.Servers()[0], "--token-file", token,
			"--forward", "80=" + o.Addr, "--allow-plaintext", "--output", "json"}
		if ca := f.CAFile(); ca != "" {
			args = append(args, "--ca", ca)
		}
		p := harness.Run(t, harness.Command{Name: "check", Args: args})
		go func() { // ends with it, and ends what waits below for one that is dead
			<-p.Done()
			if r, err := os.OpenFile(config, os.O_RDONLY|syscall.O_NONBLOCK, 0); err == nil {
				r.Close()
			}
		}()
		w, err := os.OpenFile(config, os.O_WRONLY, 0) // it reads now
		if err != nil {
			t.Fatal(err)
		}
		p.ShiftClock(t, -30*365*24*time.Hour)
		fmt.Fprintln(w, "device:", d.ID)
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		status := p.Wait(t, 2*time.Minute)
		all := strings.Join(p.Stdout.Since(0), "\n")
		var answer struct{ Findings []finding }
		if err := json.Unmarshal([]byte(all), &answer); err != nil {
			t.Fatalf("%v in %s", err, all)
		}
		clock := false
		for _, found := range answer.Findings {
			clock = clock || found.Hop == "clock" && found.Verdict == "warning" && strings.Contains(found.Text, "never set") && strings.Contains(found.Cure, "NTP")
			if found.Verdict == "failed" || found.Hop == "tls" && found.Verdict != "ok" {
				status = 4
			}
		}
		if status != 0 || !clock {
			t.Errorf("status %d:\n%s", status, all)
		}
	})
}

// TestNoResolvConf runs the agent on a system that tells programs of no name server,
// as Android does not.
func TestNoResolvConf(t *testing.T) {
	t.Parallel()
	dns := harness.LocalDNS(t)
	run := func(flags ...string) (int, string) {
		t.Helper()
		args := append([]string{"unshare", "-m", "sh", "-c", `mount -t tmpfs none /etc && exec "$@"`, "sh", harness.Binary(t, "iottunnel-agent"),
			"run", "--device", "cam-17", "--forward", "80", "--once", "--server", fmt.Sprintf("wss://edge.test:%d", harness.FreePort(t, 1))}, flags...)
		status, _, errs := harness.RunToEnd(t, time.Minute, harness.Command{Name: "agent without /etc", Args: args})
		return status, errs
	}
	if status, errs := run(); status != 4 || !strings.Contains(errs, "no /etc/resolv.conf") || !strings.Contains(errs, "--dns") {
		t.Errorf("status %d:\n%s", status, errs)
	}
	// With it the name is known, and the next hop fails.
	if status, errs := run("--dns", dns); status != 4 || strings.Contains(errs, "resolv.conf") || !strings.Contains(errs, "connection refused") {
		t.Errorf("with --dns: status %d:\n%s", status, errs)
	}
}

// connecting plays an edge whose one device is at addr, for `connect` alone.
func connecting(t *testing.T, addr string) (url string) {
	t.Helper()
	up := websocket.Upgrader{Subprotocols: []string{"iottunnel.v1"}}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer id.gr4nt" {
			w.WriteHeader(401)
			io.WriteString(w, `{"error":"unauthorized","message":"no"}`)
			return
		}
		device, err := net.Dial("tcp", addr)
		if err != nil {
			w.WriteHeader(502)
			io.WriteString(w, `{"error":"device_refused","message":"nobody there"}`)
			return
		}
		defer device.Close()
		ws, err := up.Upgrade(w, r, nil)
		if err != nil {
			t.Error(err)
			return
		}
		defer ws.Close()
		done := make(chan struct{})
		go func() {
			defer close(done)
			buf := make([]byte, 32<<10)
			for {
				n, err := device.Read(buf)
				if ws.WriteMessage(websocket.BinaryMessage, buf[:n]) != nil || err != nil { // an empty one ends it
					return
				}
			}
		}()
		for {
			_, b, err := ws.ReadMessage()
			if err != nil {
				return
			}
			if len(b) == 0 {
				_ = device.(*net.TCPConn).CloseWrite()
				<-done // both are done
				continue
			}
			if _, err := device.Write(b); err != nil {
				return
			}
		}
	}))
	t.Cleanup(s.Close)
	return s.URL
}

// TestConnectPrograms has real programs reach a device by `connect`: with ssh-config
// ssh, scp, rsync and git do so by themselves.
func TestConnectPrograms(t *testing.T) {
	t.Parallel()
	server := startSSH(t)
	install(t, "rsync git", "rsync", "git")
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	grant := writeFile(t, path("grant"), "id.gr4nt\n")
	agent := harness.Binary(t, "iottunnel-agent")
	edge := connecting(t, server.addr)
	config := program(t, "", agent, "ssh-config", "cam-17", "--server", edge, "--token-file", grant)
	file := writeFile(t, path("config"), config)
	options := append([]string{"-F", file}, server.options[2:]...) // without -F /dev/null
	ssh := append([]string{"ssh", "-l", server.user}, options...)

	if out := program(t, "typed", append(ssh, "cam-17", "echo $((6*7)); cat")...); out != "42\ntyped" {
		t.Errorf("the command said %q", out)
	}
	n := int64(20 << 20)
	sent, err := os.Create(path("sent"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(sent, harness.NewPattern(n)); err != nil {
		t.Fatal(err)
	}
	sent.Close()
	scp := append([]string{"scp", "-q"}, options...)
	there := server.user + "@cam-17:"
	program(t, "", append(scp, path("sent"), there+path("there"))...)
	program(t, "", append(scp, there+path("there"), path("back"))...)
	program(t, "", "rsync", "-e", strings.Join(append([]string{"ssh"}, options...), " "), there+path("there"), path("synced"))
	for _, name := range []string{"there", "back", "synced"} {
		if got, sum := fileSum(t, path(name)); got != n || sum != harness.PatternSum(n) {
			t.Errorf("%s: %d of %d bytes", name, got, n)
		}
	}
	git := []string{"git", "-c", "safe.directory=*", "-c", "user.name=T", "-c", "user.email=t@example.com"}
	program(t, "", append(git, "init", "-q", path("work"))...)
	program(t, "", append(git, "-C", path("work"), "commit", "-q", "--allow-empty", "-m", "first")...)
	program(t, "", append(git, "-c", "core.sshCommand="+strings.Join(append([]string{"ssh"}, options...), " "), "clone", "-q", there+path("work"), path("clone"))...)
	if a, b := program(t, "", append(git, "-C", path("work"), "rev-parse", "HEAD")...), program(t, "", append(git, "-C", path("clone"), "rev-parse", "HEAD")...); a != b {
		t.Errorf("served %s, cloned %s", a, b)
	}

	local := harness.Run(t, harness.Command{Name: "connect --listen", Args: []string{
		agent, "connect", "cam-17:7", "--server", connecting(t, harness.ServeTCP(t, harness.AnswerAfterEnd)), "--token-file", grant, "--listen", "127.0.0.1:0",
	}})
	halfClose(t, local.WaitStdout(t, 0, harness.UpTime, "127.0.0.1:"), 8<<20)
	if status := local.Stop(t, 10*time.Second); status != 0 {
		t.Errorf("status %d after SIGTERM", status)
	}
	writeFile(t, grant, "id.wrong\n")
	if status, _, errs := harness.RunToEnd(t, time.Minute, harness.Command{Name: "connect", Args: []string{agent, "connect", "cam-17:22", "--server", edge, "--token-file", grant}}); status != 3 || !strings.Contains(errs, "The grant is unknown") {
		t.Errorf("status %d:\n%s", status, errs)
	}
}
