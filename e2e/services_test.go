package e2e

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/iottunnel/iottunnel/e2e/harness"
)

// install fails the test unless the programs are there.
func install(t *testing.T, pkg string, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			t.Fatalf("%s is not installed, and this test needs a real one: apt-get install %s", p, pkg)
		}
	}
}

// serve starts a server program that listens on a port of loopback, and waits
// until it does.
func serve(t *testing.T, port int, args ...string) (addr string, p *harness.Proc) {
	t.Helper()
	addr = fmt.Sprintf("127.0.0.1:%d", port)
	p = harness.Run(t, harness.Command{Name: args[0], Args: args})
	harness.Eventually(t, harness.UpTime, args[0]+" listens", func() error {
		if !p.Running() {
			t.Fatalf("%s has ended", args[0])
		}
		c, err := net.Dial("tcp", addr)
		if err == nil {
			c.Close()
		}
		return err
	})
	return addr, p
}

// program runs a client to its end, which must be a good one.
func program(t *testing.T, stdin string, args ...string) (stdout string) {
	t.Helper()
	status, out, errs := harness.RunToEnd(t, 3*time.Minute, harness.Command{
		Name: args[0], Args: args, Stdin: strings.NewReader(stdin),
		Env: []string{"HOME=" + t.TempDir(), "GIT_CONFIG_NOSYSTEM=1", "GIT_TERMINAL_PROMPT=0", "LC_ALL=C"},
	})
	if status != 0 {
		t.Fatalf("%q ended with %d\n%s%s", args, status, out, errs)
	}
	return out
}

// publicPort is the port at which a tcp port of the device is reached. It is open:
// where visitors enter at another node than the device's, that takes a moment.
func publicPort(t *testing.T, up harness.Up, port int) string {
	t.Helper()
	_, public, err := net.SplitHostPort(strings.TrimPrefix(up.URLs[port], "tcp://"))
	if err != nil {
		t.Fatalf("port %d is at %q: %v", port, up.URLs[port], err)
	}
	if strings.HasPrefix(up.URLs[port], "tcp://127.0.0.1:") {
		harness.Eventually(t, 5*time.Second, up.URLs[port]+" is open", func() error { return harness.Listening(public) })
	}
	return public
}

