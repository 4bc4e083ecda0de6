package main

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/iottunnel/iottunnel/agent"
	"github.com/iottunnel/iottunnel/internal/leak"
	"github.com/iottunnel/iottunnel/tunnelcore/socket"
	"github.com/iottunnel/iottunnel/tunnelcore/socket/accept"
	"github.com/iottunnel/iottunnel/tunnelcore/wire"
)

// The test binary is the command too, so that exit statuses and signals are real.
func TestMain(m *testing.M) {
	if os.Getenv("BE_THE_COMMAND") != "" {
		main()
	}
	leak.Main(m)
}

func start(t *testing.T, args ...string) *exec.Cmd {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := exec.Command(exe, args...)
	c.Env = append(os.Environ(), "BE_THE_COMMAND=1", "IOTTUNNEL_TOKEN=t0ken")
	t.Cleanup(func() {
		if c.Process != nil && c.ProcessState == nil {
			c.Process.Kill()
			c.Wait()
		}
	})
	return c
}

// status runs the command to its end.
func status(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	c := start(t, args...)
	var out, err strings.Builder
	c.Stdout, c.Stderr = &out, &err
	var exit *exec.ExitError
	if e := c.Run(); e != nil && !errors.As(e, &exit) {
		t.Fatal(e)
	}
	return c.ProcessState.ExitCode(), out.String(), err.String()
}

// An edge that refuses the device is heard, whatever else was asked before it or after.
func TestExitStatusOfSeveral(t *testing.T) {
	edge := &agent.RefusedError{Status: 401, Code: "unauthorized"}
	for _, test := range []struct {
		name   string
		others []error
	}{
		{"no edge", []error{&agent.RefusedError{Status: 404}}},
		{"a node that is full", []error{&agent.RefusedError{Status: 503, Code: "unavailable"}, errors.New("no route")}},
	} {
		if got := exitStatus(all(append([]error{edge}, test.others...)...)); got != exitRefused {
			t.Errorf("%s, last: %d", test.name, got)
		}
		if got := exitStatus(all(append(test.others, edge)...)); got != exitRefused {
			t.Errorf("%s, first: %d", test.name, got)
		}
		if got := exitStatus(all(test.others...)); got != exitUnreachable {
			t.Errorf("%s alone: %d", test.name, got)
		}
	}
	if got := exitStatus(all(&agent.ClosedError{Code: wire.CloseRevoked})); got != exitRefused {
		t.Errorf("revoked: %d", got)
	}
}

// all is how an agent ends with the failures of all servers.
func all(failures ...error) error { return fmt.Errorf("agent: %w", errors.Join(failures...)) }

