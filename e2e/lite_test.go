package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/iottunnel/iottunnel/e2e/harness"
)

// lite builds the agent in C, with the sanitizers where it runs on this processor.
func lite(t *testing.T, compiler string, flags ...string) string {
	t.Helper()
	return liteIn(t, t.TempDir(), compiler, flags...)
}

func liteIn(t *testing.T, dir, compiler string, flags ...string) string {
	t.Helper()
	binary := filepath.Join(dir, "iottunnel-agent-lite")
	args := append([]string{compiler, "-std=c99", "-g", "-O1", "-Wall", "-Wextra", "-Werror", "-o", binary,
		"lite/main.c", "iott.c", "iott_posix.c", "iott_bridge.c"}, flags...)
	status, out, errs := harness.RunToEnd(t, 10*time.Minute, harness.Command{Name: compiler, Args: args, Dir: "../agent/c"})
	if status != 0 {
		t.Fatalf("%q: %d\n%s%s", args, status, out, errs)
	}
	return binary
}

// oneSanitized is what sanitized has built, for all cases of a run.
var oneSanitized struct {
	mu   sync.Mutex
	path string // guarded by mu
}

// sanitized builds it for this processor, with TLS.
func sanitized(t *testing.T) string {
	t.Helper()
	oneSanitized.mu.Lock()
	defer oneSanitized.mu.Unlock()
	if oneSanitized.path == "" {
		oneSanitized.path = liteIn(t, harness.SharedDir(t), "cc", "iott_mbedtls.c", "-lmbedtls", "-lmbedx509", "-lmbedcrypto",
			"-fsanitize=address,undefined", "-fno-sanitize-recover=all")
	}
	return oneSanitized.path
}

// TestLite serves pages, sockets and bulk through the agent in C, in both of its
// profiles.
func TestLite(t *testing.T) {
	onFaces(t, func(t *testing.T, k harness.Kind) {
		binary := sanitized(t)
		for _, profile := range []string{"basic", "inline"} {
			t.Run(profile, func(t *testing.T) {
				f := harness.Shared(t, k)
				o := harness.StartOrigin(t)
				a := harness.StartAgent(t, f, harness.AgentSetup{
					Forwards: []string{"80=" + o.Addr}, Command: []string{binary}, Flags: []string{"--profile", profile, "--streams", "16"},
				})
				s := &site{face: f, origin: o, agent: a, host: a.Up(t).Hostname(t, 80), client: harness.Visitor(t, f, false)}
				throughSmall(t, s)
			})
		}
	})
}

// TestLiteProcessors does the same for other processors, big-endian ones among
// them, under emulation.
func TestLiteProcessors(t *testing.T) {
	for _, c := range []struct{ compiler, emulator string }{
		{"arm-linux-gnueabihf-gcc", "qemu-arm-static"},
		{"mips-linux-gnu-gcc", "qemu-mips-static"},
		{"mipsel-linux-gnu-gcc", "qemu-mipsel-static"},
	} {
		t.Run(c.emulator, func(t *testing.T) {
			t.Parallel()
			emulator, err := exec.LookPath(c.emulator)
			if err != nil {
				t.Fatalf("%v: install qemu-user-static", err)
			}
			f := harness.Shared(t, harness.Kinds[slices.IndexFunc(harness.Kinds, func(k harness.Kind) bool { return k.Name() == "plain" })])
			o := harness.StartOrigin(t)
			a := harness.StartAgent(t, f, harness.AgentSetup{
				Servers:  []string{strings.Replace(f.Servers()[0], "localhost", "127.0.0.1", 1)}, // a static program looks no names up
				Forwards: []string{"80=" + o.Addr}, Flags: []string{"--profile", "inline", "--streams", "16"},
				Command: []string{emulator, lite(t, c.compiler, "-static", "-DIOTT_WITHOUT_TLS", "-Wl,--no-warnings")},
			})
			s := &site{face: f, origin: o, agent: a, host: a.UpWithin(t, time.Minute).Hostname(t, 80), client: harness.Visitor(t, f, false)}
			throughSmall(t, s)
		})
	}
}

// throughSmall is what visitors do to a small device.
func throughSmall(t *testing.T, s *site) {
	t.Helper()
	s.mustServe(t)
	const n = 1 << 20
	if r := s.get(t, fmt.Sprintf("/bytes?n=%d", n)); len(r.body) != n {
		t.Errorf("download: %d bytes", len(r.body))
	}
	req := request(t, "POST", s.url("/sum"), harness.NewPattern(n))
	req.ContentLength = n
	if r, err := try(s.client, req); err != nil {
		t.Error(err)
	} else if seen := echo(t, r); seen.Bytes != n || seen.SHA256 != harness.PatternSum(n) {
		t.Errorf("upload: %d of %d bytes", seen.Bytes, n)
	}
	if err := s.openFeed(t).want(5); err != nil {
		t.Error(err)
	}
	if err := echoes(s.openSocket(t), 2, "hello from a small device"); err != nil {
		t.Error(err)
	}
	if status := s.agent.Stop(t, 30*time.Second); status != 0 {
		t.Errorf("status %d after SIGTERM", status)
	}
}

