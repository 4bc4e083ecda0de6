package socket

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/iottunnel/iottunnel/internal/ends"
)

// passing are the ends of two connections: what is written to in comes from, and may
// be passed to the socket out; what is passed to dst, read from far.
func passing(t *testing.T) (in net.Conn, from *net.TCPConn, client, server *Socket, dst *net.TCPConn, far net.Conn) {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("passes on Linux alone")
	}
	in, b := ends.Conns(t, "tcp")
	c, s := ends.Conns(t, "tcp")
	d, far := ends.Conns(t, "tcp")
	return in, b.(*net.TCPConn), on(c, true), on(s, false), d.(*net.TCPConn), far
}

// await returns when n bytes wait on c.
func await(t *testing.T, c *net.TCPConn, n int) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Read(func(fd uintptr) bool { return Waiting(fd) >= n }); err != nil {
		t.Fatal(err)
	}
}

// What is passed in and out again are the same bytes, in messages of at most the
// length asked for, and other frames between them are none of it.
func TestPass(t *testing.T) {
	in, from, client, server, dst, far := passing(t)
	want := make([]byte, 100_000)
	for i := range want {
		want[i] = byte(rand.Uint32())
	}
	for _, most := range []int{len(want), 70_000, 65_536, 65_535, 126, 125, 99_999} {
		go in.Write(want)
		await(t, from, len(want))
		sent := make(chan error, 1)
		go func() {
			n, err := server.PassFrom(from, len(want), most)
			if err == nil && n != len(want) {
				err = io.ErrShortWrite
			}
			if err == nil {
				_, err = server.Ping()
			}
			if err == nil {
				err = server.WriteMessage(Binary, nil)
			}
			sent <- err
		}()
		got := make(chan []byte, 1)
		go func() {
			b := make([]byte, len(want))
			io.ReadFull(far, b)
			got <- b
		}()
		passes, total := 0, 0
		for total < len(want) {
			if _, err := client.Next(); err != nil {
				t.Fatal(err)
			}
			for {
				err := client.More()
				if err == io.EOF {
					break
				} else if err != nil {
					t.Fatal(err)
				}
				n, passed, err := client.PassTo(dst, 1000, 50_000)
				if err != nil || n > 50_000 {
					t.Fatal(n, err)
				}
				if passed {
					passes++
				} else { // too little, or here already
					b := make([]byte, 3000)
					n, err = client.Read(b)
					if err != nil {
						t.Fatal(err)
					}
					dst.Write(b[:n])
				}
				total += n
			}
		}
		if b := <-got; !bytes.Equal(b, want) {
			t.Errorf("messages of %d bytes: other bytes come out", most)
		}
		if most > 1000 && passes == 0 {
			t.Errorf("messages of %d bytes: nothing was passed", most)
		}
		if err := <-sent; err != nil {
			t.Error(err)
		}
		if _, b, err := client.ReadMessage(10); len(b) > 0 || err != nil {
			t.Errorf("then %q, %v", b, err)
		}
	}
}

// A client's payload must be masked, and what comes masked is not passed either.
func TestPassesNothingMasked(t *testing.T) {
	_, _, client, server, dst, _ := passing(t)
	if client.PassesOut() || !server.PassesOut() {
		t.Error("a client's payload is masked, a server's is not")
	}
	go client.WriteMessage(Binary, make([]byte, 10_000))
	if _, err := server.Next(); err != nil {
		t.Fatal(err)
	}
	if n, passed, err := server.PassTo(dst, 1, 100_000); n != 0 || passed || err != nil {
		t.Error(n, passed, err)
	}
}

// A peer that reads nothing lets PassFrom wait; Close ends that, and the other side
// sees no whole message.
func TestPassFromEnds(t *testing.T) {
	in, from, client, server, _, _ := passing(t)
	server.conn.(*net.TCPConn).SetWriteBuffer(4 << 10)
	client.conn.(*net.TCPConn).SetReadBuffer(4 << 10)
	from.SetReadBuffer(1 << 20)
	const size = 200_000
	go in.Write(make([]byte, size))
	await(t, from, size)
	server.SetWriteDeadline(time.Now().Add(50 * time.Millisecond))
	for {
		n, err := server.PassFrom(from, size, size)
		if err == nil { // the system has taken it all the same
			go in.Write(make([]byte, size))
			await(t, from, size)
			continue
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) || n >= size {
			t.Errorf("%d, %v", n, err)
		}
		break
	}
	if err := server.WriteMessage(Binary, []byte("x")); err == nil {
		t.Error("a socket goes on in the midst of a message")
	}
	server.Close()
}

// The end of the connection inside a message is told by the next read.
func TestPassToCutOff(t *testing.T) {
	_, _, client, server, dst, far := passing(t)
	go io.Copy(io.Discard, far)
	server.conn.Write([]byte{0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0}) // 65,536 bytes
	server.conn.Write(make([]byte, 5000))
	if _, err := client.Next(); err != nil {
		t.Fatal(err)
	}
	server.conn.Close()
	var total int
	for {
		n, passed, err := client.PassTo(dst, 1, 100_000)
		total += n
		if err != nil {
			t.Fatal(err)
		}
		if !passed {
			b := make([]byte, 10_000)
			n, err := client.Read(b)
			if total += n; err == nil {
				continue
			}
			var closed *CloseError
			if !errors.As(err, &closed) || closed.Code != CloseAbnormal || total != 5000 {
				t.Errorf("after %d bytes: %v", total, err)
			}
			return
		}
	}
}

// dst that has gone is an error, and not the socket's.
func TestPassToNobody(t *testing.T) {
	_, _, client, server, dst, _ := passing(t)
	server.conn.Write([]byte{0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0})
	if _, err := client.Next(); err != nil {
		t.Fatal(err)
	}
	dst.CloseWrite()
	go server.conn.Write(make([]byte, 65536))
	if _, passed, err := client.PassTo(dst, 1, 100_000); err == nil || !passed {
		t.Errorf("passed %v: %v", passed, err)
	}
}