func TestExitStatus(t *testing.T) {
	refusing := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(401)
		io.WriteString(w, `{"error":"unauthorized","message":"device or token is wrong"}`)
	}))
	defer refusing.Close()
	other := httptest.NewServer(http.NotFoundHandler())
	defer other.Close()
	run := func(more ...string) []string {
		return append([]string{"run", "--device", "cam-17", "--forward", "80", "--once"}, more...)
	}
	for _, test := range []struct {
		args           []string
		code           int
		stdout, stderr string // parts
	}{
		{nil, exitUsage, "", "no command; there are: run, check, enroll, service, connect, ssh-config, version"},
		{[]string{"conect"}, exitUsage, "", `no command "conect"; there are: run, check, enroll, service, connect, ssh-config, version`},
		{[]string{"--help"}, exitOK, "iottunnel-agent run ", ""},
		{[]string{"run", "-h"}, exitOK, "--token-file FILE", ""},
		{[]string{"version"}, exitOK, "iottunnel-agent ", ""},
		{[]string{"--version"}, exitOK, "iottunnel-agent ", ""},
		{[]string{"run"}, exitUsage, "", "--server is needed"},
		{[]string{"run", "--servr", "x"}, exitUsage, "", "flag provided but not defined: --servr"},
		{[]string{"run", "--token", "t0ken"}, exitUsage, "", "flag provided but not defined: --token; other users of this computer can see flags: name the file"},
		{[]string{"run", "--server"}, exitUsage, "", "flag needs an argument: --server"},
		{[]string{"run", "--heartbeat", "5"}, exitUsage, "", `invalid value "5" for flag --heartbeat`},
		{[]string{"run", "away"}, exitUsage, "", `run: unexpected argument "away"`},
		{run("--server", "wss://127.0.0.1:1"), exitUnreachable, "", "tcp: dial tcp 127.0.0.1:1:"},
		{run("--server", refusing.URL), exitRefused, "", "answered 401 unauthorized: device or token is wrong"},
		{run("--server", other.URL), exitUnreachable, "", "not by an iottunnel edge"},
		{run("--server", "ws://192.0.2.1"), exitUsage, "", `iottunnel-agent: --server: "ws://192.0.2.1" would send the token unencrypted; use wss://, or allow it on a network that you trust (--allow-plaintext)`},
		{run("--server", "wss://a", "--device", strings.Repeat("a", 57)), exitUsage, "", "iottunnel-agent: --device: longer than 56 characters"},
		{run("--server", "wss://a", "--max-backoff", "2h"), exitUsage, "", "iottunnel-agent: --max-backoff: 2h0m0s is not from 1s to 1h"},
		{run("--server", "wss://a", "--max-backoff", "0"), exitUsage, "", "iottunnel-agent: --max-backoff: 0s is not from 1s to 1h"},
		{run("--server", "wss://a", "--redirect-to", "com"), exitUsage, "", `iottunnel-agent: --redirect-to: "com" is not a domain`},
		{run("--server", "wss://a", "--forward", "80"), exitUsage, "", "iottunnel-agent: --forward: port 80 is given twice"},
		{run("--server", "wss://a", "--profile", "fast"), exitUsage, "", `iottunnel-agent: --profile: "fast" is not one: full, basic or inline`},
		{run("--server", "wss://a", "--status", "9180"), exitUsage, "", `iottunnel-agent: --status: "9180" is not ADDRESS:PORT, such as 127.0.0.1:9180`},
		{run("--server", "wss://a", "--device", "cam-{max}"), exitUsage, "", "iottunnel-agent: --device: {max}: there is no such placeholder"},
		{run("--server", "wss://a", "--output", "json"), exitUsage, "", "--output belongs to check"},
		{run("--server", "wss://a", "--forward", "81/tcp=a:1,host=b"), exitUsage, "", "iottunnel-agent: --forward: port 81: another Host is possible on kind http alone"},
		{[]string{"help", "service"}, exitOK, "iottunnel-agent service install", ""},
		{[]string{"check"}, exitUsage, "", "--server is needed"},
		{[]string{"check", "--output", "xml"}, exitUsage, "", `--output: "xml" is not text or json`},
		{[]string{"service"}, exitUsage, "", `service: "" is not one of: install, uninstall, start, stop, status`},
		{[]string{"service", "restart"}, exitUsage, "", `service: "restart" is not one of`},
		{[]string{"service", "start", "now"}, exitUsage, "", `service: unexpected argument "now"`},
		{[]string{"service", "start", "--device", "a"}, exitUsage, "", "service start takes no --device: what the service does was said to install"},
		{[]string{"service", "status", "--manager", "upstart"}, exitUsage, "", `"upstart" is not a service manager`},
		{run("--server", "wss://a", "--heartbeat", "5s"), exitUsage, "", "iottunnel-agent: --heartbeat: 5s is not from 10s to 15m0s"},
		{run("--server", "wss://a", "--token-file", "/nowhere"), exitUsage, "", "enroll` do so for a claim code"},
		{run("--server", "wss://a", "--ca", "main.go"), exitUsage, "", "--ca: main.go holds no certificate"},
		{run("--server", "wss://a", "--client-key", "a"), exitUsage, "", "need each other"},
		{run("--server", "wss://a", "--proxy", "proxy:80"), exitUsage, "", "--proxy: not http://"},
		{run("--server", "wss://a", "--dns", "dns.example.com"), exitUsage, "", "--dns:"},
		{run("--server", "wss://a", "--log-format", "xml"), exitUsage, "", "--log-format:"},
		{run("--server", "wss://a", "--log-level", "loud"), exitUsage, "", "--log-level: it is debug, info"},
		{run("--server", "wss://a", "--config", "/nowhere"), exitUsage, "", "no such file or directory; -c names a file"},
	} {
		code, stdout, stderr := status(t, test.args...)
		if code != test.code || !strings.Contains(stdout, test.stdout) || !strings.Contains(stderr, test.stderr) ||
			test.stdout == "" && stdout != "" || strings.Contains(stderr, "t0ken") {
			t.Errorf("%q: status %d, %q, %q; want %d, %q, %q", test.args, code, stdout, stderr, test.code, test.stdout, test.stderr)
		}
	}
}