func writeFile(t *testing.T, name, text string) string {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func readFile(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func fileSum(t *testing.T, name string) (int64, string) {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	n, sum, err := harness.Sum(f)
	if err != nil {
		t.Fatal(err)
	}
	return n, sum
}

// sshServer is an OpenSSH server that lets in whoever runs the test, by a key.
type sshServer struct {
	addr    string
	options []string // of ssh and scp
	user    string
}

func startSSH(t *testing.T) *sshServer {
	t.Helper()
	install(t, "openssh-server openssh-client", "sshd", "ssh", "scp", "ssh-keygen")
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 { // sshd wants it then; services do not start where there is no init
		if err := os.MkdirAll("/run/sshd", 0o755); err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	for _, name := range []string{"host", "mine"} {
		program(t, "", "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path(name))
	}
	hostKey, err := os.ReadFile(path("host.pub"))
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, path("known"), "device "+string(hostKey))
	port := harness.FreePort(t, 1)
	config := writeFile(t, path("sshd_config"), fmt.Sprintf(`
Port %d
ListenAddress 127.0.0.1
HostKey %s
AuthorizedKeysFile %s
PidFile none
UsePAM no
StrictModes no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
Subsystem sftp internal-sftp
`, port, path("host"), path("mine.pub")))
	sshd, err := exec.LookPath("sshd")
	if err != nil {
		t.Fatal(err)
	}
	addr, _ := serve(t, port, sshd, "-D", "-e", "-f", config) // it wants its whole path
	return &sshServer{
		addr: addr,
		options: []string{
			"-F", "/dev/null", "-i", path("mine"), "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes", "-o", "ConnectTimeout=20",
			"-o", "UserKnownHostsFile=" + path("known"), "-o", "HostKeyAlias=device", "-o", "StrictHostKeyChecking=yes",
		},
		user: me.Username,
	}
}

// ssh is the command line that reaches the server at a public port.
func (s *sshServer) ssh(port string, more ...string) []string {
	args := append([]string{"ssh"}, s.options...)
	return append(append(args, "-p", port, "-l", s.user), more...)
}

// TestSSH logs in, copies files both ways and forwards a port, with OpenSSH.
func TestSSH(t *testing.T) {
	onFaces(t, func(t *testing.T, k harness.Kind) {
		server := startSSH(t)
		f := harness.Own(t, k, harness.Setup{TCPPorts: 4})
		a := harness.StartAgent(t, f, harness.AgentSetup{Forwards: []string{"22=" + server.addr}})
		port := publicPort(t, a.Up(t), 22)

		t.Run("login", func(t *testing.T) {
			out := program(t, "typed", append(server.ssh(port, "127.0.0.1"), "echo $((6*7)); cat; exit 0")...)
			if out != "42\ntyped" {
				t.Errorf("the command said %q", out)
			}
			status, _, _ := harness.RunToEnd(t, time.Minute, harness.Command{Name: "ssh", Args: append(server.ssh(port, "127.0.0.1"), "exit 7")})
			if status != 7 {
				t.Errorf("exit status %d came as 7", status)
			}
		})
		t.Run("scp", func(t *testing.T) {
			n := int64(20 << 20)
			if heavy {
				n = 200 << 20
			}
			dir := t.TempDir()
			path := func(name string) string { return filepath.Join(dir, name) }
			file, err := os.Create(path("sent"))
			if err != nil {
				t.Fatal(err)
			}
			_, err = io.Copy(file, harness.NewPattern(n))
			if err := errors.Join(err, file.Close()); err != nil {
				t.Fatal(err)
			}
			scp := append(append([]string{"scp", "-q"}, server.options...), "-P", port)
			there := server.user + "@127.0.0.1:" + path("there")
			began := time.Now()
			program(t, "", append(scp, path("sent"), there)...)
			program(t, "", append(scp, there, path("back"))...)
			t.Logf("%d MiB there and back in %v", n>>20, time.Since(began).Round(time.Millisecond))
			for _, name := range []string{"there", "back"} {
				if got, sum := fileSum(t, path(name)); got != n || sum != harness.PatternSum(n) {
					t.Errorf("%s: %d of %d bytes", name, got, n)
				}
			}
		})
		t.Run("port forward", func(t *testing.T) {
			local := harness.FreePort(t, 1)
			addr := fmt.Sprintf("127.0.0.1:%d", local)
			harness.Run(t, harness.Command{Name: "ssh -L", Args: server.ssh(port, "-N", "-o", "ExitOnForwardFailure=yes",
				"-L", addr+":"+harness.ServeTCP(t, harness.AnswerAfterEnd), "127.0.0.1")})
			harness.Eventually(t, harness.UpTime, "ssh forwards", func() error {
				c, err := net.Dial("tcp", addr)
				if err == nil {
					c.Close()
				}
				return err
			})
			halfClose(t, addr, 1<<20)
		})
	})
}

// halfClose sends n bytes to a service that answers after their end.
func halfClose(t *testing.T, addr string, n int64) {
	t.Helper()
	c := dialTCP(t, addr)
	if _, err := io.Copy(c, harness.NewPattern(n)); err != nil {
		t.Fatal(err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, sum, err := harness.Sum(c); err != nil || got != n || sum != harness.PatternSum(n) {
		t.Errorf("after the end of %d bytes %d came back: %v", n, got, err)
	}
}

// TestPortIsKept logs in by ssh at the same port after the agent and the edge were
// stopped, killed and started again.
func TestPortIsKept(t *testing.T) {
	onFaces(t, func(t *testing.T, k harness.Kind) {
		server := startSSH(t)
		f := harness.Own(t, k, harness.Setup{TCPPorts: 64})
		setup := harness.AgentSetup{Device: f.NewDevice(t), Forwards: []string{"22=" + server.addr}}
		a := harness.StartAgent(t, f, setup)
		port := publicPort(t, a.Up(t), 22)
		for _, c := range []struct {
			name string
			do   func()
		}{
			{"agent stopped", func() { a.Stop(t, 20*time.Second); a = harness.StartAgent(t, f, setup) }},
			{"agent killed", func() { a.Kill(); a = harness.StartAgent(t, f, setup) }},
			{"edge stopped", func() { f.Stop(t); a.Forget(); f.Start(t) }},
			{"edge killed", func() { f.Kill(t); f.Start(t) }},
			{"both killed", func() { a.Kill(); f.Kill(t); f.Start(t); a = harness.StartAgent(t, f, setup) }},
		} {
			c.do()
			if now := publicPort(t, a.UpWithin(t, 60*time.Second), 22); now != port {
				t.Fatalf("%s: port %s became %s", c.name, port, now)
			}
			if out := program(t, "", append(server.ssh(port, "127.0.0.1"), "echo in")...); out != "in\n" {
				t.Errorf("%s: the command said %q", c.name, out)
			}
		}
	})
}

// TestGit clones from a device's git daemon.
func TestGit(t *testing.T) {
	onFaces(t, func(t *testing.T, k harness.Kind) {
		install(t, "git", "git")
		dir := t.TempDir()
		work, bare, clone := filepath.Join(dir, "work"), filepath.Join(dir, "served", "firmware.git"), filepath.Join(dir, "clone")
		git := func(args ...string) string {
			t.Helper()
			return program(t, "", append([]string{"git", "-c", "safe.directory=*", "-c", "user.name=T", "-c", "user.email=t@example.com", "-c", "init.defaultBranch=main"}, args...)...)
		}
		git("init", "-q", work)
		for i := range 3 {
			var text bytes.Buffer
			if _, err := io.Copy(&text, harness.NewPattern(int64(1+i)<<20)); err != nil { // does not compress
				t.Fatal(err)
			}
			writeFile(t, filepath.Join(work, "image"), text.String())
			git("-C", work, "add", "image")
			git("-C", work, "commit", "-q", "-m", fmt.Sprintf("image %d", i+1))
		}
		git("clone", "-q", "--bare", work, bare)
		port := harness.FreePort(t, 1)
		addr, _ := serve(t, port, "git", "daemon", "--reuseaddr", "--export-all", "--base-path="+filepath.Dir(bare), "--listen=127.0.0.1", "--port="+strconv.Itoa(port))
		f := harness.Own(t, k, harness.Setup{TCPPorts: 2})
		a := harness.StartAgent(t, f, harness.AgentSetup{Forwards: []string{"9418=" + addr}})
		git("clone", "-q", fmt.Sprintf("git://127.0.0.1:%s/firmware.git", publicPort(t, a.Up(t), 9418)), clone)
		git("-C", clone, "fsck", "--full", "--strict")
		if served, cloned := git("-C", work, "rev-parse", "HEAD"), git("-C", clone, "rev-parse", "HEAD"); served != cloned {
			t.Errorf("served %s, cloned %s", served, cloned)
		}
	})
}

// TestMQTT publishes and subscribes at a device's broker.
func TestMQTT(t *testing.T) {
	onFaces(t, func(t *testing.T, k harness.Kind) {
		install(t, "mosquitto mosquitto-clients", "mosquitto", "mosquitto_pub", "mosquitto_sub")
		port := harness.FreePort(t, 1)
		config := fmt.Sprintf("listener %d 127.0.0.1\nallow_anonymous true\npersistence false\nlog_dest stderr\nlog_type subscribe\n", port)
		if me, err := user.Current(); err == nil && me.Uid == "0" {
			config += "user root\n" // else it becomes another, who cannot read its files
		}
		addr, broker := serve(t, port, "mosquitto", "-c", writeFile(t, filepath.Join(t.TempDir(), "mosquitto.conf"), config))
		f := harness.Own(t, k, harness.Setup{TCPPorts: 2})
		a := harness.StartAgent(t, f, harness.AgentSetup{Forwards: []string{"1883=" + addr}})
		public := publicPort(t, a.Up(t), 1883)
		client := func(name string, more ...string) []string {
			return append([]string{name, "-h", "127.0.0.1", "-p", public, "-V", "mqttv5", "-t", "site/7/temperature", "-q", "1"}, more...)
		}
		const n = 200
		sub := harness.Run(t, harness.Command{Name: "mosquitto_sub", Args: client("mosquitto_sub", "-C", strconv.Itoa(n))})
		broker.WaitStderr(t, 0, harness.UpTime, "site/7/temperature")
		var lines strings.Builder
		for i := range n {
			fmt.Fprintf(&lines, "reading %d\n", i)
		}
		program(t, lines.String(), client("mosquitto_pub", "-l")...)
		if status := sub.Wait(t, time.Minute); status != 0 {
			t.Errorf("mosquitto_sub ended with %d", status)
		}
		next := 0
		for _, line := range sub.Stdout.Since(0) {
			if line == fmt.Sprintf("reading %d", next) {
				next++
			}
		}
		if next != n {
			t.Errorf("%d of %d readings came in order", next, n)
		}
		image := writeFile(t, filepath.Join(t.TempDir(), "image"), strings.Repeat("pixels", 200_000))
		program(t, "", client("mosquitto_pub", "-r", "-f", image)...)
		if got := program(t, "", client("mosquitto_sub", "-C", "1", "-N")...); len(got) != 1_200_000 {
			t.Errorf("%d bytes of a retained message of 1200000", len(got))
		}
	})
}

// TestRedis talks to a device's Redis.
func TestRedis(t *testing.T) {
	onFaces(t, func(t *testing.T, k harness.Kind) {
		install(t, "redis-server", "redis-server", "redis-cli")
		port := harness.FreePort(t, 1)
		addr, _ := serve(t, port, "redis-server", "--port", strconv.Itoa(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", t.TempDir())
		f := harness.Own(t, k, harness.Setup{TCPPorts: 2})
		a := harness.StartAgent(t, f, harness.AgentSetup{Forwards: []string{"6379=" + addr}})
		public := publicPort(t, a.Up(t), 6379)
		redis := func(stdin string, more ...string) string {
			t.Helper()
			return strings.TrimSpace(program(t, stdin, append([]string{"redis-cli", "-h", "127.0.0.1", "-p", public}, more...)...))
		}
		if got := redis("", "PING"); got != "PONG" {
			t.Errorf("PING: %q", got)
		}
		value := strings.Repeat("v", 4<<20)
		if got := redis(value, "-x", "SET", "large"); got != "OK" {
			t.Errorf("SET: %q", got)
		}
		if got := redis("", "GET", "large"); got != value {
			t.Errorf("GET: %d of %d bytes", len(got), len(value))
		}
		const n = 20_000
		var pipe strings.Builder
		for i := range n {
			fmt.Fprintf(&pipe, "SET key:%d value:%d\r\n", i, i)
		}
		if got := redis(pipe.String(), "--pipe"); !strings.Contains(got, fmt.Sprintf("errors: 0, replies: %d", n)) {
			t.Errorf("--pipe: %q", got)
		}
		if got := redis("", "DBSIZE"); got != strconv.Itoa(n+1) {
			t.Errorf("DBSIZE: %q", got)
		}
	})
}

// TestHalfClose has clients that end their direction and read an answer after.
func TestHalfClose(t *testing.T) {
	onFaces(t, func(t *testing.T, k harness.Kind) {
		f := harness.Own(t, k, harness.Setup{TCPPorts: 4})
		heard := make(chan string, 1)
		a := harness.StartAgent(t, f, harness.AgentSetup{Forwards: []string{
			"5000=" + harness.ServeTCP(t, harness.AnswerAfterEnd),
			"5001=" + harness.ServeTCP(t, func(c *net.TCPConn) { // ends first, then reads
				c.CloseWrite()
				n, sum, _ := harness.Sum(c)
				heard <- fmt.Sprint(n, sum)
			}),
		}})
		up := a.Up(t)
		halfClose(t, "127.0.0.1:"+publicPort(t, up, 5000), 8<<20)

		c := dialTCP(t, "127.0.0.1:"+publicPort(t, up, 5001))
		if n, err := io.Copy(io.Discard, c); n != 0 || err != nil {
			t.Fatalf("the service ended at once, the visitor read %d bytes: %v", n, err)
		}
		const n = 1 << 20
		if _, err := io.Copy(c, harness.NewPattern(n)); err != nil {
			t.Fatalf("after the service's end: %v", err)
		}
		c.Close()
		select {
		case got := <-heard:
			if got != fmt.Sprint(n, harness.PatternSum(n)) {
				t.Errorf("the service read %s", got)
			}
		case <-time.After(harness.VisitorTimeout):
			t.Error("the service did not read the end")
		}
	})
}

// TestProxyProtocol has a service that is told who visits, by the PROXY protocol's
// second version, ahead of the first byte.
func TestProxyProtocol(t *testing.T) {
	onFaces(t, func(t *testing.T, k harness.Kind) {
		f := harness.Own(t, k, harness.Setup{TCPPorts: 2})
		a := harness.StartAgent(t, f, harness.AgentSetup{Forwards: []string{
			"22=" + harness.ServeTCP(t, func(c *net.TCPConn) {
				from, err := readProxyHeader(c)
				if err != nil {
					fmt.Fprintf(c, "%v\n", err)
					return
				}
				fmt.Fprintf(c, "%v\n", from)
				harness.Echo(c)
			}) + ",proxy_protocol=v2",
		}})
		public := publicPort(t, a.Up(t), 22)
		for _, from := range []string{"127.0.0.1", "127.0.0.9"} {
			c := dialFrom(t, from, "127.0.0.1:"+public)
			want := c.LocalAddr().String() + "\n"
			got := make([]byte, len(want))
			if _, err := io.ReadFull(c, got); err != nil || string(got) != want {
				t.Errorf("the service saw %q, it was %q: %v", got, want, err)
			}
			if err := ping(c, "what follows is the visitor's alone"); err != nil {
				t.Error(err)
			}
		}
	})
}

// readProxyHeader reads a PROXY header of version 2 for TCP over IPv4, byte by byte
// as its text says.
func readProxyHeader(r io.Reader) (netip.AddrPort, error) {
	var none netip.AddrPort
	head := make([]byte, 16)
	if _, err := io.ReadFull(r, head); err != nil {
		return none, err
	}
	if string(head[:12]) != "\r\n\r\n\x00\r\nQUIT\n" || head[12] != 0x21 || head[13] != 0x11 {
		return none, fmt.Errorf("header % x", head)
	}
	body := make([]byte, binary.BigEndian.Uint16(head[14:]))
	if _, err := io.ReadFull(r, body); err != nil || len(body) < 12 {
		return none, fmt.Errorf("addresses % x: %v", body, err)
	}
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte(body)), binary.BigEndian.Uint16(body[8:])), nil
}

// dialFrom is dialTCP from an address of loopback.
func dialFrom(t *testing.T, from, addr string) *net.TCPConn {
	t.Helper()
	d := net.Dialer{Timeout: 10 * time.Second, LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	c, err := d.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(harness.VisitorTimeout))
	return c.(*net.TCPConn)
}

// TestWhoMayConnect has a public port for some addresses, and for few connections
// of each: others are refused, soon and without the device hearing of them, and
// nobody else is in their way.
func TestWhoMayConnect(t *testing.T) {
	onFaces(t, func(t *testing.T, k harness.Kind) {
		f := harness.Own(t, k, harness.Setup{TCPPorts: 2, TCPAllow: "127.0.0.8/29", Limits: []string{"streams_per_address 3"}})
		var served atomic.Int64
		a := harness.StartAgent(t, f, harness.AgentSetup{Forwards: []string{
			"22=" + harness.ServeTCP(t, func(c *net.TCPConn) { served.Add(1); harness.Echo(c) }),
		}})
		addr := "127.0.0.1:" + publicPort(t, a.Up(t), 22)
		refused := func(from string) {
			t.Helper()
			d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
			c, err := d.Dial("tcp", addr)
			if err == nil { // a reset may come as early
				c.SetDeadline(time.Now().Add(5 * time.Second))
				err = ping(c, "let me in")
				c.Close()
			}
			var timeout net.Error
			if err == nil || errors.As(err, &timeout) && timeout.Timeout() {
				t.Errorf("from %s: %v, want the connection closed", from, err)
			}
		}
		for _, from := range []string{"127.0.0.1", "127.0.0.7", "127.0.0.16"} {
			refused(from)
		}
		if n := served.Load(); n != 0 {
			t.Errorf("the device served %d of them", n)
		}
		for _, from := range []string{"127.0.0.8", "127.0.0.15"} { // each has room of its own
			for range 3 {
				if err := ping(dialFrom(t, from, addr), "hello"); err != nil {
					t.Errorf("from %s: %v", from, err)
				}
			}
			refused(from)
		}
		if n := served.Load(); n != 6 {
			t.Errorf("the device served %d, want 6", n)
		}
	})
}
