package socket

import (
	"bytes"
	"crypto/tls"
	"io"
	"testing"
	"unsafe"

	"github.com/iottunnel/iottunnel/internal/ends"
)

// A trimmed connection has no buffer, and reads on: also what had come before.
func TestTrimTLS(t *testing.T) {
	if len(tlsBuffers) != 2 {
		t.Fatalf("crypto/tls is made otherwise: see what an idle connection keeps; found %v", tlsBuffers)
	}
	client, server := ends.Conns(t, "tls")
	c := server.(*tls.Conn)
	held := func() (n int) {
		for _, offset := range tlsBuffers {
			n += (*bytes.Buffer)(unsafe.Add(unsafe.Pointer(c), offset)).Cap()
		}
		return n
	}
	go func() {
		for range 3 {
			client.Write([]byte("some"))
			client.Write([]byte("thing"))
		}
	}()
	one, got := make([]byte, 1), []byte(nil)
	for range 27 { // inside a record as well as between two
		if _, err := io.ReadFull(c, one); err != nil {
			t.Fatal(err)
		}
		got = append(got, one...)
		trimTLS(c)
	}
	if string(got) != "somethingsomethingsomething" {
		t.Errorf("read %q", got)
	}
	if n := held(); n != 0 {
		t.Errorf("%d bytes are kept", n)
	}
	trimTLS(client.(*tls.Conn).NetConn()) // nothing to trim
}