// edge lets an agent in, and asks for as many streams of port 22 as told.
func edge(t *testing.T, streams int) (url string) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if token := r.Header.Get("Authorization"); strings.HasSuffix(r.URL.Path, "/control") && token != "Bearer t0ken" {
			t.Errorf("token %q", token)
		}
		s, err := accept.Upgrade(w, r, "iottunnel.v1", socket.SmallBuffer, nil)
		if err != nil {
			t.Error(err)
			return
		}
		defer s.Close()
		if strings.HasSuffix(r.URL.Path, "/control") {
			const id = "0123456789abcdef0123456789abcdef"
			for _, text := range []string{
				`{"type":"ready","tunnel":"` + id + `","caps":"","heartbeat_s":25,"label":"l4bel","hostname":"l4bel.devices.example.net","lease_s":1,"streams":256,"message_max":65536,"transfer":"/transfer?a","secret":"s"}`,
				`{"type":"port","port":22,"kind":"tcp"}`,
				`{"type":"port","port":80,"kind":"http","url":"https://l4bel.devices.example.net/"}`,
				`{"type":"port","port":2222,"kind":"tcp","addr":"edge-1.example.com:20022"}`,
			} {
				s.WriteMessage(socket.Text, []byte(text))
			}
			for range streams {
				s.WriteMessage(socket.Text, []byte(`{"type":"open","stream":1,"id":"`+id+`","port":22,"from":""}`))
			}
		}
		for {
			if _, _, err := s.ReadMessage(1000); err != nil {
				return
			}
		}
	}))
	t.Cleanup(s.Close)
	return s.URL
}

func TestRunAndStop(t *testing.T) {
	c := start(t, "run", "--server", edge(t, 0), "--device", "cam-17", "--forward", "80=127.0.0.1:1", "--forward", "22", "--forward", "2222")
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	want := "80/http https://l4bel.devices.example.net/\n22/tcp -\n2222/tcp tcp://edge-1.example.com:20022\n"
	got := make([]byte, len(want))
	if _, err := io.ReadFull(out, got); err != nil || string(got) != want {
		t.Errorf("standard output: %q, %v", got, err)
	}
	c.Process.Signal(syscall.SIGTERM)
	rest, err := io.ReadAll(out)
	if err != nil || len(rest) > 0 {
		t.Errorf("more on standard output: %q, %v", rest, err)
	}
	if err := c.Wait(); err != nil {
		t.Errorf("after SIGTERM: %v", err)
	}
}

func TestSecondSignalEndsTheGrace(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c := start(t, "run", "--server", edge(t, 1), "--device", "cam-17", "--forward", "22="+l.Addr().String(), "--forward", "80", "--forward", "2222")
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	began := time.Now()
	c.Process.Signal(os.Interrupt)
	time.Sleep(200 * time.Millisecond) // two at once would be one
	c.Process.Signal(os.Interrupt)
	if err := c.Wait(); err != nil {
		t.Errorf("after two signals: %v", err)
	}
	if d := time.Since(began); d > 4*time.Second {
		t.Errorf("it took %v", d)
	}
}

func TestHelpNamesEachFlag(t *testing.T) {
	documented := make(map[string]bool)
	for _, name := range regexp.MustCompile(`(?m)^  (?:-c, )?--([a-z-]+)|^  --[a-z-]+ FILE, --([a-z-]+)`).FindAllStringSubmatch(runHelp, -1) {
		documented[name[1]] = true
	}
	for _, name := range regexp.MustCompile(`, --([a-z-]+)`).FindAllStringSubmatch(runHelp, -1) {
		documented[name[1]] = true
	}
	new(options).flags().VisitAll(func(f *flag.Flag) {
		if _, special := only[f.Name]; special {
			if text := checkHelp + serviceHelp + enrollHelp + connectHelp; !strings.Contains(text, "\n  --"+f.Name+" ") {
				t.Errorf("--%s is not in the help", f.Name)
			}
			return
		}
		if !documented[f.Name] && f.Name != "c" {
			t.Errorf("--%s is not in the help", f.Name)
		}
		delete(documented, f.Name)
	})
	for name := range documented {
		t.Errorf("the help names --%s, which does not exist", name)
	}
	sc := bufio.NewScanner(strings.NewReader(mainHelp + runHelp + checkHelp + serviceHelp + enrollHelp + connectHelp))
	for sc.Scan() {
		if len(sc.Text()) > 90 {
			t.Errorf("a line of the help is too long: %s", sc.Text())
		}
	}
}