// TestLiteHalves has many TCP connections at once send, half-close, and read to the
// end, and others that are reset: an end arrives as one, and a reset as one.
func TestLiteHalves(t *testing.T) {
	onFaces(t, func(t *testing.T, k harness.Kind) {
		f := harness.Own(t, k, harness.Setup{TCPPorts: 4})
		binary := sanitized(t)
		for _, profile := range []string{"basic", "inline"} {
			t.Run(profile, func(t *testing.T) {
				service, err := net.Listen("tcp", "127.0.0.1:0")
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { service.Close() })
				go func() {
					for {
						c, err := service.Accept()
						if err != nil {
							return
						}
						go func() {
							defer c.Close()
							var got [8]byte
							if _, err := io.ReadFull(c, got[:]); err != nil {
								return
							}
							if string(got[:]) == "reset me" {
								c.(*net.TCPConn).SetLinger(0)
								return
							}
							c.Write(got[:])
							io.Copy(c, c)
						}()
					}
				}()
				a := harness.StartAgent(t, f, harness.AgentSetup{
					Forwards: []string{"9000=" + service.Addr().String()}, Command: []string{binary},
					Flags: []string{"--profile", profile, "--streams", "12"},
				})
				addr := net.JoinHostPort("127.0.0.1", publicPort(t, a.Up(t), 9000))
				var all sync.WaitGroup
				for i := range 12 {
					all.Go(func() {
						c, err := net.Dial("tcp", addr)
						if err != nil {
							t.Error(err)
							return
						}
						defer c.Close()
						c.SetDeadline(time.Now().Add(harness.VisitorTimeout))
						if i%4 == 3 {
							io.WriteString(c, "reset me")
							if _, err := c.Read(make([]byte, 1)); err == nil || err == io.EOF && !lacks(k, "resets") {
								t.Errorf("the service has reset: %v", err)
							}
							return
						}
						n := int64(200_000 + i)
						go func() {
							io.Copy(c, io.LimitReader(harness.NewPattern(n), n))
							c.(*net.TCPConn).CloseWrite()
						}()
						got, sum, err := harness.Sum(c)
						if err != nil || got != n || sum != harness.PatternSum(n) {
							t.Errorf("echo: %d of %d bytes, %v", got, n, err)
						}
					})
				}
				all.Wait()
			})
		}
	})
}

// TestLiteComesBack kills the edge under it, and starts it again.
func TestLiteComesBack(t *testing.T) {
	onFaces(t, func(t *testing.T, k harness.Kind) {
		f := harness.Own(t, k, harness.Setup{})
		o := harness.StartOrigin(t)
		a := harness.StartAgent(t, f, harness.AgentSetup{Forwards: []string{"80=" + o.Addr}, Command: []string{sanitized(t)}, Flags: []string{"--max-backoff", "2"}})
		before := a.Up(t).Hostname(t, 80)
		f.Kill(t)
		f.Start(t)
		if now := a.Up(t).Hostname(t, 80); now != before {
			t.Errorf("hostname was %s and is %s", before, now)
		}
	})
}

// TestLiteRefused has it end with the status that says why.
func TestLiteRefused(t *testing.T) {
	onFaces(t, func(t *testing.T, k harness.Kind) {
		f := harness.Shared(t, k)
		d := f.NewDevice(t)
		d.Token = "wrong"
		status, _, errs := harness.AgentToEnd(t, f, harness.UpTime, harness.AgentSetup{
			Device: d, Forwards: []string{"80=127.0.0.1:1"}, Command: []string{sanitized(t)}, Flags: []string{"--once"},
		})
		if status != 3 || !strings.Contains(errs, "device or token is wrong") {
			t.Errorf("status %d\n%s", status, errs)
		}
	})
}

// TestLiteTimes has it take times with a unit and without, and refuse others by name.
func TestLiteTimes(t *testing.T) {
	t.Parallel()
	for value, refused := range map[string]bool{
		"30": false, "30s": false, "15m": false, "900s": false,
		"0s": true, "16m": true, "901": true, "30ms": true, "5h": true, "-1s": true, "": true, "m": true, "99999999999999999999m": true,
	} {
		// What comes next is missing, unless this is wrong.
		status, _, errs := harness.RunToEnd(t, time.Minute, harness.Command{Name: "lite", Args: []string{sanitized(t), "--heartbeat=" + value}})
		want := "--server, --device and --forward are needed"
		if refused {
			want = "--heartbeat: " + value + " is not a time from 1s to 900s, such as 30s or 5m"
		}
		if status != 2 || !strings.Contains(errs, want) {
			t.Errorf("%q: status %d, %s; want %q", value, status, errs, want)
		}
	}
}

