package device

import (
	"bufio"
	"context"
	"io"
	"net"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
)

// serveLines returns the address of a line server that ends with the test.
func serveLines(t *testing.T, d *Device) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := d.ServeLines(ctx, l); err != nil {
			t.Errorf("ServeLines: %v", err)
		}
	})
	t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
	return l.Addr().String()
}

func dialLines(t *testing.T, addr string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return conn
}

func TestLines(t *testing.T) {
	conn := dialLines(t, serveLines(t, start(t)))
	in := bufio.NewReader(conn)
	for _, c := range []struct{ send, want string }{
		{"READ\n", `^-?\d+\.\d\d C\n$`},
		{"read\r\n", `^-?\d+\.\d\d C\n$`},
		{"NAME\n", `^Cold room, north door\n$`},
		{"DOOR\n", `^(OPEN|CLOSED)\n$`},
		{"ALARM\n", `^(ON|OFF) above 8\.00 C\n$`},
		{"UNIT\n", `^C\n$`},
		{"UNIT f\n", `^F\n$`},
		{"READ\n", `^-?\d+\.\d\d F\n$`},
		{"ALARM\n", `above 46\.40 F\n$`},
		{"UNIT K\n", `^ERR `},
		{"ECHO  two  words \n", `^two  words\n$`},
		{"\n\nNOPE\n", `^ERR unknown command`}, // empty lines are passed over
		{"QUIT\n", `^BYE\n$`},
	} {
		if _, err := io.WriteString(conn, c.send); err != nil {
			t.Fatal(err)
		}
		got, err := in.ReadString('\n')
		if err != nil || !regexp.MustCompile(c.want).MatchString(got) {
			t.Errorf("%q: %q, %v, want %s", c.send, got, err, c.want)
		}
	}
	if rest, err := io.ReadAll(in); err != nil || len(rest) > 0 {
		t.Errorf("after QUIT: %q, %v", rest, err)
	}
}

// TestLinesHalfClose: a client that has said all it wants to say still gets its
// answers, the last line without its end, too.
func TestLinesHalfClose(t *testing.T) {
	conn := dialLines(t, serveLines(t, start(t)))
	if _, err := io.WriteString(conn, "ECHO a\nECHO b"); err != nil {
		t.Fatal(err)
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(conn); err != nil || string(got) != "a\nb\n" {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestLinesTooLong(t *testing.T) {
	addr := serveLines(t, start(t))
	for _, c := range []struct {
		n    int // bytes before the line's end
		want string
	}{{lineMax - 6, "x\n"}, {lineMax, "ERR line too long\n"}, {lineMax + 1, "ERR line too long\n"}} {
		conn := dialLines(t, addr)
		if _, err := io.WriteString(conn, "ECHO "+strings.Repeat("x", c.n-5)+"\n"); err != nil {
			t.Fatal(err)
		}
		if got, err := bufio.NewReader(conn).ReadString('\n'); err != nil || !strings.HasSuffix(got, c.want) {
			t.Errorf("line of %d bytes: %q, %v, want …%q", c.n, got, err, c.want)
		}
	}
}

// TestLinesBound: one connection more than there is room for is closed, and room
// is made by one that leaves.
func TestLinesBound(t *testing.T) {
	addr := serveLines(t, start(t))
	var conns []net.Conn
	for range linesMax {
		conn := dialLines(t, addr)
		if _, err := io.WriteString(conn, "ECHO in\n"); err != nil {
			t.Fatal(err)
		}
		if got, err := bufio.NewReader(conn).ReadString('\n'); err != nil || got != "in\n" {
			t.Fatalf("connection %d: %q, %v", len(conns), got, err)
		}
		conns = append(conns, conn)
	}
	if _, err := dialLines(t, addr).Read(make([]byte, 1)); err == nil {
		t.Error("one too many was answered")
	}
	conns[0].Close()
	for {
		conn := dialLines(t, addr)
		_, _ = io.WriteString(conn, "ECHO in\n") // may be closed already
		if got, _ := bufio.NewReader(conn).ReadString('\n'); got == "in\n" {
			return
		}
		conn.Close() // the one that left is seen leaving soon
	}
}
