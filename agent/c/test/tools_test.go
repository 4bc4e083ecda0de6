package c_test

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

var sanitizers = []string{"-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"}

// TestAnalyzers has both compilers look for what can go wrong on any path.
func TestAnalyzers(t *testing.T) {
	for _, c := range []struct {
		file  string
		flags []string
	}{
		{"iott.c", nil}, {"iott_posix.c", nil}, {"iott_bridge.c", nil}, {"iott_mbedtls.c", nil}, {"lite/main.c", nil},
		{"iott_lwip.c", []string{"-I/usr/include/lwip"}},
	} {
		t.Run(c.file, func(t *testing.T) {
			t.Parallel()
			flags := append([]string{"-std=gnu99", "../" + c.file, "-o", os.DevNull}, c.flags...)
			build(t, "gcc", append(flags, "-O2", "-Wall", "-Wextra", "-Wshadow", "-fanalyzer", "-Werror", "-c")...)
			if _, err := exec.LookPath("clang"); err != nil {
				t.Fatalf("%v: install clang", err)
			}
			build(t, "clang", append(flags, "--analyze", "-Xclang", "-analyzer-werror")...)
		})
	}
}

// valgrind is how a program is run under it.
func valgrind(t *testing.T, program string) []string {
	t.Helper()
	if _, err := exec.LookPath("valgrind"); err != nil {
		t.Fatalf("%v: install valgrind", err)
	}
	return []string{"valgrind", "-q", "--error-exitcode=99", "--leak-check=full", program}
}

// TestValgrind has the sessions of the document leave no byte unset that counts, which the
// sanitizers do not see.
func TestValgrind(t *testing.T) {
	binary := filepath.Join(t.TempDir(), "puppet")
	build(t, "cc", "-std=c99", "-g", "-O1", "-o", binary, "../puppet/puppet.c", "../iott.c", "../iott_bridge.c")
	command := valgrind(t, binary)
	t.Run("basic", func(t *testing.T) { transcriptBasic(t, command...) })
	t.Run("inline", func(t *testing.T) { transcriptInline(t, command...) })
}

// TestLite runs the whole program over TLS between an edge and a service, under valgrind and
// under the sanitizers.
func TestLite(t *testing.T) {
	sources := []string{"../lite/main.c", "../iott.c", "../iott_posix.c", "../iott_bridge.c", "../iott_mbedtls.c", "-lmbedtls", "-lmbedx509", "-lmbedcrypto"}
	for name, flags := range map[string][]string{"valgrind": {"-g", "-O1"}, "sanitizers": sanitizers} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			binary := filepath.Join(dir, "lite")
			build(t, "cc", append(append([]string{"-std=c99", "-o", binary}, sources...), flags...)...)
			command := []string{binary}
			if name == "valgrind" {
				command = valgrind(t, binary)
			}
			config, ca := chain(t, dir)
			ln, err := tls.Listen("tcp", "127.0.0.1:0", config)
			if err != nil {
				t.Fatal(err)
			}
			service := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Connection", "close")
				io.WriteString(w, "21.5 degrees Celsius\n")
			}))
			defer service.Close()
			visits(t, ln, append(command, "--server", "wss://"+ln.Addr().String(), "--device", "cam-17", "--ca", ca, "--profile", "inline",
				"--buffer", "1024", "--streams", "2", "--forward", "80="+strings.TrimPrefix(service.URL, "http://")))
		})
	}
}

// TestSizes measures the code on a Cortex-M4 and the RAM, by any compiler for ARM, and wants
// README.md to say so: compilers of the same version differ by a few bytes.
func TestSizes(t *testing.T) {
	out, err := exec.Command("../sizes").CombinedOutput()
	if err != nil {
		t.Fatalf("sizes: %v\n%s", err, out)
	}
	readme, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(strings.TrimSpace(string(out)), "\n") {
		words := strings.Fields(strings.TrimSuffix(line, " bytes"))
		name := strings.Join(words[:len(words)-1], " ")
		n, err := strconv.Atoi(words[len(words)-1])
		_, rest, found := strings.Cut(string(readme), "\n| "+name+" | ")
		var said int
		fmt.Sscan(rest, &said)
		if err != nil || !found || n < said-said/100 || n > said+said/100 {
			t.Errorf("%s: README.md says %d: make sizes", line, said)
		}
	}
}

// TestAddresses has the port to POSIX try the addresses of a name one after the other.
func TestAddresses(t *testing.T) {
	binary := filepath.Join(t.TempDir(), "posix")
	build(t, "cc", append([]string{"-std=c99", "-D_POSIX_C_SOURCE=200809L", "-Wall", "-Wextra", "-Werror", "-o", binary,
		"../examples/posix.c", "../puppet/names.c", "../iott.c", "../iott_posix.c", "-Wl,--wrap=getaddrinfo"}, sanitizers...)...)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	visits(t, ln, []string{binary, fmt.Sprintf("ws://localhost:%d", ln.Addr().(*net.TCPAddr).Port), "cam-17", "token"})
}

// visits plays the edge to a program: two tunnels, the first of which breaks, each with two
// visitors. Then the program is told to end. It returns what the program has printed.
func visits(t *testing.T, ln net.Listener, command []string) string {
	t.Helper()
	defer ln.Close()
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Env = append(os.Environ(), "IOTTUNNEL_TOKEN=cam-17-token")
	var out, said strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stuck := time.AfterFunc(2*time.Minute, func() {
		cmd.Process.Kill()
		ln.Close()
	})
	defer stuck.Stop()
	err := func() error {
		for attempt := range 2 {
			conn, err := ln.Accept()
			if err != nil {
				return err
			}
			defer conn.Close()
			if err := serveTwo(conn); err != nil {
				return fmt.Errorf("tunnel %d: %w", attempt+1, err)
			}
			if attempt == 0 {
				conn.Close()
			}
		}
		return cmd.Process.Signal(syscall.SIGTERM)
	}()
	if err != nil {
		cmd.Process.Kill()
	}
	if ended := cmd.Wait(); err != nil || ended != nil && ended.Error() != "signal: terminated" {
		t.Fatalf("%v, %v\n%s", err, ended, said.String())
	}
	return out.String()
}