// TestLiteRefuses has it name the option, where the library names its own setting.
func TestLiteRefuses(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ token, server, device, want string }{
		{"s3cret", "ws://192.0.2.1", "cam-17", "--server: ws:// sends the token in clear: use wss://, or give --allow-plaintext"},
		{"s3cret", "wss://192.0.2.1/x", "cam-17", "--server: wss://HOST or wss://HOST:PORT"},
		{"s3 cret", "wss://192.0.2.1", "cam-17", "IOTTUNNEL_TOKEN: visible ASCII only"},
		{"s3cret", "wss://192.0.2.1", "CAM", "--device: 1 to 63"},
	} {
		status, _, errs := harness.RunToEnd(t, time.Minute, harness.Command{
			Name: "lite", Env: []string{"IOTTUNNEL_TOKEN=" + test.token},
			Args: []string{sanitized(t), "--server", test.server, "--device", test.device, "--forward", "80=127.0.0.1:1", "--once"},
		})
		if status != 2 || !strings.Contains(errs, test.want) {
			t.Errorf("%v: status %d, %s", test, status, errs)
		}
	}
}

// TestLitePrograms runs the programs that answer by themselves: on POSIX sockets, and
// on lwIP behind a tap device in a network of its own.
func TestLitePrograms(t *testing.T) {
	face := func(t *testing.T) harness.Face {
		return harness.Shared(t, harness.Kinds[slices.IndexFunc(harness.Kinds, func(k harness.Kind) bool { return k.Name() == "plain" })])
	}
	t.Run("posix", func(t *testing.T) {
		f := face(t)
		binary := example(t, "posix", "-std=c99", "-D_POSIX_C_SOURCE=200809L", "iott_posix.c", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
		servesPage(t, f, f.Servers()[0], binary)
	})
	t.Run("lwip", func(t *testing.T) {
		if os.Geteuid() != 0 {
			t.Skip("a tap device wants root")
		}
		if _, err := os.Stat("/usr/include/lwip"); err != nil {
			t.Fatalf("%v: install liblwip-dev", err)
		}
		f := face(t)
		binary := example(t, "lwip", "-std=gnu99", "-I/usr/include/lwip", "iott_lwip.c", "-llwip", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")

		// The goroutine's thread has the network, and ends with it.
		runtime.LockOSThread()
		if err := syscall.Unshare(syscall.CLONE_NEWNET); err != nil {
			t.Fatal(err)
		}
		// Debian's build of lwIP writes beyond its buffers when a frame is longer than 592 bytes.
		for _, args := range []string{"link set lo up", "tuntap add tap0 mode tap", "link set tap0 mtu 576", "addr add 10.0.0.1/24 dev tap0", "link set tap0 up"} {
			if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
				t.Fatalf("ip %s: %v\n%s", args, err, out)
			}
		}
		edge, err := net.Listen("tcp", "10.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { edge.Close() })
		go func() { // the edge is in the network outside
			for {
				c, err := edge.Accept()
				if err != nil {
					return
				}
				go func() {
					defer c.Close()
					to, err := net.Dial("tcp", strings.TrimPrefix(f.Servers()[0], "ws://"))
					if err != nil {
						return
					}
					defer to.Close()
					go func() {
						io.Copy(to, c)
						to.Close()
					}()
					io.Copy(c, to)
				}()
			}
		}()
		t.Setenv("PRECONFIGURED_TAPIF", "tap0")
		servesPage(t, f, "ws://"+edge.Addr().String(), binary, "10.0.0.2", "255.255.255.0", "10.0.0.1")
	})
}

// example builds one of the examples.
func example(t *testing.T, name string, flags ...string) string {
	t.Helper()
	binary := filepath.Join(t.TempDir(), name)
	args := append([]string{"cc", "-g", "-O1", "-Wall", "-Wextra", "-Wshadow", "-Werror", "-o", binary, "examples/" + name + ".c", "iott.c"}, flags...)
	if status, out, errs := harness.RunToEnd(t, 10*time.Minute, harness.Command{Name: "cc", Args: args, Dir: "../agent/c"}); status != 0 {
		t.Fatalf("%q: %d\n%s%s", args, status, out, errs)
	}
	return binary
}

// servesPage starts a program and visits its page many times.
func servesPage(t *testing.T, f harness.Face, server, binary string, args ...string) {
	t.Helper()
	d := f.NewDevice(t)
	cmd := exec.Command(binary, append([]string{server, d.ID, d.Token}, args...)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait() // it was killed
	})
	stuck := time.AfterFunc(harness.UpTime, func() { cmd.Process.Kill() })
	line, err := bufio.NewReader(out).ReadString('\n')
	stuck.Stop()
	_, address, ok := strings.Cut(strings.TrimSpace(line), " ")
	if err != nil || !ok {
		t.Fatalf("the program said %q, %v", line, err)
	}
	client := harness.Visitor(t, f, false)
	for range 20 {
		r, err := client.Get(address)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(r.Body)
		r.Body.Close()
		if err != nil || r.StatusCode != 200 || string(body) != "21.5 degrees Celsius\n" {
			t.Fatalf("%d %q, %v", r.StatusCode, body, err)
		}
	}
}
