package main

import (
	"bufio"
	"io"
	"net"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// A listener that runs out of descriptors goes on when there are some again.
func TestConnectListensOutOfDescriptors(t *testing.T) {
	c := start(t, "connect", "cam-17:22", "--server", farEcho(t), "--listen", "127.0.0.1:0")
	c.Env = append(c.Env, "IOTTUNNEL_TOKEN=gr4nt")
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	log, err := c.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	addr, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	limit := func(n uint64) {
		t.Helper()
		if err := unix.Prlimit(c.Process.Pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: n, Max: 1024}, nil); err != nil {
			t.Fatal(err)
		}
	}
	limit(0) // what is open stays open
	conn, err := net.Dial("tcp", strings.TrimSpace(addr))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	lines := bufio.NewReader(log)
	if line, err := lines.ReadString('\n'); err != nil || !strings.Contains(line, "connection not taken") {
		t.Fatalf("%q, %v", line, err)
	}
	limit(1024)
	go io.Copy(io.Discard, lines)
	io.WriteString(conn, "hello")
	conn.(*net.TCPConn).CloseWrite()
	if b, err := io.ReadAll(conn); string(b) != "hello" || err != nil {
		t.Errorf("%q, %v", b, err)
	}
	c.Process.Signal(os.Interrupt)
	if err := c.Wait(); err != nil {
		t.Error(err)
	}
}
