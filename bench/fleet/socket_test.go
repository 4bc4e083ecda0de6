//go:build linux

package fleet

import (
	"bytes"
	"net"
	"strings"
	"testing"
	"testing/iotest"
)

// stubConn reads what an edge would send, and keeps what is written.
type stubConn struct {
	net.Conn
	in  interface{ Read([]byte) (int, error) }
	out bytes.Buffer
}

func (c *stubConn) Read(p []byte) (int, error)  { return c.in.Read(p) }
func (c *stubConn) Write(p []byte) (int, error) { return c.out.Write(p) }

func TestSocket(t *testing.T) {
	long := strings.Repeat("l", 300)
	sent := "HTTP/1.1 101 Switching Protocols\r\n\r\n" + "\x89\x02hi" + "\x81\x7e\x01\x2c" + long + "\x82\x00"
	for name, in := range map[string]interface{ Read([]byte) (int, error) }{
		"at once":      strings.NewReader(sent),
		"byte by byte": iotest.OneByteReader(strings.NewReader(sent)),
	} {
		s := &socket{conn: &stubConn{in: in}}
		if err := s.upgrade("/", "host", "token"); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for _, want := range []struct {
			op      byte
			payload string
		}{{opPing, "hi"}, {opText, long}, {opBinary, ""}} {
			op, payload, err := s.read()
			if err != nil || op != want.op || string(payload) != want.payload {
				t.Errorf("%s: %d %q %v, want %v", name, op, payload, err, want)
			}
		}
		if _, _, err := s.read(); err == nil {
			t.Errorf("%s: no error at the end", name)
		}
	}
}

func TestSocketWrites(t *testing.T) {
	c := &stubConn{}
	s := &socket{conn: c}
	if err := s.write(opPong, []byte("hello")); err != nil {
		t.Fatal(err)
	}
	got := c.out.Bytes()
	if len(got) != 2+4+5 || got[0] != 0x80|opPong || got[1] != 0x80|5 {
		t.Fatalf("% x", got)
	}
	for i := range 5 {
		got[6+i] ^= got[2+i%4]
	}
	if string(got[6:]) != "hello" {
		t.Errorf("%q", got[6:])
	}
}

func TestRefused(t *testing.T) {
	s := &socket{conn: &stubConn{in: strings.NewReader("HTTP/1.1 503 Service Unavailable\r\nretry-after: 7\r\n\r\n{}")}}
	err, ok := s.upgrade("/", "host", "token").(*statusError)
	if !ok || err.status != 503 || err.after.Seconds() != 7 {
		t.Errorf("%+v", err)
	}
}
