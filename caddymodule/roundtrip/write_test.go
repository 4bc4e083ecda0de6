package roundtrip

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"testing"
	"time"
)

// TestRequestNotTaken has a device answer once and then read nothing: neither the
// visitor's leaving nor the timeout wait for it.
func TestRequestNotTaken(t *testing.T) {
	for _, kept := range []bool{true, false} {
		for name, want := range map[string]error{"left": context.Canceled, "timeout": os.ErrDeadlineExceeded} {
			t.Run(name, func(t *testing.T) {
				pool := NewPool(1)
				defer pool.Close()
				near, far := net.Pipe()
				defer near.Close()
				defer far.Close()
				call := Call{Dialer: dialTo{near}, Timeout: testWait}
				if kept {
					go func() { // ends with far
						readRequest(bufio.NewReader(far))
						io.WriteString(far, ok("x"))
					}()
					res, err := pool.RoundTrip(request(t, "GET", nil), call)
					if err != nil {
						t.Fatal(err)
					}
					io.ReadAll(res.Body)
					res.Body.Close()
					if pool.kept() != 1 {
						t.Fatal("it is not kept")
					}
				}
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				if name == "timeout" {
					call.Timeout = 10 * time.Millisecond
				} else {
					time.AfterFunc(10*time.Millisecond, cancel)
				}
				done := make(chan error, 1)
				go func() {
					_, err := pool.RoundTrip(request(t, "GET", nil).WithContext(ctx), call)
					done <- err
				}()
				select {
				case err := <-done:
					if !errors.Is(err, want) {
						t.Error(err)
					}
				case <-time.After(testWait):
					t.Error("it waits on")
				}
			})
		}
	}
}

// dialTo dials once.
type dialTo struct{ c net.Conn }

func (d dialTo) Dial(context.Context) (net.Conn, error) { return d.c, nil }

func (d dialTo) Again(*http.Request, bool, error) bool { return false }
