package socket

import (
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/iottunnel/iottunnel/internal/ends"
)

// covered is a connection that says what is below it.
type covered struct{ net.Conn }

func (w covered) NetConn() net.Conn { return w.Conn }

// The options reach the TCP connection, through TLS and other wrappers.
func TestTuneControl(t *testing.T) {
	for _, transport := range []string{"tcp", "tls", "wrapped"} {
		t.Run(transport, func(t *testing.T) {
			var conn net.Conn
			if transport == "tls" {
				conn, _ = ends.Conns(t, "tls")
				conn = covered{conn}
			} else {
				conn, _ = ends.Conns(t, "tcp")
			}
			if transport == "wrapped" {
				conn = covered{covered{conn}}
			}
			on(conn, true).TuneControl(12345 * time.Millisecond)
			for {
				below, ok := conn.(interface{ NetConn() net.Conn })
				if !ok {
					break
				}
				conn = below.NetConn()
			}
			raw, err := conn.(*net.TCPConn).SyscallConn()
			if err != nil {
				t.Fatal(err)
			}
			raw.Control(func(fd uintptr) {
				for option, want := range map[int]int{tcpUserTimeout: 12345, tcpNotsentLowat: unsentMost} {
					if got, err := syscall.GetsockoptInt(int(fd), syscall.IPPROTO_TCP, option); got != want || err != nil {
						t.Errorf("option %d: %d, %v; want %d", option, got, err, want)
					}
				}
				if on, err := syscall.GetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_KEEPALIVE); on != 0 || err != nil {
					t.Errorf("keep-alive: %d, %v", on, err)
				}
			})
		})
	}
	TuneControl(&script{}, time.Second) // nothing to tune
}

// What queues in the kernel behind a peer that reads nothing stays short.
func TestTuneControlShortensTheQueue(t *testing.T) {
	queued := func(tuned bool) (n int) {
		client, server := ends.Conns(t, "tcp")
		client.(*net.TCPConn).SetReadBuffer(16 << 10)
		server.(*net.TCPConn).SetWriteBuffer(1 << 20)
		if tuned {
			TuneControl(server, time.Minute)
		}
		server.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
		for buf := make([]byte, 1<<10); ; {
			k, err := server.Write(buf)
			n += k
			if err != nil {
				return n
			}
		}
	}
	long, short := queued(false), queued(true)
	t.Logf("%d bytes without, %d with", long, short)
	if short > long/2 {
		t.Errorf("%d bytes without, %d with", long, short)
	}
}