func TestPrecedence(t *testing.T) {
	file := filepath.Join(t.TempDir(), "agent.yaml")
	write := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("server: [wss://file-1, wss://file-2]\ndevice: of-the-file\nforward:\n- 80\n- 81\nmax_backoff: 10s\nonce: true\nlog_level: debug\n")
	env := []string{
		"IOTTUNNEL_DEVICE=of-the-environment", "IOTTUNNEL_FORWARD=82 83=127.0.0.1:1,proxy_protocol=v2", "IOTTUNNEL_TOKEN=t",
		"IOTTUNNEL_ONCE=false", "IOTTUNNEL_PROXY=", "IOTTUNNEL_UNKNOWN=1",
	}
	name, o, err := parse([]string{"--server", "wss://flag", "run", "-c", file, "--log-format=json"}, env)
	if err != nil || name != "run" {
		t.Fatal(name, err)
	}
	if got := o.servers.String(); got != "wss://flag" {
		t.Errorf("servers %s", got)
	}
	if got := o.forwards.String(); got != "82 83=127.0.0.1:1,proxy_protocol=v2" {
		t.Errorf("forwards %s", got)
	}
	if o.device != "of-the-environment" || o.token != "t" || o.once || o.maxBackoff != 10*time.Second ||
		o.logLevel != -4 || o.logFormat != "json" || o.profile != "full" {
		t.Errorf("options %+v", o)
	}
	if _, o, err = parse([]string{"run", "--device=of-the-flag"}, append(env, "IOTTUNNEL_CONFIG="+file)); err != nil || o.device != "of-the-flag" || o.servers.String() != "wss://file-1 wss://file-2" {
		t.Errorf("%+v, %v", o, err)
	}
	if _, _, err := parse([]string{"run"}, []string{"IOTTUNNEL_ONCE=maybe"}); err == nil || !strings.Contains(err.Error(), "IOTTUNNEL_ONCE") {
		t.Error(err)
	}
	for text, want := range map[string]string{
		"device: a\nservr: b":           `agent.yaml: line 2: unknown key "servr"; there are: allow_plaintext, ca,`,
		"config: a":                     "line 1: unknown key",
		"max-backoff: 1s":               "line 1: unknown key",
		"token: secret":                 "line 1: a token does not stand in this file",
		"device: a\ndevice: b":          "line 2: device is given twice",
		"device:\n- a":                  "line 1: device takes one value",
		"heartbeat: soon":               `line 1: heartbeat: "soon":`,
		"forward:\n - 80\nonce: maybe":  `line 3: once: "maybe":`,
		"device: a\n  b: c":             "line 2: not of the form",
		"forward: {port: 80, target: }": "line 1:",
	} {
		write(text)
		if _, _, err := parse([]string{"run", "-c", file}, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v; want %s", text, err, want)
		}
	}
}

// What the agent refuses is named as where it was set.
func TestErrorsNameTheSetting(t *testing.T) {
	dir := t.TempDir()
	file, token := filepath.Join(dir, "agent.yaml"), filepath.Join(dir, "token")
	good := []string{"--server=wss://a", "--device=cam-17", "--forward=80"}
	for _, test := range []struct {
		args  []string
		env   string
		yaml  string
		token string
		want  string
	}{
		{args: good, env: "IOTTUNNEL_MAX_BACKOFF=2h", want: "IOTTUNNEL_MAX_BACKOFF: 2h0m0s is not from 1s to 1h"},
		{args: good, yaml: "# all\nmax_backoff: 2h\n", want: "config: " + file + ": line 2: max_backoff: 2h0m0s is not from 1s to 1h"},
		{args: append(good, "--max-backoff=3h"), env: "IOTTUNNEL_MAX_BACKOFF=2h", yaml: "max_backoff: 2h\n", want: "--max-backoff: 3h0m0s is not from 1s to 1h"},
		{args: good, env: "IOTTUNNEL_MAX_BACKOFF=3h", yaml: "max_backoff: 2h\n", want: "IOTTUNNEL_MAX_BACKOFF: 3h0m0s is not from 1s to 1h"},
		{args: good[1:], env: "IOTTUNNEL_SERVER=wss://a wss://u:t0ken@b", want: `IOTTUNNEL_SERVER: "wss://…@b": user and password do not belong into the URL`},
		{args: good[:2], yaml: "forward:\n  - 80\n  - 22=no\n", want: "config: " + file + `: line 1: forward: 22=no: "no" is not HOST:PORT`},
		{args: good, env: "IOTTUNNEL_TOKEN=t0ken t0ken", want: "IOTTUNNEL_TOKEN: character 6 is a space or not printable ASCII"},
		{args: append(good, "--token-file="+token), env: "IOTTUNNEL_TOKEN=a b", token: "t0k\x01en", want: "--token-file: character 4 is a space or not printable ASCII"},
		{args: good, yaml: "token_file: " + token + "\n", want: "config: " + file + ": line 1: token_file: " + token + " is empty; write the secret into it"},
	} {
		for name, text := range map[string]string{file: test.yaml, token: test.token} {
			if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		var stderr strings.Builder
		status := command(append([]string{"run", "-c", file}, test.args...), []string{test.env}, io.Discard, &stderr)
		if want := "iottunnel-agent: " + test.want + "\n"; status != exitUsage || stderr.String() != want {
			t.Errorf("%v, %s, %q: status %d, %q, want %q", test.args, test.env, test.yaml, status, stderr.String(), want)
		}
	}
}

// Each field that the agent may find fault with has a name here.
func TestFieldsHaveSettings(t *testing.T) {
	fs := new(options).flags()
	for field, name := range flagOf {
		if _, ok := reflect.TypeFor[agent.Config]().FieldByName(field); !ok || fs.Lookup(name) == nil {
			t.Errorf("%s and --%s", field, name)
		}
	}
}

func TestParseForward(t *testing.T) {
	for text, want := range map[string]agent.Forward{
		"22":                             {Port: 22, Kind: agent.TCP, Target: "127.0.0.1:22"},
		"80":                             {Port: 80, Kind: agent.HTTP, Target: "127.0.0.1:80"},
		"443":                            {Port: 443, Kind: agent.HTTPS, Target: "127.0.0.1:443"},
		"80/tcp":                         {Port: 80, Kind: agent.TCP, Target: "127.0.0.1:80"},
		"80=127.0.0.1:8080":              {Port: 80, Kind: agent.HTTP, Target: "127.0.0.1:8080"},
		"8081/http=printer.lan:80":       {Port: 8081, Kind: agent.HTTP, Target: "printer.lan:80"},
		"22=[::1]:22,proxy_protocol=v2":  {Port: 22, Kind: agent.TCP, Target: "[::1]:22", ProxyProtocol: true},
		"22,proxy_protocol=v2":           {Port: 22, Kind: agent.TCP, Target: "127.0.0.1:22", ProxyProtocol: true},
		"80,host=cam.lan":                {Port: 80, Kind: agent.HTTP, Target: "127.0.0.1:80", Host: "cam.lan"},
		"65535/https=192.168.1.20:65535": {Port: 65535, Kind: agent.HTTPS, Target: "192.168.1.20:65535"},
	} {
		f, err := parseForward(text)
		if err != nil || f.Port != want.Port || f.Kind != want.Kind || f.Target != want.Target || f.ProxyProtocol != want.ProxyProtocol || f.Host != want.Host {
			t.Errorf("%s: %+v, %v", text, f, err)
		}
	}
	for text, want := range map[string]string{
		"":                         "is not a port",
		"http":                     "is not a port",
		"0":                        "is not a port",
		"70000":                    "is not a port",
		"80/udp":                   "is not a kind",
		"80=8080":                  "is not HOST:PORT",
		"80=:8080":                 "is not HOST:PORT",
		"80=a:b":                   "is not HOST:PORT",
		"80=a:80,speed=fast":       `no option "speed"; there are: host=NAME, proxy_protocol=v2`,
		"80=a:80,proxy_protocol":   "proxy_protocol is v2",
		"80=a:80,host":             "host wants a name",
		"80,host=a,host=b":         "option host is given twice",
		"443=a:443,pin=00":         "there is no option pin: the edge speaks TLS",
		"80=a:80,proxy_protocol=1": "proxy_protocol is v2",
	} {
		if f, err := parseForward(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %+v, %v; want %s", text, f, err, want)
		}
	}
}

func TestToken(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	for text, want := range map[string]string{
		"t0ken\n":                       "t0ken",
		"  t0ken\r\n\n":                 "t0ken",
		strings.Repeat("a", maxToken):   strings.Repeat("a", maxToken),
		"\n":                            "",
		strings.Repeat("a", maxToken+1): "",
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := readToken(file); got != want || (err != nil) != (want == "") {
			t.Errorf("%.20q: %.20q, %v", text, got, err)
		}
	}
}

func TestResolver(t *testing.T) {
	if r, err := resolver(nil); r != nil || err != nil {
		t.Errorf("the system's: %v, %v", r, err)
	}
	for list, ok := range map[string]bool{"192.0.2.1": true, "192.0.2.1,2001:db8::1": true, "192.0.2.1:5353,[::1]:53": true, "dns": false, "": false, "192.0.2.1,": false} {
		if r, err := resolver([]string{list}); (err == nil) != ok || ok != (r != nil) {
			t.Errorf("%s: %v, %v", list, r, err)
		}
	}
}
